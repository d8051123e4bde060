package unit_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"nodelocaldns/host/hosttest"
	"nodelocaldns/host/step"
	"nodelocaldns/host/unit"
	"nodelocaldns/units"
)

const (
	etcUnits = "/etc/systemd/system/"
	usrUnits = "/usr/lib/systemd/system/"

	socketDropIn   = etcUnits + units.Socket + ".d/" + units.DropInName
	resolverDropIn = etcUnits + units.Resolver + ".d/" + units.DropInName
)

// configured is socket, resolver and relay of a program whose configuration wants
// that address and that much memory. By default they are a and 1.
func configured(listen, memory string) []units.File {
	socket := func(listen string) []byte { return []byte("[Socket]\nListenStream=" + listen + "\n") }
	resolver := func(memory string) []byte { return []byte("[Service]\nMemoryMax=" + memory + "\n") }
	relay := []byte("[Service]\n")
	return []units.File{
		{Dir: units.UnitDir, Name: units.Socket, Content: socket(listen), Plain: socket("a"), WantedBy: "sockets.target"},
		{Dir: units.UnitDir, Name: units.Resolver, Content: resolver(memory), Plain: resolver("1"), WantedBy: "multi-user.target"},
		{Dir: units.UnitDir, Name: units.Relay, Content: relay, Plain: relay},
	}
}

// ofPackage is a tree in which a package has brought and enabled them.
func ofPackage(more ...string) map[string]string {
	tree := map[string]string{}
	for _, f := range configured("a", "1") {
		tree[usrUnits+f.Name] = string(f.Content)
		if f.WantedBy != "" {
			tree[usrUnits+f.WantedBy+".wants/"+f.Name] = "-> ../" + f.Name
		}
	}
	return with(tree, append(more, etcUnits, "")...)
}

// run starts units of the node.
func (n *node) run(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := n.systemd.Start(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

// What holds for every step holds for drop-ins, on nodes of several kinds.
func TestStepUnitWithDropIns(t *testing.T) {
	// What they say is in what check finds, below.
	const dropIns = `drwxr-xr-x /etc/systemd/system/nodelocaldns.service.d
-rw-r--r-- /etc/systemd/system/nodelocaldns.service.d/05-nodelocaldns.conf 90 bytes 79b33d233cd81001
drwxr-xr-x /etc/systemd/system/nodelocaldns.socket.d
-rw-r--r-- /etc/systemd/system/nodelocaldns.socket.d/05-nodelocaldns.conf 106 bytes 3428b99347b4c2bf
`
	for _, tt := range []struct {
		name  string
		image bool // nothing runs there
		ran   []string
		bound error // the restart of the socket, where the resolver has bound an address
		want  string
	}{
		{"an image", true, nil, nil, dropIns},
		{"nothing ran", false, nil, nil, dropIns + "nodelocaldns.service: active\nnodelocaldns.socket: active\n"},
		{"they ran", false, []string{units.Socket, units.Resolver}, nil, dropIns},
		{"they ran, and the resolver has bound an address", false, []string{units.Socket, units.Resolver}, errBound, dropIns},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var at *node
			setup := func() *hosttest.Node {
				if at != nil {
					_ = os.RemoveAll(at.root)
				}
				if at = newNode(t, ofPackage()); tt.image {
					at.systemd = nil
				}
				at.run(t, tt.ran...)
				if tt.bound != nil {
					at.systemd = &watched{Systemd: at.systemd, fails: tt.bound}
				}
				return at.Node
			}
			hosttest.RunStep(t, setup, func(*hosttest.Node) step.Step { return at.step(t, configured("b", "2")) }, strings.TrimSuffix(tt.want, "\n"))
		})
	}
}

// The configuration changes, and is the default again: what runs is as the files
// say, and nothing is left of what they do not, also where the first try was cut off
// anywhere.
func TestDropInsFollowTheConfiguration(t *testing.T) {
	begin := func() *node {
		n := newNode(t, ofPackage())
		n.run(t, units.Socket, units.Resolver, units.Relay)
		return n
	}
	// The relay may go with old sockets, and comes with the next query.
	state := func(n *node) string {
		return strings.Replace(strings.ReplaceAll(n.String(), n.root, ""), units.Relay+": active\n", "", 1)
	}
	before := state(begin())
	changes := []struct{ listen, memory, want string }{
		{"b", "1", "pending: nodelocaldns.socket: not as the configuration has it; the sockets are made anew, for other addresses: for up to a tenth of a second queries may be lost\n" +
			"+ nodelocaldns.socket.d/05-nodelocaldns.conf: # For what the configuration says; nodelocaldns apply keeps it so.\n" +
			"+ nodelocaldns.socket.d/05-nodelocaldns.conf: [Socket]\n" +
			"+ nodelocaldns.socket.d/05-nodelocaldns.conf: ListenStream=\n" +
			"+ nodelocaldns.socket.d/05-nodelocaldns.conf: ListenStream=b\n" +
			"+ nodelocaldns.service restarted\n" +
			"+ nodelocaldns.socket restarted"},
		{"b", "2", "pending: nodelocaldns.service: not as the configuration has it\n" +
			"+ nodelocaldns.service.d/05-nodelocaldns.conf: # For what the configuration says; nodelocaldns apply keeps it so.\n" +
			"+ nodelocaldns.service.d/05-nodelocaldns.conf: [Service]\n" +
			"+ nodelocaldns.service.d/05-nodelocaldns.conf: MemoryMax=2\n" +
			"+ nodelocaldns.service restarted"},
		{"c", "3", "pending: nodelocaldns.socket, nodelocaldns.service: not as the configuration has it; the sockets are made anew, for other addresses: for up to a tenth of a second queries may be lost\n" +
			"- nodelocaldns.socket.d/05-nodelocaldns.conf: ListenStream=b\n" +
			"+ nodelocaldns.socket.d/05-nodelocaldns.conf: ListenStream=c\n" +
			"- nodelocaldns.service.d/05-nodelocaldns.conf: MemoryMax=2\n" +
			"+ nodelocaldns.service.d/05-nodelocaldns.conf: MemoryMax=3\n" +
			"+ nodelocaldns.service restarted\n" +
			"+ nodelocaldns.socket restarted"},
		{"a", "1", "pending: nodelocaldns.socket, nodelocaldns.service: not as the configuration has it; the sockets are made anew, for other addresses: for up to a tenth of a second queries may be lost\n" +
			"- /etc/systemd/system/nodelocaldns.socket.d/05-nodelocaldns.conf\n" +
			"- /etc/systemd/system/nodelocaldns.service.d/05-nodelocaldns.conf\n" +
			"+ nodelocaldns.service restarted\n" +
			"+ nodelocaldns.socket restarted"},
	}
	for i, c := range changes {
		reach := func() *node { // as far as the configuration before
			n := begin()
			for _, c := range changes[:i] {
				if err := n.apply(t, configured(c.listen, c.memory)); err != nil {
					t.Fatal(err)
				}
			}
			if i%2 == 0 { // else systemd can make the sockets beside the old ones
				n.systemd = &watched{Systemd: n.systemd, fails: errBound}
			}
			return n
		}
		now := configured(c.listen, c.memory)
		ref := reach()
		if diff := cmp.Diff(c.want, ref.check(t, now)); diff != "" {
			t.Errorf("change %d (-want +got):\n%s", i, diff)
		}
		writes := ref.Writes()
		if err := ref.apply(t, now); err != nil {
			t.Fatal(err)
		}
		writes = ref.Writes() - writes
		want := state(ref)
		if strings.Contains(want, "older file") || strings.Contains(want, "has not read") || !strings.Contains(want, "nodelocaldns.service: active\nnodelocaldns.socket: active\n") {
			t.Errorf("change %d left:\n%s", i, want)
		}
		for at := 1; at <= writes; at++ {
			for _, fault := range []hosttest.Fault{hosttest.Fail, hosttest.CutBefore, hosttest.CutAfter} {
				n := reach()
				n.Arm(at, fault)
				func() {
					defer func() {
						if p := recover(); p != nil && p != (hosttest.PowerCut{}) {
							panic(p)
						}
					}()
					if err := n.apply(t, now); err != nil && !errors.Is(err, hosttest.ErrFault) {
						t.Fatal(err)
					}
				}()
				n.Arm(0, 0)
				if err := n.apply(t, now); err != nil {
					t.Fatalf("change %d, fault %d at write %d: %v", i, fault, at, err)
				}
				if diff := cmp.Diff(want, state(n)); diff != "" {
					t.Fatalf("change %d, fault %d at write %d, and once more (-want +got):\n%s", i, fault, at, diff)
				}
				if got := n.check(t, now); !strings.HasPrefix(got, "satisfied: ") {
					t.Errorf("change %d, fault %d at write %d: then %s", i, fault, at, got)
				}
				if err := n.rollback(t); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, state(n)); diff != "" {
					t.Fatalf("change %d, fault %d at write %d, rolled back (-before +after):\n%s", i, fault, at, diff)
				}
				_ = os.RemoveAll(n.root)
			}
		}
	}
}

func TestFindingsAboutDropIns(t *testing.T) {
	for _, tt := range []struct {
		name string
		tree map[string]string
		do   func(t *testing.T, n *node) // after an apply; nil: there is none
		want string
	}{
		{"done", ofPackage(), func(*testing.T, *node) {},
			"satisfied: of a package in /usr/lib/systemd/system, with drop-ins of ours for the configuration; guard, socket and resolver run"},
		{"none is needed where the units are ours", map[string]string{etcUnits: ""}, func(t *testing.T, n *node) {
			if got := n.String(); strings.Contains(got, units.DropInName) {
				t.Errorf("the node:\n%s", got)
			}
		}, "satisfied: installed from this program; guard, socket and resolver run"},
		{"nor where a person has units that say so", ofPackage(etcUnits+units.Socket, "[Socket]\nListenStream=b\n", etcUnits+units.Resolver, "[Service]\nMemoryMax=2\n"),
			func(*testing.T, *node) {}, "satisfied: of a package in /usr/lib/systemd/system; guard, socket and resolver run"},
		{"a drop-in was deleted", ofPackage(), func(t *testing.T, n *node) { n.remove(t, resolverDropIn) },
			"pending: nodelocaldns.service: not as the configuration has it\n" +
				"+ nodelocaldns.service.d/05-nodelocaldns.conf: # For what the configuration says; nodelocaldns apply keeps it so.\n" +
				"+ nodelocaldns.service.d/05-nodelocaldns.conf: [Service]\n" +
				"+ nodelocaldns.service.d/05-nodelocaldns.conf: MemoryMax=2\n" +
				"+ nodelocaldns.service restarted"},
		{"somebody has edited one", ofPackage(), func(t *testing.T, n *node) { n.put(t, resolverDropIn, "# mine") },
			"blocked: /etc/systemd/system/nodelocaldns.service.d/05-nodelocaldns.conf changed since we wrote it\n" +
				"put the edit into a drop-in of another name (systemctl edit nodelocaldns.service) and delete the file; nodelocaldns rollback --keep=unit/nodelocaldns leaves it as it is"},
		{"somebody has one of that name", ofPackage(socketDropIn, "# mine", resolverDropIn, "-> /dev/null"), func(*testing.T, *node) {},
			"satisfied: of a package in /usr/lib/systemd/system; guard, socket and resolver run"},
		{"the package was removed, and ours take its place", ofPackage(), func(t *testing.T, n *node) {
			for _, f := range configured("", "") {
				n.remove(t, usrUnits+f.Name)
				if f.WantedBy != "" {
					n.remove(t, usrUnits+f.WantedBy+".wants/"+f.Name)
				}
			}
			if err := n.apply(t, configured("b", "2")); err != nil {
				t.Fatal(err)
			}
			if got := n.String(); strings.Contains(got, units.DropInName) {
				t.Errorf("the node:\n%s", got)
			}
		}, "satisfied: installed from this program; guard, socket and resolver run"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.tree)
			if err := n.apply(t, configured("b", "2")); err != nil {
				t.Fatal(err)
			}
			tt.do(t, n)
			if diff := cmp.Diff(tt.want, n.check(t, configured("b", "2"))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Also where the units are ours, and say it themselves.
func TestTheSocketsAreMadeAnewForOtherAddressesAlone(t *testing.T) {
	for _, tt := range []struct {
		listen string
		fails  error    // the restart of the socket
		want   []string // jobs of the socket
	}{
		{"b", nil, nil},
		{"c", nil, []string{"restart"}},
		{"c", errBound, []string{"restart", "stop", "start"}},
	} {
		n := newNode(t, nil)
		if err := n.apply(t, configured("b", "1")); err != nil {
			t.Fatal(err)
		}
		n.run(t, units.Relay)
		w := &watched{Systemd: n.systemd, fails: tt.fails}
		n.systemd = w
		if err := n.apply(t, configured(tt.listen, "2")); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(w.jobs, tt.want) {
			t.Errorf("for %s, %v: %s, want %s", tt.listen, tt.fails, w.jobs, tt.want)
		}
		if got := n.String(); strings.Contains(got, "older file") || !strings.Contains(got, "nodelocaldns.service: active\nnodelocaldns.socket: active\n") {
			t.Errorf("for %s, %v it left:\n%s", tt.listen, tt.fails, got)
		}
	}
}

var errBound = errors.New("address already in use")

// watched is a systemd of which the jobs of the socket are written down.
type watched struct {
	unit.Systemd
	fails error // the restart of the socket
	jobs  []string
}

func (w *watched) note(job, name string) {
	if name == units.Socket {
		w.jobs = append(w.jobs, job)
	}
}

func (w *watched) Start(ctx context.Context, name string) error {
	w.note("start", name)
	return w.Systemd.Start(ctx, name)
}

func (w *watched) Restart(ctx context.Context, name string) error {
	w.note("restart", name)
	if name == units.Socket && w.fails != nil {
		return w.fails
	}
	return w.Systemd.Restart(ctx, name)
}

func (w *watched) Stop(ctx context.Context, name string) error {
	w.note("stop", name)
	return w.Systemd.Stop(ctx, name)
}
