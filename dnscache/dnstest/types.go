package dnstest

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// types are the data of a record of every type that the library knows, but for those
// that are part of a message and of no zone. @ stands for a name.
const types = `
A 192.0.2.1
AAAA 2001:db8::1
AFSDB 1 afs.@
AMTRELAY 10 0 3 amt.@
APL 1:192.0.2.0/24 !2:2001:db8::/32
AVC "app-name:x" "y"
CAA 0 issue "ca.example; policy=ev"
CDNSKEY 257 3 8 AwEAAQ==
CDS 1 8 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
CERT 1 2 8 AwEAAQ==
CNAME alias.@
CSYNC 66 3 A NS AAAA
DHCID AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA=
DLV 1 8 1 0123456789abcdef0123456789abcdef01234567
DNAME other.@
DNSKEY 256 3 8 AwEAAQ==
DS 1 8 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
EID \# 4 01020304
EUI48 00-00-5e-00-53-2a
EUI64 00-00-5e-ef-10-00-00-2a
GID \# 4 00000001
GPOS -32.6882 116.8652 10.0
HINFO "RFC8482" ""
HIP 2 200100107B1A74DF365639CC39F1D578 AwEAAbdxyhNuSutc5EMzxTs9LBPCIkOFH8cIvM4p9+LrV4e19WzK00+CI6zBCQTdtWsuxKbWIy87UOoJTwkUs7lBu+Upr1gsNrut79ryra+bSRGQb1slImA8YVJyuIDsj7kwzG7jnERNqnWxZ48AWkskmdHaVDP4BcelrTI3rMXdXF5D rvs.@
HTTPS 1 svc.@ mandatory=alpn alpn=h2,h3 no-default-alpn port=8443 ipv4hint=192.0.2.1 ech=AEX+DQA= ipv6hint=2001:db8::1 key65333=ex1
IPSECKEY 10 3 2 gw.@ AwEAAQ==
ISDN "150862028003217" "004"
KEY 256 3 8 AwEAAQ==
KX 10 kx.@
L32 10 192.0.2.1
L64 10 2001:0db8:1140:1000
LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000.00m 10.00m
LP 10 l64.@
MB mail.@
MD mail.@
MF mail.@
MG group.@
MINFO owner.@ errors.@
MR renamed.@
MX 10 mail.@
NAPTR 100 10 "u" "sip+E2U" "!^.*$!tel:+1!" naptr.@
NID 10 0014:4fff:ff20:ee64
NIMLOC \# 4 01020304
NINFO "zone status"
NS ns.@
NSAP-PTR nsap.@
NSEC next.@ A RRSIG NSEC TYPE1234
NSEC3 1 1 12 aabbccdd 2T7B4G4VSA5SMI47K61MV5BV1A22BOJR A RRSIG
NSEC3PARAM 1 0 12 aabbccdd
NULL \# 5 0001020304
NXT next.@ A
OPENPGPKEY AwEAAQ==
PTR host.@
PX 10 map822.@ mapx400.@
RESINFO "qnamemin" "exterr=15-17"
RKEY 256 3 8 AwEAAQ==
RP mbox.@ text.@
RRSIG A 8 2 300 20300101000000 20200101000000 4711 signer.@ AwEAAQ==
RT 10 relay.@
SIG A 8 2 300 20300101000000 20200101000000 4711 signer.@ AwEAAQ==
SMIMEA 3 1 1 0123456789abcdef
SOA ns.@ host.@ 1 2 3 4 5
SPF "v=spf1 -all"
SRV 1 2 53 host.@
SSHFP 4 2 0123456789abcdef
SVCB 16 . alpn=dot dohpath=/dns-query{?dns} port=853
TA 1 8 2 0123456789abcdef
TALINK prev.@ next.@
TLSA 3 1 1 0123456789abcdef
TXT "one" "two \"quoted\" \001\255"
UID \# 4 00000001
UINFO "somebody"
URI 10 1 "https://example.com/"
X25 311061700956
ZONEMD 2018031500 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
TYPE65280 \# 4 C00C0001
`

// Records returns a record of every type that the library knows and that a name may
// have, and one of a type that nobody knows, of the given owner; names in their data
// are below it.
func Records(owner string, ttl uint32) ([]dns.RR, error) {
	var rrs []dns.RR
	for line := range strings.Lines(strings.TrimPrefix(types, "\n")) {
		rr, err := ParseRecord(fmt.Sprintf("%s %d %s", owner, ttl, strings.ReplaceAll(strings.TrimSpace(line), "@", owner)))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		rrs = append(rrs, rr)
	}
	return rrs, nil
}
