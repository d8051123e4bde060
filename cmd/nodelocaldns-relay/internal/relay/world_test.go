package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// A world is everything around a relay: clients, and kube-dns servers that follow
// a script. It writes down what happens, with the time since it was made; it is to
// be used in a bubble of synctest.
type world struct {
	t     *testing.T
	began time.Time
	relay *Relay
	where []*packets
	door  *door
	stop  context.CancelFunc
	done  chan struct{}
	drawn atomic.Uint32

	onePort bool // queries share it where they may

	mu     sync.Mutex
	script map[string][]string // by server, what becomes of the next packets; the last one stays
	dialed int
	log    []string
	quiet  bool
}

var ourAddr = netip.MustParseAddrPort("169.254.20.10:53")

// newWorld is a world with a relay in it that asks servers, "10.0.0.1 10.0.0.2".
func newWorld(t *testing.T, servers string) *world {
	w := &world{t: t, began: time.Now(), script: map[string][]string{}, done: make(chan struct{})}
	for range 2 {
		w.where = append(w.where, &packets{world: w, queue: make(chan packet, 5000), over: make(chan struct{})})
	}
	w.door = &door{knock: make(chan net.Conn), over: make(chan struct{})}
	w.relay = New(Deps{
		Log:     slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: withoutTime})),
		Packets: []PacketConn{w.where[0], w.where[1]},
		Streams: []Listener{w.door},
		Dial:    w.dial,
		Exchanger: func(server netip.AddrPort) Exchanger {
			return &stream{w, server.Addr().String()}
		},
		Random: func() uint32 { // another port, and another id, each time
			n := w.drawn.Add(1)
			if w.onePort {
				return n & 0xFFFF
			}
			return n<<16 | n
		},
	})
	w.ask(servers)
	ctx, stop := context.WithCancel(context.Background()) //nolint:usetesting // outlives the test's own context
	w.stop = stop
	go func() {
		w.relay.Serve(ctx)
		close(w.done)
	}()
	t.Cleanup(w.end)
	return w
}

func (w *world) ask(servers string) {
	var list []netip.AddrPort
	for _, s := range strings.Fields(servers) {
		list = append(list, netip.AddrPortFrom(netip.MustParseAddr(s), 53))
	}
	w.relay.Ask(list)
}

func (w *world) end() {
	w.stop()
	<-w.done
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
		return slog.Attr{}
	}
	return a
}

// Write takes a line of the relay's log.
func (w *world) Write(line []byte) (int, error) {
	w.note("%s", bytes.TrimSpace(line))
	return len(line), nil
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.quiet {
		w.log = append(w.log, fmt.Sprintf("%5s ", time.Since(w.began))+fmt.Sprintf(format, args...))
	}
}

// becomes says what servers do with packets from now on: words for each server,
// one a packet, the last one for all that follow.
func (w *world) becomes(server, words string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.script[server] = strings.Fields(words)
}

func (w *world) next(server string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	words := w.script[server]
	if len(words) == 0 {
		return "answers"
	}
	if len(words) > 1 {
		w.script[server] = words[1:]
	}
	return words[0]
}

// query sends the query for name that client number n makes.
func (w *world) query(n int, name string) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeA)
	m.Id = uint16(n)
	if strings.HasPrefix(name, "edns.") {
		m.SetEdns0(1232, false)
	}
	w.send(n, pack(w.t, m))
}

func (w *world) send(n int, pkt []byte) {
	w.where[n%len(w.where)].queue <- packet{pkt, addressOf(n)}
}

func addressOf(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), 5000)
}

// transcript is what happened since it was last asked for. It waits until nothing
// more happens, for d.
func (w *world) transcript(d time.Duration) string {
	time.Sleep(d)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.Join(w.log, "\n")
	w.log = nil
	return text
}

// expect compares what happens in d with want, a raw string. What happens at the
// same time has no order.
func (w *world) expect(d time.Duration, want string) {
	w.t.Helper()
	var lines []string
	for line := range strings.Lines(strings.TrimSpace(want)) {
		lines = append(lines, strings.TrimLeft(strings.TrimSpace(line), "\t"))
	}
	var got []string
	for line := range strings.Lines(w.transcript(d)) {
		got = append(got, strings.TrimSpace(line))
	}
	sorted := func(lines []string) []string { return slices.Sorted(slices.Values(lines)) }
	if !slices.Equal(sorted(got), sorted(lines)) {
		w.t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
}

// packets are the UDP clients.
type packets struct {
	world *world
	queue chan packet
	once  sync.Once
	over  chan struct{}
}

type packet struct {
	data   []byte
	client netip.AddrPort
}

func (p *packets) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case <-p.over: // first: what is in the queue is the next process's
		return 0, netip.AddrPort{}, os.ErrDeadlineExceeded
	default:
	}
	select {
	case <-p.over:
		return 0, netip.AddrPort{}, os.ErrDeadlineExceeded
	case pkt := <-p.queue:
		return copy(b, pkt.data), pkt.client, nil
	}
}

func (p *packets) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		p.world.note("told %s what is no message: %v", to.Addr(), err)
		return len(b), nil
	}
	if addressOf(int(m.Id)) != to {
		p.world.note("%s was told the reply of %d", to.Addr(), m.Id)
	}
	p.world.note("told %d %s", m.Id, said(m))
	return len(b), nil
}

func (p *packets) SetReadDeadline(at time.Time) error {
	if at.Before(time.Now()) {
		p.once.Do(func() { close(p.over) })
	}
	return nil
}

func (p *packets) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(ourAddr) }
func (p *packets) Close() error        { return nil }

// said is a reply in words.
func said(m *dns.Msg) string {
	words := []string{dns.RcodeToString[m.Rcode]}
	for _, q := range m.Question {
		words = append(words, q.Name)
	}
	if m.Truncated {
		words = append(words, "tc")
	}
	if !m.RecursionAvailable {
		words = append(words, "ra=0")
	}
	for _, rr := range m.Answer {
		words = append(words, rr.(*dns.A).A.String())
	}
	if o := m.IsEdns0(); o != nil {
		words = append(words, "edns")
		for _, opt := range o.Option {
			if ede, ok := opt.(*dns.EDNS0_EDE); ok {
				words = append(words, fmt.Sprintf("ede %d", ede.InfoCode))
			}
		}
	}
	return strings.Join(words, " ")
}

// An uplink is one connected UDP socket of the relay.
type uplink struct {
	world   *world
	server  string
	number  int
	replies chan any // []byte or error
	mu      sync.Mutex
	timer   *time.Timer
	over    chan struct{}
	closed  bool
}

func (w *world) dial(server netip.AddrPort) (net.Conn, error) {
	name := server.Addr().String()
	w.mu.Lock()
	words := w.script[name]
	w.mu.Unlock()
	if len(words) > 0 && words[0] == "undialable" {
		w.next(name)
		return nil, syscall.ENETUNREACH
	}
	w.mu.Lock()
	w.dialed++
	n := w.dialed
	w.mu.Unlock()
	return &uplink{world: w, server: name, number: n, replies: make(chan any, 5000), over: make(chan struct{})}, nil
}

func (u *uplink) Write(b []byte) (int, error) {
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		u.world.note("%s was sent what is no message: %v", u.server, err)
		return len(b), nil
	}
	word := u.world.next(u.server)
	u.world.note("%s:%d %s %s", u.server, u.number, word, m.Question[0].Name)
	switch word {
	case "unsendable":
		return 0, syscall.EPERM
	case "was-refused": // an earlier one
		return 0, syscall.ECONNREFUSED
	}
	if after, late := strings.CutPrefix(word, "answers-after="); late {
		d, err := time.ParseDuration(after)
		if err != nil {
			u.world.t.Error(err)
		}
		time.AfterFunc(d, func() { u.replies <- replies(u.world.t, "answers", u.server, m)[0] })
		return len(b), nil
	}
	for _, r := range replies(u.world.t, word, u.server, m) {
		u.replies <- r
	}
	return len(b), nil
}

// replies are what a server sends that does word with m.
func replies(t *testing.T, word, server string, m *dns.Msg) []any {
	reply := new(dns.Msg)
	reply.SetReply(m)
	reply.RecursionAvailable = true
	rr := &dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.ParseIP(server)}
	reply.Answer = []dns.RR{rr}
	if m.IsEdns0() != nil {
		reply.SetEdns0(1232, false)
	}
	good := pack(t, reply)
	switch word {
	case "answers":
		return []any{good}
	case "silent":
		return nil
	case "refuses":
		return []any{syscall.ECONNREFUSED}
	case "wrong-id":
		bad := bytes.Clone(good)
		bad[1]++
		return []any{bad}
	case "wrong-question":
		bad := bytes.Clone(good)
		bad[13]++ // the first letter of the name
		return []any{bad}
	case "echoes": // a query is no reply
		return []any{pack(t, m)}
	case "garbage":
		return []any{good[:2], []byte{}, good[:11], bytes.Repeat([]byte{0xFF}, 4097)}
	case "forged-first":
		bad := bytes.Clone(good)
		bad[13]++
		return []any{bad, good}
	case "twice":
		return []any{good, bytes.Clone(good)}
	case "truncated":
		reply.Truncated, reply.Answer = true, nil
		return []any{pack(t, reply)}
	case "huge":
		for len(reply.Answer) < 300 {
			reply.Answer = append(reply.Answer, rr)
		}
		return []any{pack(t, reply)}
	case "no-question":
		reply.Rcode, reply.Question, reply.Answer = dns.RcodeRefused, nil, nil
		return []any{pack(t, reply)}
	}
	t.Errorf("unknown word %q", word)
	return nil
}

func (u *uplink) Read(b []byte) (int, error) {
	u.mu.Lock()
	over := u.over
	u.mu.Unlock()
	select {
	case r := <-u.replies:
		if err, bad := r.(error); bad {
			return 0, err
		}
		return copy(b, r.([]byte)), nil
	case <-over:
		return 0, os.ErrDeadlineExceeded
	}
}

func (u *uplink) SetReadDeadline(at time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.timer != nil {
		u.timer.Stop()
	}
	if u.closed {
		return net.ErrClosed
	}
	over := u.over
	u.timer = time.AfterFunc(time.Until(at), func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if !u.closed {
			u.closed = true
			close(over)
		}
	})
	return nil
}

func (u *uplink) Close() error                     { return nil }
func (u *uplink) LocalAddr() net.Addr              { return nil }
func (u *uplink) RemoteAddr() net.Addr             { return nil }
func (u *uplink) SetDeadline(time.Time) error      { return errors.New("not used") }
func (u *uplink) SetWriteDeadline(time.Time) error { return errors.New("not used") }

// A stream is how a server is asked over TCP.
type stream struct {
	world *world
	name  string
}

func (s *stream) Exchange(ctx context.Context, query, buf []byte) ([]byte, error) {
	m := new(dns.Msg)
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	word := s.world.next(s.name)
	s.world.note("%s tcp %s %s", s.name, word, m.Question[0].Name)
	if word == "refuses" {
		return nil, syscall.ECONNREFUSED
	}
	if after, late := strings.CutPrefix(word, "answers-after="); late {
		d, err := time.ParseDuration(after)
		if err != nil {
			s.world.t.Error(err)
		}
		select {
		case <-time.After(d):
			word = "answers"
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	all := replies(s.world.t, word, s.name, m)
	if len(all) == 0 {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	reply := all[0].([]byte)
	binary.BigEndian.PutUint16(reply, 4711) // the exchanger's own
	return append(buf, reply...), nil
}

func (s *stream) Renew() { s.world.note("%s tcp is renewed", s.name) }

func (s *stream) Close() error {
	s.world.note("%s tcp is closed", s.name)
	return nil
}

// A door is where TCP clients come.
type door struct {
	knock chan net.Conn
	once  sync.Once
	over  chan struct{}
}

func (d *door) Accept() (net.Conn, error) {
	select {
	case conn := <-d.knock:
		return conn, nil
	case <-d.over:
		return nil, os.ErrDeadlineExceeded
	}
}

func (d *door) SetDeadline(time.Time) error {
	d.once.Do(func() { close(d.over) })
	return nil
}

func (d *door) Close() error   { return nil }
func (d *door) Addr() net.Addr { return net.TCPAddrFromAddrPort(ourAddr) }

// connect is a TCP client.
func (w *world) connect() net.Conn {
	ours, theirs := net.Pipe()
	w.door.knock <- theirs
	return ours
}

// frame is a query for name with its length in front.
func frame(t *testing.T, id int, name string) []byte {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeA)
	m.Id = uint16(id)
	pkt := pack(t, m)
	return append([]byte{byte(len(pkt) >> 8), byte(len(pkt))}, pkt...)
}

// hear notes what the relay tells a TCP client until it closes the connection.
func (w *world) hear(conn net.Conn) {
	go func() {
		for {
			var size [2]byte
			if _, err := io.ReadFull(conn, size[:]); err != nil {
				w.note("closed: %v", err)
				return
			}
			msg := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(conn, msg); err != nil {
				w.note("closed inside a message: %v", err)
				return
			}
			m := new(dns.Msg)
			if err := m.Unpack(msg); err != nil {
				w.note("told what is no message: %v", err)
				return
			}
			w.note("told %d %s", m.Id, said(m))
		}
	}()
}

func pack(t *testing.T, m *dns.Msg) []byte {
	pkt, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return pkt
}
