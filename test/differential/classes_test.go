package differential

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// A clash is one aspect in which our reply to a question and somebody else's
// differ.
type clash struct {
	peer string
	question
	up           said // what there was to be known
	ours, theirs seen
	aspect       aspect
}

// kind is how upstream answers the name; empty for names of kube-dns.
func (c clash) kind() string { return ask(c.message(), false).kind }

// of reports whether the aspect is one of some.
func (c clash) of(some ...aspect) bool { return slices.Contains(some, c.aspect) }

// like reports whether upstream answers in one of some ways.
func (c clash) like(kinds ...string) bool { return slices.Contains(kinds, c.kind()) }

// rcodes reports whether these are our response code and theirs.
func (c clash) rcodes(ours, theirs int) bool { return c.ours.rcode == ours && c.theirs.rcode == theirs }

// The others. Ours without searchPath.collapse, and with randomizeCase, differs in nothing.
const (
	untuned = "ours, untuned"
	unbound = "unbound"
	coreDNS = "CoreDNS"
	both    = "unbound and CoreDNS"
)

// A class is differences that have one reason.
type class struct {
	name string // as README.md has it
	peer string
	// holds reports whether a clash with peer is of the class, if it is of none
	// before it.
	holds func(c clash) bool
	why   string // why ours is right, or no worse
}

// classes are all of them, for CoreDNS as test/tools/coredns pins it, and unbound as
// Debian 12 and 13 have it. Where a clash fits several, the first one has it.
var classes = []class{
	{
		"asked without RD", unbound,
		func(c clash) bool {
			return !c.rd && c.theirs.rcode == dns.RcodeServerFailure && c.of(inRCode)
		},
		"who does not want recursion is answered from unbound's cache alone; ours passes the question on without RD, as CoreDNS does, and upstream says what it knows (RFC 1034 4.3.1)",
	},
	{
		"refusals", unbound,
		func(c clash) bool {
			return c.like("formerr", "notimp", "refused", "notauth") && c.rcodes(c.up.Rcode, dns.RcodeServerFailure) && c.of(inRCode)
		},
		"ours says what upstream said, as CoreDNS does, so that both name servers of a pod say the same; unbound makes SERVFAIL of all of them. Neither keeps it for longer than a failure (RFC 9520)",
	},
	{
		"AD", unbound,
		func(c clash) bool { return c.of(inAD) && c.ours.ad && c.up.AuthenticatedData },
		"unbound does not validate here, and believes no one who did; ours passes AD on, to who asked for it, from the upstream that it is told to trust (RFC 4035 3.2.3, RFC 6840 5.8)",
	},
	{
		"TTLs of sets", unbound,
		func(c clash) bool {
			return c.of(inTTL) && !oneTTL(contents(c.up.Answer, 0)) && !oneTTL(c.theirs.answer)
		},
		"records of one set come with different TTLs; RFC 2181 5.2 has one, and the lowest is the one that nobody outlives",
	},
	{
		"TTL of 2³¹", unbound,
		func(c clash) bool {
			return c.of(inTTL) && c.like("ttlhuge") && lives(c.ours.answer, ttlLimit/ttlUnit) && lives(c.theirs.answer, 0)
		},
		"a TTL with its highest bit set was 0 (RFC 2181 8); it is a long one since RFC 8767 4, and capped; newer versions of unbound do that, too",
	},
	{
		"half a chain", unbound,
		func(c clash) bool {
			return c.like("dangling") && c.of(inAnswer) && c.ours.answer.sameContent(contents(c.up.Answer, 0)) && c.ours.answer.within(c.theirs.answer)
		},
		"upstream leaves out where a CNAME leads, and unbound asks it for that; ours passes on what a recursive upstream was meant to have followed (RFC 1034 5.3.1), as CoreDNS does, and since there is no SOA keeps it for nobody else",
	},
	{
		"alias with data", unbound,
		func(c clash) bool {
			return c.like("aliasanddata") && c.of(inAnswer) && c.ours.answer.sameContent(contents(c.up.Answer, 0)) && c.theirs.answer.within(c.ours.answer)
		},
		"an alias has no other data (RFC 2181 10.1); unbound drops what stands beside it, ours passes on what upstream has taken for good, as CoreDNS does, and the stub resolver takes either",
	},
	{
		"long chain", unbound,
		func(c clash) bool {
			return aliases(c.up) > 11 && aliases(c.up) <= maxChain && c.theirs.rcode == dns.RcodeServerFailure && c.of(inRCode)
		},
		"unbound follows 11 aliases, ours 20: upstream has followed them already",
	},
	{
		"chain in a circle", unbound,
		func(c clash) bool {
			return c.like("loop") && c.rcodes(dns.RcodeSuccess, dns.RcodeServerFailure) && c.of(inRCode)
		},
		"ours passes the aliases on, as CoreDNS does, and keeps them for nobody else; a stub resolver finds no address in either reply",
	},
	{
		"forged reply", unbound,
		func(c clash) bool {
			return c.like("wrongname", "noreply") && c.rcodes(dns.RcodeSuccess, dns.RcodeServerFailure) && c.of(inRCode)
		},
		"a packet with the right id and the wrong question, or that is no reply, comes before the reply: unbound gives up, ours goes on listening (RFC 5452 9.1)",
	},
	{
		"unreadable reply", unbound,
		func(c clash) bool {
			return c.like("bombahead", "bombheader") && c.ours.rcode == dns.RcodeServerFailure && c.of(inRCode)
		},
		"owner names are pointers to what comes later, or to the header; unbound reads a name in that and says that there is nothing, or follows it; RFC 1035 4.1.4 has pointers lead to a prior name, and SERVFAIL has the stub resolver ask elsewhere",
	},
	{
		"address of three bytes", unbound,
		func(c clash) bool {
			return c.like("shortdata") && c.ours.rcode == dns.RcodeServerFailure && (c.of(inReply) && c.theirs.unread || c.of(inRCode) && len(c.theirs.answer) == 0)
		},
		"unbound passes the record on, and the stub resolver cannot read the reply; newer versions leave it out and say that there is nothing; SERVFAIL has the stub resolver ask elsewhere",
	},
	{
		"no EDNS", unbound,
		func(c clash) bool {
			return c.like("badvers") && c.theirs.rcode == dns.RcodeSuccess && len(c.theirs.answer) == 0 && len(contents(c.up.Answer, 0)) > 0 && c.of(inAnswer, inTTL)
		},
		"upstream does not know version 0 of EDNS; ours asks without, unbound overlooks it and says that there is nothing",
	},
	{
		"BADVERS", unbound,
		func(c clash) bool {
			return c.version != 0 && c.size < dns.MinMsgSize && !c.theirs.opt && c.theirs.rcode == dns.RcodeSuccess && c.of(inRCode, inOPT)
		},
		"newer versions of unbound have no OPT record for who offers less than 512 bytes, and BADVERS without one reads NOERROR (RFC 6891 6.1.3)",
	},
	{
		"signatures with ANY", unbound,
		func(c clash) bool {
			return c.typ == dns.TypeANY && !c.do && c.of(inAnswer) && c.ours.answer.sameContent(c.theirs.answer.without(content.signature))
		},
		"unbound asks with DO always, and leaves in what it got; RFC 4035 3.2.1 has RRSIG for who asks for it, with DO or by type",
	},

	{
		"class CH", coreDNS,
		func(c clash) bool { return c.class != dns.ClassINET && c.ours.rcode == dns.RcodeRefused },
		"CoreDNS passes questions of other classes on when it forwards; ours refuses them, as unbound does: no name of a pod's is in another class, and the cache's key has none",
	},
	{
		"AA", coreDNS,
		func(c clash) bool { return c.of(inAA) && c.up.Authoritative && c.theirs.aa },
		"CoreDNS repeats upstream's AA, from its cache, too; who forwards is no authority (RFC 1035 4.1.1)",
	},
	{
		"RA", coreDNS,
		func(c clash) bool {
			return c.of(inRA) && !c.theirs.ra && (c.up.ra0 || c.theirs.rcode != dns.RcodeSuccess && c.theirs.rcode != dns.RcodeNameError)
		},
		"CoreDNS repeats upstream's RA, and has none in errors of its own; here recursion is available (RFC 1035 4.1.1)",
	},
	{
		"BADVERS", coreDNS,
		func(c clash) bool { return c.of(inDO) && c.version != 0 && c.do && !c.theirs.do },
		"DO is to be copied into the reply (RFC 3225 3)",
	},
	{
		"spelling", coreDNS,
		func(c clash) bool {
			return c.like("folded") && c.of(inQuestion) && strings.EqualFold(c.theirs.question, c.ours.question)
		},
		"CoreDNS passes upstream's spelling on; a client that mixes letters (0x20) or compares bytes drops the reply (RFC 1035 4.1.2, RFC 4343 4.1)",
	},
	{
		"TTLs of sets", coreDNS,
		func(c clash) bool {
			return c.of(inTTL) && c.like("ttlsets", "chainnx", "scattered") && sameTTLs(c.theirs.answer)
		},
		"CoreDNS has all records of a reply expire with the first one; each set has its own TTL (RFC 2181 5.2)",
	},
	{
		"TTL of 0", coreDNS,
		func(c clash) bool {
			return c.of(inTTL) && c.like("ttlzero") && lives(c.ours.answer, 0) && lives(c.theirs.answer, 1)
		},
		"CoreDNS makes at least 5 s of it; what has a TTL of 0 is not to be kept (RFC 1035 3.2.1)",
	},
	{
		"TTL of a denial", coreDNS,
		func(c clash) bool {
			return c.of(inSOATTL) && lives(c.ours.soa, 1) && lives(c.theirs.soa, ttlLong/ttlUnit)
		},
		"the SOA of a denial lives for the lower of its TTL and its MINIMUM field, or a cache behind us keeps the denial for longer (RFC 2308 5)",
	},
	{
		"strangers", coreDNS,
		func(c clash) bool {
			switch {
			case !c.like("extrabehind", "extrafirst", "extrans", "extraglue", "extrasoa"):
				return false
			case c.of(inCut): // they take room
				return c.theirs.cut && !c.ours.cut
			}
			return c.of(inAnswer) && c.ours.answer.sameContent(c.theirs.answer.without(content.strange))
		},
		"CoreDNS passes records of other names on, and keeps them; ours leaves them out wherever they stand, as unbound does (RFC 5452 6)",
	},
	{
		"denial without SOA", coreDNS,
		func(c clash) bool {
			return c.like("nxanswer") && c.of(inTTL) && lives(c.ours.answer, ttlLong/ttlUnit) && lives(c.theirs.answer, 1)
		},
		"upstream says that there is no such name, and has records of it; CoreDNS gives them 5 s; ours leaves their TTL as it is and keeps the reply for nobody else (RFC 2308 5)",
	},
	{
		"no EDNS", coreDNS,
		func(c clash) bool {
			return c.edns && c.like("noedns", "noedns4", "badvers") && slices.Contains([]int{dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeBadVers}, c.theirs.rcode) && c.of(inRCode)
		},
		"an upstream from before EDNS says that it does not understand; CoreDNS passes that on, ours asks once more without EDNS (RFC 6891 7)",
	},
	{
		"long chain", coreDNS,
		func(c clash) bool {
			return aliases(c.up) > maxChain && c.rcodes(dns.RcodeServerFailure, dns.RcodeSuccess) && c.of(inRCode)
		},
		"CoreDNS passes 30 aliases on; ours stops at 20 and unbound at 11: the work that a chain may cause has to be limited (RFC 1035 7.1)",
	},
	{
		"forged reply", coreDNS,
		func(c clash) bool {
			return c.like("wrongname", "noreply") && c.rcodes(dns.RcodeSuccess, dns.RcodeFormatError) && c.of(inRCode)
		},
		"a packet with the right id and the wrong question, or that is no reply, comes before the reply: CoreDNS says FORMERR, ours goes on listening (RFC 5452 9.1)",
	},
	{
		"unreadable reply", coreDNS,
		func(c clash) bool {
			return c.like("bombahead", "bombheader", "miscounted") && c.rcodes(dns.RcodeServerFailure, dns.RcodeSuccess) && c.of(inRCode)
		},
		"owner names are pointers to what comes later, or to the header, or there are fewer records than the header says; CoreDNS passes on and keeps what it could read; SERVFAIL has the stub resolver ask elsewhere (RFC 1035 4.1.4)",
	},
	{
		"unreadable over UDP", coreDNS,
		func(c clash) bool {
			return c.theirs.cut && c.rcodes(dns.RcodeServerFailure, dns.RcodeServerFailure) && c.of(inCut) && expect(c.question, c.up) == dns.RcodeServerFailure
		},
		"CoreDNS sends an empty truncated reply when it cannot read upstream's, and SERVFAIL over TCP: a round trip more for the same",
	},
	{
		"truncated over TCP", coreDNS,
		func(c clash) bool { return c.like("neverwhole") && c.theirs.stillCut && c.of(inRCode) },
		"upstream cuts what had all the room there is; CoreDNS passes that on as NOERROR without records, which reads as that there are none",
	},
	{
		"truncated upstream", coreDNS,
		func(c clash) bool {
			return c.like("tcponly") && c.of(inCut) && c.theirs.cut && !c.ours.cut && c.ours.answer.sameContent(c.theirs.answer)
		},
		"what upstream truncates over UDP ours asks for over TCP itself: the stub resolver, which may have no TCP, is spared a round trip",
	},
	{
		"silence", both,
		func(c clash) bool { return c.like("silent") && c.of(inReply) && c.theirs.silent },
		"upstream says nothing; ours says SERVFAIL after 0.9 s, for clients ask their next name server then, and wait five seconds where there is silence",
	},
	{
		"wrong SOA", both,
		func(c clash) bool {
			return c.like("wrongsoa") && c.of(inSOA) && c.ours.soa.sameContent(c.theirs.soa.without(content.strange))
		},
		"the SOA of a denial is of a zone that the name does not lie in; ours leaves it out, and keeps the denial for nobody else (RFC 2308 5, RFC 5452 6)",
	},
	{
		"1232 bytes", both,
		func(c clash) bool {
			return c.of(inCut) && c.ours.cut && !c.theirs.cut && c.size > 1232 && c.ours.answer.sameContent(c.theirs.answer)
		},
		"no reply of ours over UDP is longer than 1232 bytes, which no network fragments; the stub resolver has the whole over TCP (RFC 9715 3.1)",
	},
	{
		"rare types", both,
		func(c clash) bool {
			return c.of(inCut) && c.ours.cut && !c.theirs.cut && c.ours.answer.sameContent(c.theirs.answer.without(content.strange)) && opaque(c.up)
		},
		"upstream has not compressed what would fit if it were; in data that ours does not look into a careless server may have put a pointer (RFC 3597 4), so nothing is moved, and the stub resolver has the same over TCP",
	},
}

// opaque reports whether there is a record of a type whose data we do not look into,
// since there are no names in it.
func opaque(up said) bool {
	return slices.ContainsFunc(up.Answer, func(rr dns.RR) bool {
		switch t := rr.Header().Rrtype; t {
		case dns.TypeDS, dns.TypeDNSKEY, dns.TypeCAA, dns.TypeTLSA, dns.TypeSSHFP, dns.TypeURI:
			return true
		default:
			return t >= 65280
		}
	})
}

// lives reports whether all records have a TTL, in units.
func lives(r records, units int) bool {
	for _, ttl := range r {
		if ttl != units {
			return false
		}
	}
	return true
}

func (c content) signature() bool { return c.typ == dns.TypeRRSIG }

// sameTTLs reports whether all records live equally long.
func sameTTLs(r records) bool {
	first := -1
	for _, ttl := range r {
		if first >= 0 && ttl != first {
			return false
		}
		first = ttl
	}
	return true
}

// classify is the index in classes of the one that a clash is of, or -1.
func classify(c clash) int {
	return slices.IndexFunc(classes, func(k class) bool {
		return (k.peer == c.peer || k.peer == both && c.peer != untuned) && k.holds(c)
	})
}

// report is the classes that were met, with how often and why.
func report(met []int) string {
	var b strings.Builder
	for i, k := range classes {
		fmt.Fprintf(&b, "%6d  %s, %s\n        %s\n", met[i], k.peer, k.name, k.why)
	}
	return b.String()
}
