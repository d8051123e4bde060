package dnstest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"nodelocaldns/dnscache/upstream"
	"nodelocaldns/dnscache/wire"
)

// Upstream is all upstream servers of a conversation. They follow a script of
// paragraphs, each a question and, indented, what is answered:
//
//	NAME TYPE [WORD...]
//		RCODE [FLAG...]
//		answer|authority|additional NAME TTL TYPE DATA
//
// The first paragraph that fits a question answers it; a name of * fits all.
// Words of the first line narrow it: at=ADDRESS, over=PROTO, edns, bare (no
// EDNS), and xN, to answer N times only. In place of an answer there may stand
// silent, refused (the connection), or loops (the server asks us; with cd, it
// sets that flag). "after
// DURATION" delays it. Flags are aa, ad, tc, bare for a reply without EDNS, options
// for one with a cookie, an extended error and an option of nobody's, and folds for
// one that has the question in lower case; "fill N NAME" adds N address records, and
// "chain N NAME" N aliases, the first of them NAME.
//
// As servers do, they find names in any case, and spell a record's name as the
// question has it.
type Upstream struct {
	// Asked is told of every question; it may be called at the same time from
	// many goroutines.
	Asked func(server netip.AddrPort, proto string, query []byte)
	// Resolve answers the questions of servers that loop: it is the resolver
	// under test.
	Resolve func(ctx context.Context, query []byte) ([]byte, error)

	mu     sync.Mutex
	script []*paragraph
}

type paragraph struct {
	name, at, over string
	typ            uint16
	edns, bare     bool
	times          int // left; negative without a limit

	silent, refused, loops, setCD bool
	after                         time.Duration
	bareReply, options, folds     bool
	reply                         dns.Msg
}

// ParseUpstream reads a script.
func ParseUpstream(text string) (*Upstream, error) {
	u := &Upstream{}
	return u, u.Follow(text)
}

// Follow puts a script in place of the one before.
func (u *Upstream) Follow(text string) error {
	var script []*paragraph
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		var err error
		if line[0] != '\t' {
			p := &paragraph{times: -1}
			script = append(script, p)
			err = p.question(words)
		} else if len(script) == 0 {
			err = errors.New("an answer before the first question")
		} else {
			err = script[len(script)-1].answer(words)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", strings.TrimSpace(line), err)
		}
	}
	u.mu.Lock()
	u.script = script
	u.mu.Unlock()
	return nil
}

func (p *paragraph) question(words []string) error {
	if len(words) < 2 {
		return errors.New("want NAME TYPE")
	}
	p.name = words[0]
	if words[1] != "*" {
		var err error
		if p.typ, err = parseType(words[1]); err != nil {
			return err
		}
	}
	for _, w := range words[2:] {
		key, value, _ := strings.Cut(w, "=")
		switch {
		case key == "at":
			p.at = value
		case key == "over":
			p.over = value
		case w == "edns":
			p.edns = true
		case w == "bare":
			p.bare = true
		case w[0] == 'x':
			if _, err := fmt.Sscanf(w, "x%d", &p.times); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown word %q", w)
		}
	}
	return nil
}

func (p *paragraph) answer(words []string) error {
	sections := map[string]*[]dns.RR{"answer": &p.reply.Answer, "authority": &p.reply.Ns, "additional": &p.reply.Extra}
	rest := strings.Join(words[1:], " ")
	rcode, isRCode := dns.StringToRcode[words[0]]
	if words[0] == badVers {
		rcode, isRCode = dns.RcodeBadVers, true
	}
	switch section := sections[words[0]]; {
	case section != nil:
		rr, err := ParseRecord(rest)
		*section = append(*section, rr)
		return err
	case words[0] == "fill" || words[0] == "chain":
		var n int
		var name string
		if _, err := fmt.Sscan(rest, &n, &name); err != nil {
			return err
		}
		owner := name
		for i := range n {
			text := fmt.Sprintf("%s 30 A 10.0.%d.%d", name, i/256, i%256)
			if words[0] == "chain" {
				next := fmt.Sprintf("n%d.%s", i+1, name)
				text, owner = owner+" 30 CNAME "+next, next
			}
			rr, err := ParseRecord(text)
			if err != nil {
				return err
			}
			p.reply.Answer = append(p.reply.Answer, rr)
		}
		return nil
	case words[0] == "after":
		var err error
		p.after, err = time.ParseDuration(rest)
		return err
	case words[0] == "silent":
		p.silent = true
	case words[0] == "refused":
		p.refused = true
	case words[0] == "loops":
		p.loops, p.setCD = true, rest == "cd"
	case isRCode:
		p.reply.Rcode = rcode
		p.reply.Authoritative = slices.Contains(words, "aa")
		p.reply.AuthenticatedData = slices.Contains(words, "ad")
		p.reply.Truncated = slices.Contains(words, "tc")
		p.bareReply = slices.Contains(words, "bare")
		p.options = slices.Contains(words, "options")
		p.folds = slices.Contains(words, "folds")
	default:
		return fmt.Errorf("unknown word %q", words[0])
	}
	return nil
}

// Exchanger is the means to ask one server over one protocol, "udp" or "tcp".
func (u *Upstream) Exchanger(server netip.AddrPort, proto string) upstream.Exchanger {
	return &scripted{u, server, proto}
}

type scripted struct {
	*Upstream
	addr  netip.AddrPort
	proto string
}

func (s *scripted) Exchange(ctx context.Context, query, buf []byte) ([]byte, error) {
	q := new(dns.Msg)
	if err := q.Unpack(query); err != nil {
		return nil, fmt.Errorf("upstream cannot read the query: %w", err)
	}
	if s.Asked != nil {
		s.Asked(s.addr, s.proto, query)
	}
	p := s.find(s.addr, s.proto, q)
	if p == nil {
		return nil, fmt.Errorf("the script has no answer to %s", q.Question[0].String())
	}
	if p.refused {
		return nil, errors.New("connection refused")
	}
	if p.loops {
		query = slices.Clone(query)
		if p.setCD {
			binary.BigEndian.PutUint16(query[2:], wire.Flags(query)|wire.FlagCD)
		}
		return s.Resolve(ctx, query)
	}
	if p.after > 0 {
		t := time.NewTimer(p.after)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	if p.silent {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	m := p.reply.Copy()
	rcode := m.Rcode
	m.SetReply(q)
	m.Rcode, m.Authoritative, m.AuthenticatedData, m.Truncated = rcode, p.reply.Authoritative, p.reply.AuthenticatedData, p.reply.Truncated
	m.RecursionAvailable, m.Compress = true, true
	if p.folds {
		m.Question[0].Name = dns.CanonicalName(m.Question[0].Name)
	}
	for _, rr := range m.Answer {
		if h := rr.Header(); strings.EqualFold(h.Name, m.Question[0].Name) {
			h.Name = m.Question[0].Name
		}
	}
	if q.IsEdns0() != nil && !p.bareReply {
		m.SetEdns0(4096, q.IsEdns0().Do())
	}
	if p.options {
		opt := m.IsEdns0()
		opt.Option = append(opt.Option,
			&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef0123456789abcdef"},
			&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeBlocked, ExtraText: "upstream"},
			&dns.EDNS0_LOCAL{Code: dns.EDNS0LOCALSTART, Data: []byte{1}})
	}
	reply, err := m.Pack()
	if err != nil {
		return nil, err
	}
	if err := wire.CheckReply(query, reply); err != nil {
		return nil, err
	}
	return append(buf, reply...), nil
}

func (u *Upstream) find(server netip.AddrPort, proto string, q *dns.Msg) *paragraph {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.script {
		edns := q.IsEdns0() != nil
		if p.name != "*" && !strings.EqualFold(p.name, q.Question[0].Name) || p.typ != 0 && p.typ != q.Question[0].Qtype ||
			p.at != "" && p.at != server.Addr().String() || p.over != "" && p.over != proto ||
			p.edns && !edns || p.bare && edns || p.times == 0 {
			continue
		}
		p.times--
		return p
	}
	return nil
}
