package bench

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNamesAreSearchedForAsGlibcDoes(t *testing.T) {
	pod := []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local"}
	for _, tt := range []struct {
		name   string
		search []string
		ndots  int
		want   string
		asIs   int
	}{
		{"web", pod, 5, "web.shop.svc.cluster.local. web.svc.cluster.local. web.cluster.local. web.", 3},
		{"www.example.com", pod, 5, "www.example.com.shop.svc.cluster.local. www.example.com.svc.cluster.local. www.example.com.cluster.local. www.example.com.", 3},
		{"www.example.com", pod, 2, "www.example.com. www.example.com.shop.svc.cluster.local. www.example.com.svc.cluster.local. www.example.com.cluster.local.", 0},
		{"www.example.com.", pod, 5, "www.example.com.", 0},
		{"web", nil, 1, "web.", 0},
		{"a.b", []string{"."}, 5, "a.b.", 0},
		{"a.b", []string{"x", ".", "y."}, 5, "a.b.x. a.b. a.b.y.", 1},
		{"a", []string{"x"}, 0, "a. a.x.", 0},
	} {
		names, asIs := candidates(tt.name, tt.search, tt.ndots)
		if got := strings.Join(names, " "); got != tt.want || asIs != tt.asIs {
			t.Errorf("%s below %q, ndots %d:\n got %s (%d)\nwant %s (%d)", tt.name, tt.search, tt.ndots, got, asIs, tt.want, tt.asIs)
		}
	}
}

// Each case has what becomes of the names, in turn; those that must not be asked
// for are "-".
func TestASearchGoesOnWhereGlibcDoes(t *testing.T) {
	words := map[string]Outcome{
		"answer": Answered, "nx": NXDomain, "nodata": NoData, "servfail": Servfail, "refused": Refused,
		"timeout": Timeout, "other": Other, "cut": Unfinished, "nobody": unreachable,
	}
	for _, tt := range []struct {
		name  string
		asIs  int
		names string
		want  string
	}{
		{"the first that has an answer ends it", 3, "nx answer - -", "answer"},
		{"no name has one", 3, "nx nx nx nx", "nx"},
		{"no data goes on, and is told", 3, "nx nodata nx nx", "nodata"},
		{"no data goes on, and may be without a meaning", 3, "nodata nx nx answer", "answer"},
		{"SERVFAIL goes on, and is told", 3, "servfail nx nx nx", "servfail"},
		{"no data is told before SERVFAIL", 3, "servfail nodata nx nx", "nodata"},
		{"silence ends the search, not the lookup", 3, "nx timeout - answer", "answer"},
		{"silence all over", 3, "timeout - - timeout", "timeout"},
		{"refused", 3, "refused - - nx", "nx"},
		{"an odd reply", 3, "nx other - other", "other"},
		{"nobody is there", 3, "nobody - - -", "nobody"},
		{"the name as it is comes first", 0, "answer - - -", "answer"},
		{"the name as it is does not exist, one below does", 0, "nx nx answer -", "answer"},
		{"the name as it is tells what became of all", 0, "nodata nx nx nx", "nodata"},
		{"the name as it is was not answered", 0, "timeout nx nx nx", "timeout"},
		{"nobody is there for the second either", 0, "nobody nobody -", "nobody"},
		{"it is not asked for twice", 0, "nx timeout - -", "nx"},
		{"the root in the middle", 1, "timeout answer -", "answer"},
		{"the root before silence", 0, "nx", "nx"},
		{"cut off", 3, "nx cut - -", "cut"},
		{"cut off at last", 2, "timeout - cut", "cut"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			names := strings.Fields(tt.names)
			var asked []string
			got := walk(len(names), tt.asIs, func(i int) Outcome {
				asked = append(asked, strconv.Itoa(i))
				if names[i] == "-" {
					t.Errorf("name %d is asked for", i)
					return Unfinished
				}
				return words[names[i]]
			})
			var want []string
			for i, n := range names {
				if n != "-" {
					want = append(want, strconv.Itoa(i))
				}
			}
			if diff := cmp.Diff(want, asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			if got != words[tt.want] {
				t.Errorf("got %d, want %s (%d)", got, tt.want, words[tt.want])
			}
		})
	}
}

func TestWhatIsNoNameIsRefused(t *testing.T) {
	long := strings.Repeat("a", 63)
	for name, want := range map[string]string{
		"example.com":                   "",
		"example.com.":                  "",
		"_dns._udp.kube-dns":            "",
		"localhost":                     "",
		strings.Repeat("a.", 127):       "",
		"":                              "a name is empty",
		".":                             "a name is empty",
		"a..b":                          `"a..b" is no name: it has an empty label`,
		".a":                            `".a" is no name: it has an empty label`,
		"a b":                           `"a b" is no name: it has a ' '`,
		"-c":                            `"-c" is no name: a label begins with a hyphen`,
		"bücher.example":                `"bücher.example" is no name: it has a 'ü'`,
		"https://example.com/":          `"https://example.com/" is no name: it has a ':'`,
		"192.0.2.1":                     "192.0.2.1 is an address, and nobody is asked for those",
		"fd00::1":                       "fd00::1 is an address, and nobody is asked for those",
		"a." + long + "a":               `"a.` + long + `a" is no name: a label is longer than 63 bytes`,
		strings.Repeat("a.", 127) + "a": strings.Repeat("a.", 127) + "a is no name: it is longer than 253 bytes",
	} {
		got := ""
		if err := CheckName(name); err != nil {
			got = err.Error()
		}
		if want != got {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}
