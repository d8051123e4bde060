package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"nodelocaldns/dnscache/upstream"
)

// text is n's text if n is a scalar with one of tags ("!!str", "!!int", …).
func text(n *yaml.Node, tags ...string) (string, bool) {
	if n.Kind != yaml.ScalarNode || !slices.Contains(tags, n.ShortTag()) {
		return "", false
	}
	return n.Value, true
}

// scalar reads a scalar with one of tags by parse; a value that parse refuses
// is reported with allowed, and with parse's reason if it has one to add.
func scalar[T any](dst *T, allowed string, parse func(string) (T, error), tags ...string) func(*reader, string, *yaml.Node) {
	return func(r *reader, path string, n *yaml.Node) {
		s, ok := text(n, tags...)
		if !ok {
			r.wrong(n, path, allowed)
			return
		}
		v, err := parse(s)
		if err != nil {
			r.wrong(n, path, because(allowed, err))
			return
		}
		*dst = v
	}
}

// because adds err to what is allowed, unless err is errPlain.
func because(allowed string, err error) string {
	if errors.Is(err, errPlain) {
		return allowed
	}
	return fmt.Sprintf("%s (%v)", allowed, err)
}

// errPlain refuses a value for no reason but that it is not among the allowed.
var errPlain = errors.New("not allowed")

var decimal = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)

// whole reads a whole decimal number from least to most. Octal, hexadecimal
// and underscored numbers are refused: they are read differently by different
// programs.
func whole[T ~int | ~uint16 | ~uint64](dst *T, least, most T) func(*reader, string, *yaml.Node) {
	return scalar(dst, fmt.Sprintf("a whole number from %d to %d", least, most), func(s string) (T, error) {
		v, err := strconv.ParseUint(s, 10, 64)
		if !decimal.MatchString(s) || err != nil || v < uint64(least) || v > uint64(most) {
			return 0, errPlain
		}
		return T(v), nil
	}, "!!int", "!!float") // a number too large for an integer is a float to YAML
}

// oneOf reads one of words.
func oneOf[T ~string](dst *T, words ...T) func(*reader, string, *yaml.Node) {
	ss := make([]string, len(words))
	for i, w := range words {
		ss[i] = string(w)
	}
	return scalar(dst, strings.Join(ss, ", "), func(s string) (T, error) {
		if !slices.Contains(words, T(s)) {
			return "", errPlain
		}
		return T(s), nil
	}, "!!str")
}

// word reads one of the keys of words, which allowed lists.
func word[T any](dst *T, allowed string, words map[string]T) func(*reader, string, *yaml.Node) {
	return scalar(dst, allowed, func(s string) (T, error) {
		v, ok := words[s]
		if !ok {
			return v, errPlain
		}
		return v, nil
	}, "!!str")
}

func boolean(dst *bool) func(*reader, string, *yaml.Node) {
	return scalar(dst, "true or false", func(s string) (bool, error) {
		return strings.EqualFold(s, "true"), nil
	}, "!!bool")
}

// MaxTTL is where RFC 8767 section 4 would cap any TTL.
const MaxTTL = 7 * 24 * time.Hour

// ttl reads a duration from least to most. DNS counts in whole seconds, so a
// fraction would be cut off without a word: it is refused instead.
func ttl(dst *time.Duration, least, most time.Duration) func(*reader, string, *yaml.Node) {
	allowed := fmt.Sprintf("a duration of whole seconds such as 30s, from %s to %s", terse(least), terse(most))
	return scalar(dst, allowed, func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil || d < least || d > most || d%time.Second != 0 {
			return 0, errPlain
		}
		return d, nil
	}, "!!str", "!!int")
}

// terse is d without units of which there are none: 168h, not 168h0m0s.
func terse(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// span reads a duration from least to most.
func span(dst *time.Duration, example string, least, most time.Duration) func(*reader, string, *yaml.Node) {
	return scalar(dst, fmt.Sprintf("a duration such as %s, from %s to %s", example, least, most), func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil || d < least || d > most {
			return 0, errPlain
		}
		return d, nil
	}, "!!str")
}

// percent reads a whole number of hundredths, up to most.
func percent(dst *int, most int) func(*reader, string, *yaml.Node) {
	return scalar(dst, fmt.Sprintf("a share such as 10%%, from 0%% to %d%%", most), func(s string) (int, error) {
		digits, ok := strings.CutSuffix(s, "%")
		v, err := strconv.Atoi(digits)
		if !ok || !decimal.MatchString(digits) || err != nil || v > most {
			return 0, errPlain
		}
		return v, nil
	}, "!!str")
}

var units = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// size reads a number of bytes with an IEC unit, from least to most.
func size(dst *int64, least, most int64) func(*reader, string, *yaml.Node) {
	allowed := fmt.Sprintf("a size such as 32MiB, from %s to %s, in KiB, MiB or GiB", formatSize(least), formatSize(most))
	return scalar(dst, allowed, func(s string) (int64, error) {
		for _, u := range units {
			digits, ok := strings.CutSuffix(s, u.name)
			if !ok {
				continue
			}
			v, err := strconv.ParseInt(digits, 10, 64)
			if !decimal.MatchString(digits) || err != nil || v > math.MaxInt64/u.bytes || v*u.bytes < least || v*u.bytes > most {
				return 0, errPlain
			}
			return v * u.bytes, nil
		}
		return 0, errPlain
	}, "!!str", "!!int")
}

// formatSize is what size reads as n, a multiple of 1 KiB.
func formatSize(n int64) string {
	for _, u := range units {
		if n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%dKiB", n>>10)
}

// list reads the items of the list n by item. what is the list in words.
func (r *reader) list(path string, n *yaml.Node, what string, item func(path string, n *yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		r.wrong(n, path, what)
		return
	}
	for i, c := range n.Content {
		item(fmt.Sprintf("%s[%d]", path, i), c)
	}
}

// unicast says why a cannot be an address that is asked or answered at.
func unicast(a netip.Addr) error {
	switch {
	case a.Is4In6():
		return fmt.Errorf("write %s", a.Unmap())
	case a.IsUnspecified():
		return errors.New("not the wildcard")
	case a.IsMulticast():
		return errors.New("not a multicast address")
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("not the broadcast address")
	}
	return nil
}

// ParseListenAddr reads an address that may be one of listen.addresses.
func ParseListenAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, errPlain
	}
	if err := unicast(a); err != nil {
		return a, err
	}
	if a.Is6() && a.IsLinkLocalUnicast() {
		// fe80::/10 means nothing without an interface, and a pod's
		// resolv.conf cannot name the node's.
		return a, errors.New("not one of fe80::/10, take a unique local one")
	}
	if a.Zone() != "" {
		return a, fmt.Errorf("without %%%s", a.Zone())
	}
	return a, nil
}

// The ports of DNS, and of DNS over TLS (RFC 7858 section 3.1).
const (
	dnsPort = 53
	tlsPort = 853
)

// overTLS is in front of the address of a server that is asked over TLS.
const overTLS = "tls://"

// plainServer reads addr or addr:port; the port is 53 if there is none.
func plainServer(s string) (upstream.Addr, error) {
	if strings.Contains(s, "://") {
		return upstream.Addr{}, errors.New("kube-dns is asked without TLS")
	}
	return ParseServer(s)
}

// ParseServer reads a server that may be asked: addr or addr:port, whose port is 53
// if there is none, and tls://addr#name or tls://addr:port#name, whose port is 853.
func ParseServer(s string) (upstream.Addr, error) {
	if scheme, _, ok := strings.Cut(s, "://"); ok && scheme+"://" != overTLS {
		return upstream.Addr{}, fmt.Errorf("%s:// is not known", clip(scheme))
	}
	rest, ok := strings.CutPrefix(s, overTLS)
	if !ok {
		ap, err := serverAddr(s, dnsPort)
		return upstream.Addr{AddrPort: ap}, err
	}
	at, name, ok := strings.Cut(rest, "#")
	if !ok || name == "" {
		return upstream.Addr{}, errors.New("what its certificate is for is missing, as in tls://192.0.2.1#dns.example")
	}
	ap, err := serverAddr(at, tlsPort)
	if errors.Is(err, errPlain) {
		err = errors.New("an address is missing in front of the #")
	}
	if a, errAddr := netip.ParseAddr(name); errAddr == nil {
		name = a.String()
	} else if domainName, errName := ParseDomain(name); errName == nil {
		name = domainName
	} else if err == nil {
		err = errors.New("what is behind the # is no name that a certificate could be for")
	}
	return upstream.Addr{AddrPort: ap, TLSName: name}, err
}

// serverAddr reads addr or addr:port; port stands for none.
func serverAddr(s string, port uint16) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return ap, errPlain
		}
		ap = netip.AddrPortFrom(a, port)
	}
	a := ap.Addr()
	if ap.Port() == 0 {
		return ap, errors.New("not port 0")
	}
	if err := unicast(a); err != nil {
		return ap, err
	}
	switch scoped := a.Is6() && a.IsLinkLocalUnicast(); {
	case scoped && a.Zone() == "":
		return ap, fmt.Errorf("fe80::/10 needs an interface, as in fe80::1%%eth0")
	case !scoped && a.Zone() != "":
		return ap, fmt.Errorf("without %%%s", a.Zone())
	}
	return ap, nil
}

// formatPlain is what plainServer reads as ap.
func formatPlain(ap netip.AddrPort) string { return withoutPort(ap, dnsPort) }

// formatServer is what ParseServer reads as a.
func formatServer(a upstream.Addr) string {
	if a.TLSName == "" {
		return formatPlain(a.AddrPort)
	}
	return overTLS + withoutPort(a.AddrPort, tlsPort) + "#" + a.TLSName
}

// withoutPort is ap, which may go without port.
func withoutPort(ap netip.AddrPort, port uint16) string {
	if ap.Port() == port {
		return ap.Addr().String()
	}
	return ap.String()
}

// endpoint reads where something is served over HTTP.
func endpoint(dst *Endpoint) func(*reader, string, *yaml.Node) {
	return scalar(dst, `address:port, ":port" for every address, or "" for nowhere`, ParseEndpoint, "!!str")
}

// ParseEndpoint reads addr:port, :port, or nothing, which is nowhere.
func ParseEndpoint(s string) (Endpoint, error) {
	if s == "" {
		return Endpoint{}, nil
	}
	if port, ok := strings.CutPrefix(s, ":"); ok {
		v, err := strconv.ParseUint(port, 10, 16)
		if !decimal.MatchString(port) || err != nil || v == 0 {
			return Endpoint{}, errPlain
		}
		return Endpoint{Port: uint16(v)}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	switch {
	case err != nil || ap.Port() == 0:
		return Endpoint{}, errPlain
	case ap.Addr().Is4In6():
		return Endpoint{}, fmt.Errorf("write %s", ap.Addr().Unmap())
	case ap.Addr().Zone() != "":
		return Endpoint{}, fmt.Errorf("without %%%s", ap.Addr().Zone())
	}
	return Endpoint{Addr: ap.Addr(), Port: ap.Port()}, nil
}

var label = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?$`)

// ParseDomain reads a domain name below the root, folds its case and drops a
// trailing dot.
func ParseDomain(s string) (string, error) {
	s = strings.TrimSuffix(strings.ToLower(s), ".")
	// 253 bytes of text are the 255 of RFC 1035 section 2.3.4 on the wire.
	if s == "" || len(s) > 253 {
		return "", errPlain
	}
	for l := range strings.SplitSeq(s, ".") {
		if len(l) > 63 || !label.MatchString(l) {
			return "", errPlain
		}
	}
	return s, nil
}

// wordAuto stands for an empty name, which the node is asked for.
const wordAuto = "auto"

var serviceName = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]+\.service$`)

// service reads the name of a unit that runs something.
func service(s string) (string, error) {
	switch {
	case s == wordAuto:
		return "", nil
	// UNIT_NAME_MAX of systemd is 256 with the final zero byte.
	case len(s) > 255 || !serviceName.MatchString(s):
		return "", errPlain
	}
	return s, nil
}

// absolute reads the name of a file; none stands for "".
func absolute(none string) func(string) (string, error) {
	return func(s string) (string, error) {
		if s == none {
			return "", nil
		}
		return absolutePath(s)
	}
}

func absolutePath(s string) (string, error) {
	switch {
	case !path.IsAbs(s) || strings.ContainsRune(s, 0):
		return "", errPlain
	}
	return path.Clean(s), nil
}

var deviceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// device reads a name for a network device of ours.
func device(s string) (string, error) {
	switch {
	// IFNAMSIZ is 16 with the final zero byte.
	case len(s) > 15 || !deviceName.MatchString(s):
		return "", errPlain
	case s == "nodelocaldns":
		return "", errors.New("not nodelocaldns: the node-local-dns DaemonSet deletes that one when it exits")
	case s == "lo":
		return "", errors.New("not lo: linkType: lo puts the addresses there")
	}
	return s, nil
}
