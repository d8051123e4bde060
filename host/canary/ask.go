package canary

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// A question is asked of each server over each protocol.
type question struct {
	kind         Kind
	name         string
	class, rtype uint16
	any          bool // a reply of any kind will do: kube-dns has no answer either
}

var protos = []string{"udp", "tcp"}

func questions(cfg Config) []question {
	var all []question
	if cfg.Cluster != "" {
		all = append(all, question{kind: Cluster, name: dns.Fqdn(cfg.Cluster), class: dns.ClassINET, rtype: dns.TypeA})
	}
	if cfg.External != "" {
		all = append(all, question{kind: External, name: dns.Fqdn(cfg.External), class: dns.ClassINET, rtype: dns.TypeA})
	}
	big := question{kind: BigReply, name: OwnBig, class: dns.ClassCHAOS, rtype: dns.TypeTXT}
	if cfg.Big != "" {
		big.name, big.class = dns.Fqdn(cfg.Big), dns.ClassINET
	}
	return append(all, big)
}

// A result is what became of one question to one of our servers.
type result struct {
	Failure // set if failed
	outcome
	q      question
	failed bool
	worse  bool // kube-dns does better
}

// askAll asks every question of each of our servers over both protocols, all at
// once, and kube-dns what they do not answer.
func (r *run) askAll(ctx context.Context, at place, questions []question) []result {
	var all []result
	for _, q := range questions {
		for _, server := range r.Servers {
			for _, proto := range protos {
				all = append(all, result{q: q, Failure: Failure{Server: server, Kind: q.kind, Name: q.name, Proto: proto}})
			}
		}
	}
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			x := &all[i]
			// An upstream may fail once.
			for range 2 {
				x.outcome = r.ask(ctx, at, x.Server, x.Proto, x.q)
				if x.What, x.Detail, x.failed = x.outcome.judge(x.q); x.What != Bad {
					break
				}
			}
			if x.failed {
				r.compare(ctx, at, x)
			}
		})
	}
	wg.Wait()
	return all
}

// compare asks kube-dns what one of ours did not answer.
func (r *run) compare(ctx context.Context, at place, x *result) {
	switch {
	case x.q.any, x.q.class != dns.ClassINET:
		x.worse = true // not what kube-dns answers
	case len(r.KubeDNS) == 0:
		// A reply has come through at least.
		x.worse = x.What != Bad
		x.Detail += "; kube-dns is not known"
	default:
		for _, server := range r.KubeDNS {
			o := r.ask(ctx, at, server, x.Proto, x.q)
			if _, _, failed := o.judge(x.q); !failed {
				x.worse = true
				return
			}
		}
		x.Detail += "; kube-dns does not answer it either"
	}
}

// An outcome is what one question got.
type outcome struct {
	err   error
	rcode int
	size  int // of the reply in bytes
	took  time.Duration
}

// judge says how the question failed, if it did.
func (o outcome) judge(q question) (what What, detail string, failed bool) {
	switch {
	case o.err == nil && (q.any || o.rcode == dns.RcodeSuccess || o.rcode == dns.RcodeNameError):
		return "", "", false
	case o.err == nil:
		return Bad, dns.RcodeToString[o.rcode], true
	case errors.Is(o.err, os.ErrDeadlineExceeded), errors.Is(o.err, context.DeadlineExceeded), errors.Is(o.err, syscall.ETIMEDOUT), errors.Is(o.err, context.Canceled):
		return Silent, "no answer", true
	case errors.Is(o.err, syscall.ECONNREFUSED):
		return Refused, "connection refused", true
	case errors.Is(o.err, syscall.ENETUNREACH), errors.Is(o.err, syscall.EHOSTUNREACH), errors.Is(o.err, syscall.EACCES), errors.Is(o.err, syscall.EPERM), errors.Is(o.err, syscall.EADDRNOTAVAIL):
		return Unreachable, "unreachable", true
	case errors.Is(o.err, io.EOF), errors.Is(o.err, io.ErrUnexpectedEOF), errors.Is(o.err, syscall.ECONNRESET), errors.Is(o.err, syscall.EPIPE):
		return Broken, "the connection broke", true
	}
	return Broken, o.err.Error(), true
}

// ask asks once; over UDP the same again if nothing comes for a while.
func (r *run) ask(ctx context.Context, at place, server netip.AddrPort, proto string, q question) outcome {
	ctx, cancel := context.WithTimeout(ctx, r.Patience)
	defer cancel()
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.rtype)
	m.Question[0].Qclass = q.class
	if q.kind == BigReply {
		m.SetEdns0(4096, false) // a server that sends as much over UDP may
	}
	begun := r.Now()
	raw, err := at.dial(ctx, proto, server)
	if err != nil {
		return outcome{err: err}
	}
	c := &dns.Conn{Conn: raw, UDPSize: dns.MaxMsgSize - 1}
	defer c.Close()
	end, _ := ctx.Deadline()
	_ = c.SetDeadline(end) // no error but of a closed connection, which the next call has too
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.WriteMsg(m); err != nil {
		return outcome{err: err}
	}
	if proto == "udp" { // a datagram may get lost
		again := time.AfterFunc(r.Patience/3, func() { _ = c.WriteMsg(m) })
		defer again.Stop()
	}
	for {
		// Not ReadMsg: what it cannot read ends the wait, and over UDP a late
		// reply to somebody else may come first.
		text, err := c.ReadMsgHeader(nil)
		if err != nil {
			return outcome{err: err}
		}
		reply := new(dns.Msg)
		if reply.Unpack(text) != nil && !reply.Truncated || reply.Id != m.Id || !reply.Response {
			if proto == "tcp" {
				return outcome{err: dns.ErrId}
			}
			continue
		}
		return outcome{rcode: reply.Rcode, size: len(text), took: r.Now().Sub(begun)}
	}
}
