package canary

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"nodelocaldns/host/notrack"
	"nodelocaldns/host/step"
)

// A Cause is what failures most likely come from.
type Cause string

// The causes.
const (
	NoCause  Cause = ""
	Resolver Cause = "resolver" // it does not answer, on the node itself either
	Upstream Cause = "upstream" // it answers, with an error where kube-dns has an answer
	Route    Cause = "route"    // pods have no way to the address
	Size     Cause = "size"     // big replies do not arrive
	Policy   Cause = "policy"   // a network policy
	Firewall Cause = "firewall" // the firewall of the node
	CNI      Cause = "cni"      // the network of the pods does not lead to the node
	Unclear  Cause = "unclear"  // one of the last two
	TimeUp   Cause = "time"     // there was no time left
)

// A Reason is a cause, in words, and what to do about it.
type Reason struct {
	Cause      Cause
	Text, Hint string
}

// Err is nil if pods will be no worse off, and otherwise an error that says how
// many are, most likely why, and has a hint.
func (r Report) Err() error {
	if r.OK() {
		return nil
	}
	return &step.Error{Err: fmt.Errorf("%s: %s", r.extent(), r.Reason.Text), Next: r.Reason.Hint}
}

func (r Report) extent() string {
	switch {
	case r.Asked == 0 && r.Late == 0:
		return "no pod was asked"
	case r.Failed == 0:
		return fmt.Sprintf("%d of %d pods were not asked", r.Late, r.Asked+r.Late)
	}
	return fmt.Sprintf("%d of %d pods would be worse off", r.Failed, r.Asked)
}

// why decides what the failures of r come from. It goes from what the failures
// themselves say to what they leave open: who has them, and how far the packets
// came.
func why(r Report, packets seen) Reason {
	if len(r.Failures) == 0 {
		if r.Late == 0 {
			return Reason{}
		}
		return Reason{TimeUp, "there was no time left", "is the node very busy? Run it again; nodelocaldns status shows how long upstreams take"}
	}
	first := r.Failures[0]
	server := first.Server.Addr()
	onNode := first.Pod.UID == ""
	only := func(is func(Failure) bool) bool {
		return !slices.ContainsFunc(r.Failures, func(f Failure) bool { return !is(f) })
	}
	what := func(w What) func(Failure) bool { return func(f Failure) bool { return f.What == w } }
	proto := func(p string) func(Failure) bool { return func(f Failure) bool { return f.Proto == p } }
	switch {
	case only(what(Bad)):
		return Reason{Upstream, fmt.Sprintf("%s replies with an error where kube-dns has an answer", first.Server), "nodelocaldns status shows whom it asks and who is down; is cluster.dns right?"}
	case onNode && only(what(Refused)):
		return Reason{Resolver, fmt.Sprintf("nobody listens at %s", first.Server), "start the resolver; nodelocaldns status says whether it runs"}
	case onNode:
		return Reason{Resolver, fmt.Sprintf("%s does not answer on the node itself", first.Server), "nodelocaldns status says whether the resolver runs and what is wrong with the address; a firewall of the node may also drop packets of the loopback device"}
	case only(what(Unreachable)):
		return Reason{Route, fmt.Sprintf("pods have no way to %s", server), fmt.Sprintf("does ip route get %s in a pod lead to the node? Their default route must, and nothing on the way may reject port 53", server)}
	case only(func(f Failure) bool { return f.Kind == BigReply }):
		return Reason{Size, fmt.Sprintf("small replies arrive, those over %d bytes do not", Big), "are the MTU of the pods and of the node's side of their link the same? Something that drops large packets or TCP there does this too"}
	}
	part := ""
	switch {
	case only(proto("udp")):
		part = " over UDP"
	case only(proto("tcp")):
		part = " over TCP"
	}
	allow := fmt.Sprintf("allow UDP and TCP port 53 to ipBlock %s", netip.PrefixFrom(server, server.BitLen()))
	var silent notrack.Packets // each question is one at least
	for _, f := range r.Failures {
		switch {
		case f.What != Silent:
		case f.Proto == "udp":
			silent.UDP++
		default:
			silent.TCP++
		}
	}
	switch {
	case r.Failed < r.Asked:
		return Reason{Policy, fmt.Sprintf("%s does not answer some pods%s, others it does: a network policy, most likely", server, part), fmt.Sprintf("%s in the egress rules of network policies in %s", allow, namespaces(r.Failures))}
	case silent == notrack.Packets{}:
		return Reason{Firewall, fmt.Sprintf("a firewall on the node rejects what pods ask %s%s", server, part), fmt.Sprintf("let it accept UDP and TCP port 53 to %s", server)}
	case packets.known && packets.packets.UDP >= silent.UDP && packets.packets.TCP >= silent.TCP:
		return Reason{Firewall, fmt.Sprintf("what pods ask %s%s reaches the node and is dropped there: a firewall that drops packets which conntrack does not track, most likely", server, part), fmt.Sprintf("let it accept UDP and TCP port 53 to %s before it drops what is untracked or invalid; or notrack.enabled: false. A network policy for all pods does this too: %s", server, allow)}
	case packets.known:
		return Reason{CNI, fmt.Sprintf("what pods ask %s%s does not reach the node's network stack: a CNI that bypasses it, or a network policy for all pods", server, part), fmt.Sprintf("%s; with Cilium, allow egress toEntities host, or use a CiliumLocalRedirectPolicy", allow)}
	}
	return Reason{Unclear, fmt.Sprintf("%s answers on the node and not in pods%s: a firewall of the node, a network policy for all pods, or a CNI that bypasses the node's network stack", server, part), fmt.Sprintf("let the firewall accept UDP and TCP port 53 to %s; %s", server, allow)}
}

// namespaces are those of the pods that failed.
func namespaces(all []Failure) string {
	var out []string
	for _, f := range all {
		if n := f.Pod.Namespace; n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		return "their namespaces"
	}
	slices.Sort(out)
	if len(out) > 3 {
		return fmt.Sprintf("%s and %d more namespaces", strings.Join(out[:3], ", "), len(out)-3)
	}
	return strings.Join(out, ", ")
}
