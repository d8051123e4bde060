package load

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// searchPath is that of a pod in the namespace default, where the kubelet also
// writes ndots:5.
var searchPath = []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local", ""}

// attempts is how often glibc asks one name server (resolv.conf(5)).
const attempts = 2

// lookups is a run of lookups.
type lookups struct {
	*run
	udp     *udp
	workers []*worker
	queries [][2][]byte // for each name of the search path A and AAAA, with the id 0
}

// A worker does one lookup after the other.
type worker struct {
	fd       int
	began    int64
	counting bool
	name     int // of the search path
	try      int
	asked    int64
	id       uint16
	got      [2]bool // A, AAAA
	answers  int
	failed   bool // a reply was neither the truth nor NXDOMAIN
}

func (r *run) lookups() error {
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer unix.Close(p.fd)
	l := &lookups{run: r, udp: &udp{run: r, poller: p, in: newPackets(), out: newPackets()}}
	for _, domain := range searchPath {
		name := strings.TrimSuffix(r.plan.Host+"."+domain, ".")
		l.queries = append(l.queries, [2][]byte{textQuery(name, typeA), textQuery(name, typeAAAA)})
	}
	for i := range r.plan.Window {
		fd, err := udpOpen()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(r.plan.Server.Port()), Addr: r.plan.Server.Addr().As4()}); err != nil {
			return fmt.Errorf("connecting to %s: %w", r.plan.Server, err)
		}
		if err := p.add(fd, i); err != nil {
			return err
		}
		l.workers = append(l.workers, &worker{fd: fd})
	}
	r.start = time.Now()
	if err := r.tick(r.start); err != nil {
		return err
	}
	for _, w := range l.workers {
		if err := l.begin(w); err != nil {
			return err
		}
	}
	return l.loop()
}

func (l *lookups) loop() error {
	late := l.start
	for {
		events := l.udp.poller.wait(look)
		now := time.Now()
		if err := l.tick(now); err != nil {
			return err
		}
		for _, e := range events {
			if err := l.read(l.workers[e.Fd]); err != nil {
				return err
			}
		}
		if now.Sub(late) < look {
			continue
		}
		late = now
		busy := 0
		for _, w := range l.workers {
			if w.began == 0 {
				continue
			}
			busy++
			if now.UnixNano()-w.asked >= int64(l.plan.Timeout) {
				if err := l.timeout(w); err != nil {
					return err
				}
			}
		}
		if l.over && busy == 0 {
			return nil
		}
	}
}

// begin begins a lookup, unless the plan is over.
func (l *lookups) begin(w *worker) error {
	*w = worker{fd: w.fd, id: w.id}
	if l.over {
		return nil
	}
	w.began, w.counting = time.Now().UnixNano(), l.counting
	l.sent()
	return l.ask(w)
}

// ask asks for a name's A and AAAA, or for what of them has not come.
func (l *lookups) ask(w *worker) error {
	w.id += 2
	w.asked = time.Now().UnixNano()
	n := 0
	for i, q := range l.queries[w.name] {
		if !w.got[i] {
			copy(l.udp.out.data[n][:], q)
			binary.BigEndian.PutUint16(l.udp.out.data[n][:], w.id+uint16(i))
			l.udp.out.vectors[n].SetLen(len(q))
			n++
		}
	}
	if errno := l.udp.out.send(w.fd, n); errno != 0 {
		return fmt.Errorf("sending to %s: %w", l.plan.Server, errno)
	}
	return nil
}

// read reads the replies of a worker, and goes on with its lookup where it has both.
func (l *lookups) read(w *worker) error {
	n, errno := l.udp.in.receive(w.fd)
	if errno != 0 {
		return nil // nothing there; or an ICMP error, and the query will be asked again
	}
	came := time.Now().UnixNano()
	for k := range n {
		b := l.udp.in.data[k][:min(l.udp.in.headers[k].length, maxReply)]
		i := -1
		if len(b) >= header {
			i = int(binary.BigEndian.Uint16(b) - w.id)
		}
		if w.began == 0 || i < 0 || i > 1 || w.got[i] {
			l.Strays++
			continue
		}
		w.got[i] = true
		if l.counting && !l.over {
			l.Replies++
		}
		last := w.name == len(searchPath)-1
		rcode, answers := b[3]&0x0f, int(binary.BigEndian.Uint16(b[6:]))
		w.answers += answers
		if last && rcode != 0 || !last && rcode != rcodeNXName {
			w.failed = true
			if l.Example == "" {
				l.Example = fmt.Sprintf("%s: rcode %d and %d answers", strings.TrimSuffix(l.plan.Host+"."+searchPath[w.name], "."), rcode, answers)
			}
		}
		if t := l.udp.in.came(k); t != 0 {
			came = t
		}
	}
	if w.began == 0 || w.got != [2]bool{true, true} {
		return nil
	}
	if w.failed || w.name == len(searchPath)-1 {
		return l.end(w, came)
	}
	w.name, w.try, w.got = w.name+1, 0, [2]bool{}
	return l.ask(w)
}

// end notes what became of a lookup and begins the next.
func (l *lookups) end(w *worker, now int64) error {
	if w.counting {
		if w.failed || w.answers == 0 {
			l.Wrong++
		} else {
			l.Right++
		}
		l.took(time.Duration(now - w.began))
	}
	return l.begin(w)
}

// timeout asks again, or has the lookup fail.
func (l *lookups) timeout(w *worker) error {
	for _, got := range w.got {
		if w.counting && !got {
			l.Lost++
		}
	}
	if w.try++; w.try < attempts {
		return l.ask(w)
	}
	w.failed = true
	return l.end(w, time.Now().UnixNano())
}

// textQuery is the query for a name in text form, with the id 0.
func textQuery(name string, qtype byte) []byte {
	b := []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, qtype, 0, classIN)
}
