package host_test

import (
	"encoding/binary"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"

	"nodelocaldns/test/netns"
)

// A pod asks through a firewall that lets only tracked packets pass: with our
// rules it is answered and nothing is tracked; without them it is not answered.
func TestKernelAPodIsAnsweredUntrackedThroughAStrictFirewall(t *testing.T) {
	backends(t, func(t *testing.T, k *kernel) {
		if _, err := exec.LookPath("dig"); err != nil {
			netns.Skip(t, "needs dig")
		}
		if _, err := exec.LookPath("conntrack"); err != nil {
			netns.Skip(t, "needs conntrack")
		}
		before := dump(t)
		for _, cmd := range []string{
			"ip netns add pod",
			"ip link add pod0 type veth peer name eth0 netns pod",
			"ip addr add 10.0.0.1/24 dev pod0", "ip link set pod0 up",
			"ip -n pod addr add 10.0.0.2/24 dev eth0", "ip -n pod link set eth0 up", "ip -n pod link set lo up",
			"ip -n pod route add default via 10.0.0.1",
		} {
			args := strings.Fields(cmd)
			netns.Run(t, args[0], args[1:]...)
		}
		ipt := "iptables-" + string(k.cfg.Backend)
		firewall := []string{
			"INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "INPUT -j DROP",
			"OUTPUT -m conntrack --ctstate NEW,ESTABLISHED,RELATED -j ACCEPT", "OUTPUT -j DROP",
		}
		for _, rule := range firewall {
			netns.Run(t, ipt, append([]string{"-A"}, strings.Fields(rule)...)...)
		}
		defer func() {
			for _, rule := range firewall {
				netns.Run(t, ipt, append([]string{"-D"}, strings.Fields(rule)...)...)
			}
			netns.Run(t, "ip", "link", "del", "pod0")
			netns.Run(t, "ip", "netns", "del", "pod")
			k.rollback()
			k.mustBe("after rollback", before)
		}()
		k.apply()
		answer(t, "169.254.20.10:53")

		ask := func(how string) (string, error) {
			out, err := exec.Command("ip", "netns", "exec", "pod", "dig", how, "+noedns", "+tries=1", "+time=1", "+retry=0", "@169.254.20.10", "example.test").CombinedOutput()
			return string(out), err
		}
		for _, how := range []string{"+notcp", "+tcp"} {
			if out, err := ask(how); err != nil || !strings.Contains(out, "status: NOERROR") {
				t.Fatalf("dig %s: %v\n%s", how, err, out)
			}
		}
		if out := netns.Run(t, "conntrack", "-L"); strings.Contains(out, "169.254.20.10") {
			t.Errorf("tracked:\n%s", out)
		}

		// Without the rules of one table the test would see it.
		netns.Run(t, ipt, "-t", "filter", "-F", "NODELOCALDNS")
		if out, err := ask("+notcp"); err == nil {
			t.Errorf("answered without our ACCEPT rules:\n%s", out)
		}
		netns.Run(t, ipt, "-t", "raw", "-F", "NODELOCALDNS")
		netns.Run(t, ipt, "-I", "INPUT", "-j", "ACCEPT")
		if out, err := ask("+notcp"); err != nil {
			t.Errorf("dig: %v\n%s", err, out)
		}
		if out := netns.Run(t, "conntrack", "-L"); !strings.Contains(out, "169.254.20.10") {
			t.Error("nothing is tracked without our NOTRACK rules either")
		}
		netns.Run(t, ipt, "-D", "INPUT", "-j", "ACCEPT")
		netns.Run(t, "conntrack", "-F")
	})
}

// answer serves DNS until the test ends: every query comes back as its own
// reply, without an answer.
func answer(t *testing.T, at string) {
	t.Helper()
	udp, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		udp.Close()
		tcp.Close()
	})
	reply := func(q []byte) []byte {
		if len(q) > 2 {
			q[2] |= 0x80 // QR
		}
		return q
	}
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(reply(buf[:n]), from)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			var size uint16
			if binary.Read(c, binary.BigEndian, &size) == nil {
				q := make([]byte, size)
				if _, err := io.ReadFull(c, q); err == nil {
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, size), reply(q)...))
				}
			}
			c.Close()
		}
	}()
}
