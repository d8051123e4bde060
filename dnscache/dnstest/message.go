// Package dnstest is the other end of a conversation with the resolver:
// clients' queries and replies as text, and upstream servers that follow a
// script. It knows nothing of the resolver itself.
package dnstest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// An Ask is one client's question, as a line of a conversation has it:
//
//	NAME TYPE [WORD...]
//
// where a word is +ad, +cd, +do, -rd, +z (the bit that must be zero), edns=SIZE,
// version=N, cookie (an EDNS option), class=CLASS, opcode=OPCODE, questions=N, tcp, or
// xN for N clients at once.
type Ask struct {
	Packet []byte
	TCP    bool
	Times  int
}

// ParseAsk reads the words of an ask.
func ParseAsk(words []string) (Ask, error) {
	a := Ask{Times: 1}
	if len(words) < 2 {
		return a, fmt.Errorf("ask wants a name and a type")
	}
	typ, err := parseType(words[1])
	if err != nil {
		return a, err
	}
	m := new(dns.Msg).SetQuestion(words[0], typ)
	m.Id = 4711
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	edns := false
	for _, w := range words[2:] {
		key, value, _ := strings.Cut(w, "=")
		n, _ := strconv.Atoi(value)
		switch {
		case w == "+ad":
			m.AuthenticatedData = true
		case w == "+cd":
			m.CheckingDisabled = true
		case w == "-rd":
			m.RecursionDesired = false
		case w == "+z":
			m.Zero = true
		case key == "opcode":
			m.Opcode = dns.StringToOpcode[value]
		case key == "questions":
			m.Question = slices.Repeat(m.Question, n)
		case w == "+do":
			edns = true
			opt.SetDo()
		case w == "cookie":
			edns = true
			opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"})
		case key == "edns":
			edns = true
			opt.SetUDPSize(uint16(n))
		case key == "version":
			edns = true
			opt.SetVersion(uint8(n))
		case key == "class":
			m.Question[0].Qclass = dns.StringToClass[value]
		case w == "tcp":
			a.TCP = true
		case strings.HasPrefix(w, "x"):
			if a.Times, _ = strconv.Atoi(w[1:]); a.Times > 0 {
				continue
			}
			fallthrough
		default:
			return a, fmt.Errorf("unknown word %q", w)
		}
	}
	if edns {
		m.Extra = append(m.Extra, opt)
	}
	a.Packet, err = m.Pack()
	return a, err
}

// parseType reads the name of a type, which may be TYPE and its number (RFC 3597 5).
func parseType(s string) (uint16, error) {
	if typ, ok := dns.StringToType[s]; ok {
		return typ, nil
	}
	digits, _ := strings.CutPrefix(s, "TYPE")
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("unknown type %q", s)
	}
	return uint16(n), nil
}

// shown is how many records of a section are shown where there are many.
const shown = 5

// Format is a message as text: its question, response code and flags on the
// first line, one record on each of the others.
func Format(packet []byte) (string, error) {
	m := new(dns.Msg)
	if err := m.Unpack(packet); err != nil {
		return "", fmt.Errorf("unpacking %x: %w", packet, err)
	}
	var b strings.Builder
	b.WriteString(question(m))
	opt := m.IsEdns0()
	if m.Opcode != dns.OpcodeQuery {
		b.WriteString(" " + dns.OpcodeToString[m.Opcode])
	}
	if m.Response {
		rcode := dns.RcodeToString[m.Rcode]
		if m.Rcode == dns.RcodeBadVers {
			rcode = badVers
		}
		b.WriteString(" " + rcode)
	}
	for _, f := range []struct {
		set  bool
		name string
	}{
		{m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionDesired, "rd"}, {m.RecursionAvailable, "ra"},
		{m.Zero, "z"}, {m.AuthenticatedData, "ad"}, {m.CheckingDisabled, "cd"},
	} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	if opt != nil {
		fmt.Fprintf(&b, " edns=%d", opt.UDPSize())
		if opt.Do() {
			b.WriteString(" do")
		}
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				fmt.Fprintf(&b, " ede=%d %q", ede.InfoCode, ede.ExtraText)
				continue
			}
			fmt.Fprintf(&b, " option=%d", o.Option())
		}
	}
	for _, section := range []struct {
		name string
		rrs  []dns.RR
	}{{"answer", m.Answer}, {"authority", m.Ns}, {"additional", m.Extra}} {
		for i, rr := range section.rrs {
			if rr == opt {
				continue
			}
			if more := len(section.rrs) - i; i >= shown && more > 1 {
				fmt.Fprintf(&b, "\n%s … %d more", section.name, more)
				break
			}
			h := *rr.Header()
			data := strings.SplitN(rr.String(), "\t", 5)[4] // behind name, TTL, class and type
			fmt.Fprintf(&b, "\n%s %s %d %s %s", section.name, h.Name, h.Ttl, dns.Type(h.Rrtype), data)
		}
	}
	return b.String(), nil
}

func question(m *dns.Msg) string {
	if len(m.Question) != 1 {
		return fmt.Sprintf("(%d questions)", len(m.Question))
	}
	q := m.Question[0]
	s := q.Name + " " + dns.Type(q.Qtype).String()
	if q.Qclass != dns.ClassINET {
		s += " " + dns.ClassToString[q.Qclass]
	}
	return s
}

// ParseRecord reads "NAME TTL TYPE DATA". Unlike a zone file's, the TTL may be
// any number of 32 bits.
func ParseRecord(s string) (dns.RR, error) {
	f := strings.SplitN(s, " ", 3)
	if len(f) != 3 {
		return nil, fmt.Errorf("%q is not a record: NAME TTL TYPE DATA", s)
	}
	ttl, err := strconv.ParseUint(f[1], 10, 32)
	if err != nil {
		return nil, fmt.Errorf("the TTL of %q: %w", s, err)
	}
	rr, err := dns.NewRR(f[0] + " 0 IN " + f[2])
	if err != nil {
		return nil, err
	}
	rr.Header().Ttl = uint32(ttl)
	return rr, nil
}

// badVers is response code 16 in an OPT record; the library knows it by the
// name that it has in TSIG.
const badVers = "BADVERS"
