package canary

import (
	"fmt"
	"net/netip"
	"testing"

	"nodelocaldns/host/notrack"
	"nodelocaldns/host/pods"
)

func TestTheLikelyReasonFollowsFromWhatFailedWhereAndHowFarItCame(t *testing.T) {
	server := netip.MustParseAddrPort("169.254.20.10:53")
	// Failures of pods 1 to n, or of the node for 0, over the given protocols.
	fail := func(n int, kind Kind, what What, protos ...string) []Failure {
		var all []Failure
		for i := range max(1, n) {
			p := pods.Pod{Namespace: fmt.Sprintf("ns%d", i%5), Name: "x", UID: fmt.Sprint(i)}
			if n == 0 {
				p = pods.Pod{}
			}
			for _, proto := range protos {
				all = append(all, Failure{Pod: p, Server: server, Kind: kind, Proto: proto, What: what})
			}
		}
		return all
	}
	both := []string{"udp", "tcp"}
	counted := func(udp, tcp uint64) seen { return seen{notrack.Packets{UDP: udp, TCP: tcp}, true} }
	for _, tt := range []struct {
		name     string
		asked    int
		failed   int
		late     int
		failures []Failure
		seen     seen
		want     Cause
		hint     string
	}{
		{name: "all answered", asked: 3, want: NoCause},
		{name: "no time", asked: 3, late: 1, want: TimeUp, hint: "is the node very busy? Run it again; nodelocaldns status shows how long upstreams take"},
		{name: "the node refuses", failures: fail(0, Cluster, Refused, both...), want: Resolver, hint: "start the resolver; nodelocaldns status says whether it runs"},
		{name: "the node is silent", failures: fail(0, Cluster, Silent, "tcp"), want: Resolver, hint: "nodelocaldns status says whether the resolver runs and what is wrong with the address; a firewall of the node may also drop packets of the loopback device"},
		{name: "the node fails", failures: fail(0, Cluster, Bad, both...), want: Upstream, hint: "nodelocaldns status shows whom it asks and who is down; is cluster.dns right?"},
		{name: "pods get errors", asked: 2, failed: 1, failures: fail(1, External, Bad, "udp"), want: Upstream, hint: "nodelocaldns status shows whom it asks and who is down; is cluster.dns right?"},
		{name: "no way, for one", asked: 2, failed: 1, failures: fail(1, Cluster, Unreachable, both...), want: Route, hint: "does ip route get 169.254.20.10 in a pod lead to the node? Their default route must, and nothing on the way may reject port 53"},
		{name: "big ones alone", asked: 2, failed: 2, failures: fail(2, BigReply, Silent, both...), want: Size, hint: "are the MTU of the pods and of the node's side of their link the same? Something that drops large packets or TCP there does this too"},
		{name: "some silent", asked: 3, failed: 2, failures: fail(2, Cluster, Silent, both...), seen: counted(9, 9), want: Policy, hint: "allow UDP and TCP port 53 to ipBlock 169.254.20.10/32 in the egress rules of network policies in ns0, ns1"},
		{name: "many namespaces", asked: 9, failed: 5, failures: fail(5, Cluster, Silent, "tcp"), want: Policy, hint: "allow UDP and TCP port 53 to ipBlock 169.254.20.10/32 in the egress rules of network policies in ns0, ns1, ns2 and 2 more namespaces"},
		{name: "all refused", asked: 2, failed: 2, failures: fail(2, Cluster, Refused, both...), seen: counted(9, 9), want: Firewall, hint: "let it accept UDP and TCP port 53 to 169.254.20.10"},
		{name: "all silent, and counted", asked: 2, failed: 2, failures: fail(2, Cluster, Silent, both...), seen: counted(2, 2), want: Firewall, hint: "let it accept UDP and TCP port 53 to 169.254.20.10 before it drops what is untracked or invalid; or notrack.enabled: false. A network policy for all pods does this too: allow UDP and TCP port 53 to ipBlock 169.254.20.10/32"},
		{name: "all silent, and not counted", asked: 2, failed: 2, failures: fail(2, Cluster, Silent, both...), seen: counted(2, 1), want: CNI, hint: "allow UDP and TCP port 53 to ipBlock 169.254.20.10/32; with Cilium, allow egress toEntities host, or use a CiliumLocalRedirectPolicy"},
		{name: "all silent over one", asked: 2, failed: 2, failures: fail(2, Cluster, Silent, "udp"), seen: counted(2, 0), want: Firewall, hint: "let it accept UDP and TCP port 53 to 169.254.20.10 before it drops what is untracked or invalid; or notrack.enabled: false. A network policy for all pods does this too: allow UDP and TCP port 53 to ipBlock 169.254.20.10/32"},
		{name: "all silent, nothing counts", asked: 2, failed: 2, failures: fail(2, Cluster, Silent, both...), want: Unclear, hint: "let the firewall accept UDP and TCP port 53 to 169.254.20.10; allow UDP and TCP port 53 to ipBlock 169.254.20.10/32"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := Report{Asked: tt.asked, Failed: tt.failed, Late: tt.late, Failures: tt.failures}
			got := why(r, tt.seen)
			if got.Cause != tt.want || got.Hint != tt.hint || (got.Text == "") != (tt.want == NoCause) {
				t.Errorf("got %+v\nwant %s, hint %s", got, tt.want, tt.hint)
			}
		})
	}
}
