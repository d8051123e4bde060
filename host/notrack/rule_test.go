package notrack

import (
	"slices"
	"strings"
	"testing"
)

func TestWordsSplitsAsIptablesQuotes(t *testing.T) {
	for line, want := range map[string][]string{
		``:                             nil,
		`-j X`:                         {"-j", "X"},
		`  -p  udp `:                   {"-p", "udp"},
		`--comment "two words" -j X`:   {"--comment", "two words", "-j", "X"},
		`--comment "a \"b\" \\" -j X`:  {"--comment", `a "b" \`, "-j", "X"},
		`--comment "" -j X`:            {"--comment", "", "-j", "X"},
		`--string "-j NODELOCALDNS" x`: {"--string", "-j NODELOCALDNS", "x"},
	} {
		if got := Words(line); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
}

func TestTheSameRuleIsEqualHoweverAVersionPrintsIt(t *testing.T) {
	want := []string{"-d", "169.254.20.10/32", "-p", "udp", "--dport", "53", "-m", "comment", "--comment", "nodelocaldns", "-j", "NOTRACK"}
	for line, equal := range map[string]bool{
		`-d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment nodelocaldns -j NOTRACK`:      true,
		`-d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment "nodelocaldns" -j NOTRACK`:    true,
		`-d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment nodelocaldns -j CT --notrack`: true,
		`-d 169.254.20.10/32 -p tcp -m tcp --dport 53 -m comment --comment nodelocaldns -j NOTRACK`:      false,
		`-d 169.254.20.10/32 -p udp -m udp --dport 54 -m comment --comment nodelocaldns -j NOTRACK`:      false,
		`-d 169.254.20.11/32 -p udp -m udp --dport 53 -m comment --comment nodelocaldns -j NOTRACK`:      false,
		`-d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment nodelocaldns -j CT --zone 1`:  false,
		`-d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment nodelocaldns -j ACCEPT`:       false,
		`-d 169.254.20.10/32 -p udp -m udp --dport 53 -j NOTRACK`:                                        false,
	} {
		if got := same([]string{line}, [][]string{want}); got != equal {
			t.Errorf("%s: equal %v, want %v", line, got, equal)
		}
	}
	if same(nil, [][]string{want}) || same([]string{strings.Join(want, " "), strings.Join(want, " ")}, [][]string{want}) {
		t.Error("a chain with a rule less or more is the same")
	}
}
