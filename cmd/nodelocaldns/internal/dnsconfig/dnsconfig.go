// Package dnsconfig makes what a cluster is told of pods that ask us by choice:
// the part of a pod's specification that names us, and an admission policy that
// writes it into the pods of the namespaces that want it. It reads nothing of
// the node and asks nobody.
package dnsconfig

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// The bounds of what pods may be given: by the API server's validation (of
// Kubernetes 1.26 and newer, which refuses the pod), and by resolv.conf(5), where
// glibc takes more for the most.
const (
	MaxServers     = 3
	maxSearches    = 32
	maxSearchChars = 2048 // of all, and the blanks between

	maxNdots    = 15
	maxTimeout  = 30
	maxAttempts = 5
)

// Options are those of a pod's resolv.conf.
type Options struct {
	Ndots               int // names with fewer dots are tried with the searches first; 0 to 15
	Timeout             int // how long a server is waited for, in seconds; 1 to 30
	Attempts            int // how often all are asked; 1 to 5
	SingleRequestReopen bool
	UseVC               bool // ask over TCP
}

// A Config is whom pods ask, and how.
type Config struct {
	Ours    []netip.Addr // asked first; at least one
	KubeDNS []netip.Addr // asked where we do not answer; at least one
	Domain  string       // of the cluster, without a trailing dot
	Search  []string     // what is tried after the cluster's own
	Options Options
}

// A Problem is a value that pods cannot be given.
type Problem struct {
	Name string // of the value: "ndots"
	Text string // what is wrong, going on from it: "is 16, which is above 15"
}

func (p *Problem) Error() string { return p.Name + " " + p.Text }

// Validate says what is wrong with c for a pod in the namespace, which is empty
// where that is not known; a *Problem or nil.
func (c Config) Validate(namespace string) error {
	problem := func(name, format string, args ...any) error {
		return &Problem{name, fmt.Sprintf(format, args...)}
	}
	for _, o := range []struct {
		name             string
		is, least, above int
	}{
		{"ndots", c.Options.Ndots, 0, maxNdots},
		{"timeout", c.Options.Timeout, 1, maxTimeout},
		{"attempts", c.Options.Attempts, 1, maxAttempts},
	} {
		if o.is < o.least || o.is > o.above {
			return problem(o.name, "is %d, and must be from %d to %d", o.is, o.least, o.above)
		}
	}
	if n := len(c.Ours) + len(c.KubeDNS); n > MaxServers {
		return problem("kube-dns", "makes %d nameservers of a pod, which has %d at most, %d of them ours", n, MaxServers, len(c.Ours))
	}
	for i, a := range c.KubeDNS {
		switch {
		case a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast():
			return problem("kube-dns", "is %s, which pods cannot ask", a)
		case slices.Contains(c.Ours, a):
			return problem("kube-dns", "is %s, which is an address of ours: without us nobody would answer", a)
		case slices.Contains(c.KubeDNS[:i], a):
			return problem("kube-dns", "is %s twice", a)
		}
	}
	if !isDomain(c.Domain) {
		return problem("cluster-domain", "is %q, which is no domain name in lower case", c.Domain)
	}
	if namespace != "" && !isLabel(namespace) {
		return problem("namespace", "is %q, which is no name of a namespace", namespace)
	}
	for _, s := range c.Search {
		if !isDomain(s) {
			return problem("search", "is %q, which is no domain name in lower case", s)
		}
	}
	if namespace == "" {
		namespace = strings.Repeat("x", validation.DNS1123LabelMaxLength)
	}
	searches := c.searches(namespace)
	if n := len(searches); n > maxSearches {
		return problem("search", "makes a search path of %d names, and pods have %d at most", n, maxSearches)
	}
	if n := len(strings.Join(searches, " ")); n > maxSearchChars {
		return problem("search", "makes a search path of %d bytes, and pods have %d at most", n, maxSearchChars)
	}
	return nil
}

// isDomain says whether the API server takes s as a part of a search path in
// every version, and a resolver in a name: before 1.34 it takes no underscores,
// and it does not count the bytes of a label.
func isDomain(s string) bool {
	return len(s) <= validation.DNS1123SubdomainMaxLength && !slices.ContainsFunc(strings.Split(s, "."), func(l string) bool { return !isLabel(l) })
}

func isLabel(s string) bool { return len(validation.IsDNS1123Label(s)) == 0 }

// A Spec is the part of a pod's specification that is about DNS.
type Spec struct {
	DNSPolicy string    `json:"dnsPolicy" yaml:"dnsPolicy"`
	DNSConfig DNSConfig `json:"dnsConfig" yaml:"dnsConfig"`
}

// DNSConfig is v1 PodDNSConfig.
type DNSConfig struct {
	Nameservers []netip.Addr `json:"nameservers" yaml:"nameservers"`
	Searches    []string     `json:"searches" yaml:"searches"`
	Options     []Option     `json:"options" yaml:"options"`
}

// An Option is v1 PodDNSConfigOption.
type Option struct {
	Name  string `json:"name" yaml:"name"`
	Value string `json:"value,omitempty" yaml:"value,omitempty"`
}

// Spec is that of a pod in a namespace. c must be valid.
//
// Its policy is None: with any other the kubelet puts its own servers before
// those of the pod.
func (c Config) Spec(namespace string) Spec {
	return Spec{"None", DNSConfig{c.servers(), c.searches(namespace), c.options()}}
}

func (c Config) servers() []netip.Addr { return slices.Concat(c.Ours, c.KubeDNS) }

// searches are those that the kubelet gives a pod of the cluster, and ours.
func (c Config) searches(namespace string) []string {
	return append([]string{namespace + ".svc." + c.Domain, "svc." + c.Domain, c.Domain}, c.Search...)
}

func (c Config) options() []Option {
	all := []Option{
		{"ndots", strconv.Itoa(c.Options.Ndots)},
		{"timeout", strconv.Itoa(c.Options.Timeout)},
		{"attempts", strconv.Itoa(c.Options.Attempts)},
	}
	if c.Options.SingleRequestReopen {
		all = append(all, Option{Name: "single-request-reopen"})
	}
	if c.Options.UseVC {
		all = append(all, Option{Name: "use-vc"})
	}
	return all
}
