package wire_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/dnstest"
	. "nodelocaldns/dnscache/wire" //nolint:revive // the package under test, from outside
)

// records are of every type, and of an owner.
func records(t testing.TB, owner string) []dns.RR {
	t.Helper()
	rrs, err := dnstest.Records(owner, 30)
	if err != nil {
		t.Fatal(err)
	}
	return rrs
}

func TestTheNamesInDataAreFound(t *testing.T) {
	for _, rr := range records(t, "www.example.") {
		var want []string
		switch rr.Header().Rrtype {
		case dns.TypeHIP, dns.TypeIPSECKEY, dns.TypeAMTRELAY: // not looked for
		default:
			for _, word := range strings.Fields(rr.String())[4:] {
				if strings.HasSuffix(word, ".") {
					want = append(want, word)
				}
			}
		}
		m := &dns.Msg{Answer: []dns.RR{rr}}
		msg, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		r, _ := NextRecord(msg, HeaderLen)
		at, n, ok := DataNames(msg, r)
		var got []string
		for _, off := range at[:n] {
			name, _, err := dns.UnpackDomainName(msg, off)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, name)
		}
		if !ok || !slices.Equal(got, want) {
			t.Errorf("%v: %v %q, want %q", rr, ok, got, want)
		}
		if len(want) == 0 {
			continue
		}
		open := slices.Contains([]uint16{TypeSVCB, TypeHTTPS, dns.TypeSIG, TypeRRSIG, dns.TypeNXT, TypeNSEC}, r.Type)
		for end := r.Data; end < r.End; end++ {
			cut := r
			cut.End = end
			if at, n, ok := DataNames(msg, cut); ok && (!open || SkipName(msg, at[n-1]) > end) {
				t.Errorf("%v: %d names in %d bytes of %d", rr, n, end-r.Data, r.End-r.Data)
			}
		}
	}
}

// Every name of a reply that repeats the question gets the letters back that it was
// to have, other names keep theirs, and nothing else changes.
func TestNamesAreSpelledAsTheyWereMeant(t *testing.T) {
	const name, sent = "www.shop.example.", "wWw.ShOp.eXAMPle."
	of := func(spelled string) *dns.Msg {
		m := new(dns.Msg).SetQuestion(spelled, dns.TypeANY)
		m.Response = true
		below := spelled[strings.Index(spelled, ".")+1:]
		m.Answer = append(records(t, spelled), records(t, "MaiL."+below)...)
		for _, other := range []string{"Example.", "xwWw.ShOp.EXAMPLE.", "www.ShOp.Elsewhere."} {
			m.Ns = append(m.Ns, &dns.NS{Hdr: dns.RR_Header{Name: other, Rrtype: dns.TypeNS, Class: dns.ClassINET}, Ns: "nS." + other})
		}
		// The library finds no names in these, nor do we.
		m.Answer = slices.DeleteFunc(m.Answer, func(rr dns.RR) bool {
			return slices.Contains([]uint16{dns.TypeHIP, dns.TypeIPSECKEY, dns.TypeAMTRELAY}, rr.Header().Rrtype)
		})
		return m
	}
	for _, compress := range []bool{false, true} {
		reply, want := of(sent), of(name)
		reply.Compress, want.Compress = compress, compress
		want.Id = reply.Id
		got, err := reply.Pack()
		if err != nil {
			t.Fatal(err)
		}
		meant, err := want.Pack()
		if err != nil {
			t.Fatal(err)
		}
		Respell(got, wireName(t, sent), wireName(t, name))
		if !bytes.Equal(got, meant) {
			m := new(dns.Msg)
			t.Errorf("compressed %v: %v\n%v\nwant\n%v", compress, m.Unpack(got), m, want)
		}
	}
}

// wireName is a name in wire form, its letters as they are.
func wireName(t *testing.T, s string) []byte {
	t.Helper()
	buf := make([]byte, MaxName)
	n, err := dns.PackDomainName(s, buf, 0, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}
