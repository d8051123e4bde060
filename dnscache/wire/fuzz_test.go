package wire_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/miekg/dns"

	. "nodelocaldns/dnscache/wire" //nolint:revive // the package under test, from outside
)

// seedQueries are queries of every kind, whole and broken.
func seedQueries(f *testing.F) {
	for _, pkt := range [][]byte{
		nil,
		header(0, 1, 0, 0, 0),
		cat(header(FlagRD, 1, 0, 0, 0), exampleA),
		cat(header(FlagRD, 1, 0, 0, 1), exampleA, opt(name(), 0)),
		cat(header(FlagRD, 1, 0, 0, 1), exampleA, opt(name(), 1, 0, 10, 0, 2, 1, 2)),
		cat(header(FlagRD|FlagCD, 1, 0, 0, 2), name("WwW", "\x00\xFF.\\"), u16(TypeHTTPS, ClassIN), opt(name(), 0),
			[]byte{0xC0, 12}, u16(TypeTSIG, 255, 0, 0, 1), []byte{7}),
		cat(header(FlagQR, 1, 0, 0, 0), exampleA),
		cat(header(5<<11, 1, 0, 0, 0), exampleA),
		cat(header(0, 1, 0, 0, 0), []byte{0xC0, 12}, u16(TypeA, ClassIN)),
		cat(header(0, 1, 0, 0, 0), name(long, long, long, long[:61]), u16(TypeANY, ClassIN)),
	} {
		f.Add(pkt)
	}
}

// What we take for a question is the same question to others, and every reply
// that we give by ourselves can be read by them.
func FuzzParseQuery(f *testing.F) {
	seedQueries(f)
	f.Fuzz(func(t *testing.T, pkt []byte) {
		before := bytes.Clone(pkt)
		var q Query
		v := ParseQuery(pkt, &q)
		if !bytes.Equal(pkt, before) {
			t.Fatal("the packet was changed")
		}
		if v == Drop {
			return
		}
		theirs := new(dns.Msg)
		err := theirs.Unpack(pkt)
		if v == Answer {
			if err != nil && !foreignData(pkt) {
				t.Fatalf("taken for a question, but: %v", err)
			}
			wantQuestion(t, &q, pkt)
			key := AppendKey(nil, &q)
			if len(key) > MaxKey {
				t.Fatalf("key of %d bytes", len(key))
			}
			up := new(dns.Msg)
			if err := up.Unpack(AppendUpstreamQuery(nil, 1, key, true)); err != nil {
				t.Fatalf("asking upstream: %v", err)
			}
			if up.Question[0].Name != strings.ToLower(up.Question[0].Name) {
				t.Fatalf("upstream is asked for %s", up.Question[0].Name)
			}
			if err == nil {
				o := theirs.IsEdns0()
				if q.HasOPT != (o != nil) || o != nil && (q.DO != o.Do() || q.UDPSize != o.UDPSize()) {
					t.Fatalf("%+v, but %v", q, theirs)
				}
			}
		}
		for _, reply := range [][]byte{
			AppendError(nil, &q, v.RCode(), EDENone), AppendError(nil, &q, ServFail, EDENetworkError),
		} {
			m := new(dns.Msg)
			if err := m.Unpack(reply); err != nil {
				t.Fatalf("a reply of ours: %v", err)
			}
			if m.Id != q.ID || !m.Response || len(reply) > MinUDP {
				t.Fatalf("a reply of ours: %v", m)
			}
		}
	})
}

// foreignData reports whether a query has additional records beside OPT. Their
// data is passed over here and read there.
func foreignData(pkt []byte) bool {
	var q Query
	ParseQuery(pkt, &q)
	off := HeaderLen + len(q.Question)
	for off < len(pkt) {
		r, ok := NextRecord(pkt, off)
		if !ok {
			return false
		}
		// The library reads the data of options that it knows.
		if r.Type != TypeOPT || r.End > r.Data {
			return true
		}
		off = r.End
	}
	return false
}

// wantQuestion compares the question with how the library reads it.
func wantQuestion(t *testing.T, q *Query, pkt []byte) {
	t.Helper()
	n, off, err := dns.UnpackDomainName(pkt, HeaderLen)
	if err != nil {
		t.Fatalf("the name: %v", err)
	}
	if off != HeaderLen+len(q.Name()) {
		t.Fatalf("the name %s ends at %d, not %d", n, off, HeaderLen+len(q.Name()))
	}
	back := make([]byte, MaxName+1)
	end, err := dns.PackDomainName(n, back, 0, nil, false)
	if err != nil || !bytes.Equal(back[:end], q.Name()) {
		t.Fatalf("the name is %x here and %x there (%v)", q.Name(), back[:end], err)
	}
}

// Folding is idempotent, keeps the length, and folds those together that
// compare equal, and only those.
func FuzzKeyFolding(f *testing.F) {
	f.Add([]byte("www"), []byte("WWW"))
	f.Add([]byte("a@[`{Z"), []byte("A@[`{z"))
	f.Add([]byte{0, 1, 'A', 0xC1, 0xE1}, []byte{0, 1, 'a', 0xE1, 0xC1})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		fa, fb := AppendFold(nil, a), AppendFold(nil, b)
		if len(fa) != len(a) || !bytes.Equal(AppendFold(nil, fa), fa) {
			t.Fatalf("%x is folded to %x", a, fa)
		}
		if same := bytes.Equal(fa, fb); same != EqualFold(a, b) {
			t.Fatalf("%x and %x: folded alike %v, equal %v", a, b, same, !same)
		}
		if !EqualFold(a, fa) {
			t.Fatalf("%x is not equal to itself folded", a)
		}
		if n, ok := ParseName(string(a)); ok {
			if !bytes.Equal(AppendFold(nil, n), n) {
				t.Fatalf("ParseName(%q) is %x: not folded", a, n)
			}
			back, _, err := dns.UnpackDomainName(n, 0)
			if err != nil {
				t.Fatalf("ParseName(%q) is %x: %v", a, n, err)
			}
			if want := dns.CountLabel(back); want != labels(n) {
				t.Fatalf("ParseName(%q) is %x: %d labels", a, n, labels(n))
			}
		}
	})
}

func labels(name []byte) int {
	n := 0
	for ; name[0] != 0; name = name[1+int(name[0]):] {
		n++
	}
	return n
}

// A name that we read is one that others read the same, and where it ends.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"0377777700", "0161c00c", "c00c", "c00dc00c", "00", "3f", "c0", "0161016200c00e"} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(0))
		f.Add(b, uint16(2))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint16) {
		msg := append(header(0, 0, 0, 0, 0), b...)
		off := HeaderLen + int(at)
		ours, ok := AppendName(nil, msg, off)
		end := SkipName(msg, off)
		if !ok {
			return
		}
		if len(ours) > MaxName || end < 0 {
			t.Fatalf("a name of %d bytes that ends at %d", len(ours), end)
		}
		theirs, theirEnd, err := dns.UnpackDomainName(msg, off)
		if err != nil {
			t.Fatalf("%x: %v", ours, err)
		}
		if end != theirEnd {
			t.Fatalf("ends at %d, not %d", theirEnd, end)
		}
		back := make([]byte, MaxName+1)
		n, err := dns.PackDomainName(theirs, back, 0, nil, false)
		if err != nil || !bytes.Equal(AppendFold(nil, back[:n]), ours) {
			t.Fatalf("%x here and %x there (%v)", ours, back[:n], err)
		}
	})
}

// Whatever a reply is: nothing but letters of its names change, and those to what was
// asked for.
func FuzzRespell(f *testing.F) {
	for i, rr := range records(f, "wWw.ShOp.eXAMPle.") {
		for _, compress := range []bool{false, true} {
			m := new(dns.Msg).SetQuestion("wWw.ShOp.eXAMPle.", dns.TypeANY)
			m.Response, m.Compress, m.Answer = true, compress, []dns.RR{rr}
			if i%2 == 0 {
				m.Ns = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: "ShOp.eXAMPle.", Rrtype: dns.TypeNS, Class: dns.ClassINET}, Ns: "nS.eXAMPle."}}
			}
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, reply []byte) {
		var q Query
		if len(reply) < HeaderLen || binary.BigEndian.Uint16(reply[4:]) != 1 {
			return
		}
		asked := bytes.Clone(reply)
		binary.BigEndian.PutUint16(asked[2:], 0)
		copy(asked[6:HeaderLen], make([]byte, 6))
		end := SkipName(asked, HeaderLen)
		if end < 0 || end+4 > len(asked) || ParseQuery(asked[:end+4], &q) != Answer {
			return
		}
		sent := bytes.Clone(q.Name())
		name := AppendFold(nil, sent)
		before, theirs := bytes.Clone(reply), new(dns.Msg)
		readable := theirs.Unpack(reply) == nil
		Respell(reply, sent, name)
		if !bytes.Equal(reply[HeaderLen:end], name) || !EqualFold(reply, before) {
			t.Fatalf("%x became %x", before, reply)
		}
		ours := new(dns.Msg)
		if err := ours.Unpack(reply); readable && (err != nil || !strings.EqualFold(ours.String(), theirs.String())) {
			t.Fatalf("%v became %v, %v", theirs, ours, err)
		}
	})
}
