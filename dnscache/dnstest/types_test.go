package dnstest

import (
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// A new version of the library that knows another type makes this fail, so that
// nobody forgets it.
func TestRecordsHaveEveryType(t *testing.T) {
	rrs, err := Records("a.example.", 30)
	if err != nil {
		t.Fatal(err)
	}
	noData := []uint16{dns.TypeOPT, dns.TypeTSIG, dns.TypeTKEY, dns.TypeANY, dns.TypeNXNAME}
	for typ := range dns.TypeToRR {
		n := 0
		for _, rr := range rrs {
			if rr.Header().Rrtype == typ {
				n++
			}
		}
		if want := !slices.Contains(noData, typ); want != (n == 1) {
			t.Errorf("%s: %d records", dns.Type(typ), n)
		}
	}
}
