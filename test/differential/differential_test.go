package differential

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var (
	seed  = flag.Uint64("seed", 20, "of the questions")
	count = flag.Int("questions", 10_000, "how many are asked")
)

// patience is how long a client waits for a reply, as glibc does.
const patience = 5 * time.Second

// askers is how many questions are under way at once: fewer than any of the three
// minds.
const askers = 12

// A resolver is one of those compared.
type resolver struct {
	name string
	at   netip.AddrPort
}

// A client asks one resolver, one question at a time.
type client struct {
	resolver
	udp net.Conn
	id  uint16
	buf [dns.MaxMsgSize]byte
}

// ask returns what is seen of the reply. What is truncated over UDP is asked again
// over TCP.
func (c *client) ask(q question) (seen, error) {
	c.id++ // nobody guesses on loopback
	packet, err := q.packet(c.id)
	if err != nil {
		return seen{}, err
	}
	if !q.tcp {
		s, err := c.overUDP(packet)
		if err != nil || !s.cut {
			return s, err
		}
		whole, err := c.overTCP(packet)
		return s.overTCP(whole), err
	}
	return c.overTCP(packet)
}

func (c *client) overUDP(packet []byte) (seen, error) {
	if err := c.udp.SetDeadline(time.Now().Add(patience)); err != nil {
		return seen{}, err
	}
	if _, err := c.udp.Write(packet); err != nil {
		return seen{}, err
	}
	for {
		n, err := c.udp.Read(c.buf[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return seen{silent: true}, nil
		case err != nil:
			return seen{}, err
		case n >= 2 && [2]byte(c.buf[:2]) == [2]byte(packet[:2]): // and no reply to what was given up
			return read(c.buf[:n]), nil
		}
	}
}

func (c *client) overTCP(packet []byte) (seen, error) {
	conn, err := net.DialTimeout("tcp", c.at.String(), patience)
	if err != nil {
		return seen{}, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return seen{}, err
	}
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)); err != nil {
		return seen{}, err
	}
	if _, err := io.ReadFull(conn, c.buf[:2]); err != nil {
		return seen{silent: true}, nil // closed, or nothing in time
	}
	n := binary.BigEndian.Uint16(c.buf[:2])
	if _, err := io.ReadFull(conn, c.buf[:n]); err != nil {
		return seen{silent: true}, nil
	}
	return read(c.buf[:n]), nil
}

// A round is one question put to all resolvers, in their order.
type round struct {
	question
	seen []seen
}

// A group asks all resolvers one question at a time.
type group []*client

// put asks all of them at once.
func (g group) put(t *testing.T, q question) round {
	r := round{question: q, seen: make([]seen, len(g))}
	var each sync.WaitGroup
	for i, c := range g {
		each.Go(func() {
			s, err := c.ask(q)
			if err != nil {
				t.Errorf("asking %s for %s: %v", c.name, q, err)
			}
			r.seen[i] = s
		})
	}
	each.Wait()
	return r
}

// putAll asks all resolvers all questions, some twice, and returns the rounds in no
// order.
func putAll(t *testing.T, resolvers []resolver, questions []question) []round {
	t.Helper()
	next, rounds := make(chan question), make(chan round)
	var groups sync.WaitGroup
	for range askers {
		g := make(group, len(resolvers))
		for i, r := range resolvers {
			conn, err := net.Dial("udp", r.at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			g[i] = &client{resolver: r, udp: conn}
		}
		groups.Go(func() {
			for q := range next {
				rounds <- g.put(t, q)
				if q.again {
					rounds <- g.put(t, q.second())
				}
			}
		})
	}
	go func() {
		for _, q := range questions {
			next <- q
		}
		close(next)
		groups.Wait()
		close(rounds)
	}()
	var out []round
	for r := range rounds {
		out = append(out, r)
	}
	return out
}

// shown is how many examples there are of what fails.
const shown = 12

// Each difference has its reason, no reply of ours breaks a rule, and neither what
// makes the search path cheaper nor letters of random case change a reply.
func TestDifferences(t *testing.T) {
	unboundAt, coreDNSAt := unboundProgram(t), coreDNSProgram(t)
	up := startUpstream(t)
	server, ours := startOurs(t, up, true)
	_, plain := startOurs(t, up, false)
	resolvers := []resolver{
		{"ours", ours},
		{untuned, plain},
		{unbound, startUnbound(t, unboundAt, up)},
		{coreDNS, startCoreDNS(t, coreDNSAt, up)},
	}
	t.Logf("%d questions of seed %d", *count, *seed)
	rounds := putAll(t, resolvers, generate(rand.New(rand.NewPCG(*seed, 0)), *count))

	met := make([]int, len(classes))
	var bad []string
	for _, r := range rounds {
		up := truth(t, r.question)
		ours := r.seen[0]
		for _, f := range faults(r.question, up, ours) {
			bad = append(bad, fmt.Sprintf("%s: %s: %v", r.question, f, ours))
		}
		for i, theirs := range r.seen[1:] {
			for _, as := range differences(ours, theirs) {
				c := clash{peer: resolvers[i+1].name, question: r.question, up: up, ours: ours, theirs: theirs, aspect: as}
				if class := classify(c); class >= 0 {
					met[class]++
					continue
				}
				bad = append(bad, fmt.Sprintf("%s: %s differs, and there is no reason for it\n\tours: %v\n\t%s: %v", r.question, as, ours, c.peer, theirs))
			}
		}
	}
	for _, text := range bad[:min(len(bad), shown)] {
		t.Error(text)
	}
	if len(bad) > shown {
		t.Errorf("and %d more", len(bad)-shown)
	}
	st := server.Stats()
	hits := uint64(0)
	for _, z := range st.Cache {
		hits += z.Hits
	}
	t.Logf("%d replies of each were compared; of ours %d came from the cache, %d from a denial of the service; %d questions were guessed\n%s",
		len(rounds), hits, st.Collapsed, st.Guesses, report(met))
	if *count < enough {
		return
	}
	if hits == 0 || st.Collapsed == 0 || st.GuessesUsed == 0 {
		t.Error("the run has missed the cache, or what makes the search path cheaper")
	}
	for i, k := range classes {
		if met[i] == 0 && k.peer != unbound && k.name != "silence" { // unbound is not pinned, and time is no measure
			t.Errorf("%s: %q was not met: is it still so?", k.peer, k.name)
		}
	}
}

// enough questions meet every class, whatever the seed.
const enough = 10_000
