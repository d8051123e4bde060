// Package cloudinit makes user-data of cloud-init, with which a new node asks
// nodelocaldns from its first boot.
//
// All of it is done by bootcmd, in the network stage: on Debian and Ubuntu nothing
// that waits for sysinit.target runs before that stage is over, and elsewhere nothing
// that waits for network-online.target, as kubelets do. runcmd comes when the kubelet
// has long been started, and write_files after bootcmd (cc_bootcmd, cc_write_files in
// the order of cloud.cfg, 22.4 and 25.1), so that what the programs must find is
// written by bootcmd too.
//
// Units and the kubelet's file are not in it. The program has them, writes what no
// package has brought, and records it, so that rollback takes it back.
package cloudinit

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxBytes is the size that user-data may have on EC2, the smallest of the clouds'.
const MaxBytes = 16 << 10

// ErrTooLarge is an error of UserData.
var ErrTooLarge = errors.New("user-data is too large")

// A File is one that is written on the new node.
type File struct {
	Name string // absolute
	Text []byte // gets a last line end where it has none
}

// A Download is a package that is fetched, checked, and installed.
type Download struct {
	url  string
	sum  string // of SHA-256, in hexadecimal
	arch string // as uname -m says, "" where the name of the file does not
}

// A Source is where the programs come from. The zero value is that the image has
// them, whether from a package or not.
type Source struct {
	Package    *Package
	Repository *File      // written before Package is looked for
	Downloads  []Download // one, or one for each architecture
}

// A Package is one of a repository.
type Package struct {
	name, version string // "": the newest
}

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+._-]*(=[a-zA-Z0-9.+:~^-]+)?$`)

// ParsePackage reads NAME or NAME=VERSION.
func ParsePackage(text string) (*Package, error) {
	if !packageName.MatchString(text) {
		return nil, fmt.Errorf("%q is no package: NAME or NAME=VERSION", text)
	}
	name, version, _ := strings.Cut(text, "=")
	return &Package{name, version}, nil
}

// RepositoryFile is the description of a repository, as apt or dnf read it from a file
// that is named as this one.
func RepositoryFile(name string, text []byte) (*File, error) {
	name = path.Base(name)
	switch path.Ext(name) {
	case ".sources", ".list":
		return &File{path.Join("/etc/apt/sources.list.d", name), text}, nil
	case ".repo":
		return &File{path.Join("/etc/yum.repos.d", name), text}, nil
	}
	return nil, fmt.Errorf("%s is no repository: its name ends neither in .sources or .list, for apt, nor in .repo, for dnf", name)
}

// arches is how the names of packages end, and what uname -m says there.
var arches = map[string]string{
	"_amd64.deb":   "x86_64",
	".x86_64.rpm":  "x86_64",
	"_arm64.deb":   "aarch64",
	".aarch64.rpm": "aarch64",
}

// ParseDownload reads the address of a package and its SHA-256 in hexadecimal.
func ParseDownload(address, sum string) (Download, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return Download{}, fmt.Errorf("%q is no URL of http or https", address)
	}
	if u.Fragment != "" {
		return Download{}, fmt.Errorf("%s: no server is asked for what follows #: leave it out", address)
	}
	d := Download{url: u.String(), sum: sum}
	switch path.Ext(u.EscapedPath()) { // the script looks at the address as it is
	case ".deb", ".rpm":
	default:
		return Download{}, fmt.Errorf("%s is no package: its name ends neither in .deb nor in .rpm", address)
	}
	if b, err := hex.DecodeString(sum); err != nil || len(b) != 32 {
		return Download{}, fmt.Errorf("%q is no SHA-256 sum: 64 hexadecimal digits", sum)
	}
	for end, arch := range arches {
		if strings.HasSuffix(u.Path, end) {
			d.arch = arch
		}
	}
	return d, nil
}

// UserData is a part of user-data, at most MaxBytes. The configuration may be nil: then
// what the image has is in effect, or the defaults. Files are readable in it, unless it
// would be too large for that. The error is ErrTooLarge, or about what of the source
// contradicts itself. The same arguments have the same bytes come back.
func UserData(from Source, configuration *File) ([]byte, error) {
	install, err := from.install()
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, packed := range []bool{false, true} {
		var script strings.Builder
		if from.Repository != nil {
			script.WriteString(from.Repository.write(packed))
		}
		script.WriteString(install)
		if configuration != nil {
			script.WriteString(configuration.write(packed))
		}
		script.WriteString(start)
		if out = document(script.String()); len(out) <= MaxBytes {
			return out, nil
		}
	}
	return nil, fmt.Errorf("%w: %d bytes, and clouds take %d", ErrTooLarge, len(out), MaxBytes)
}

// head is what comes before the script. cloud-init would replace the bootcmd of the
// parts before by that of a later one, if the later one did not say otherwise.
const head = `#cloud-config
# This node's pods ask nodelocaldns from its first boot; printed by nodelocaldns
# cloud-init. With other user-data it is the last part of a multi-part message.
merge_how:
  - {name: list, settings: [append]}
  - {name: dict, settings: [no_replace, recurse_list]}
# Before the kubelet, which waits for it, and before write_files. Once an instance.
bootcmd:
  - - cloud-init-per
    - instance
    - nodelocaldns
    - timeout
    - "300"
    - sh
    - -euc
    - |
`

// document is the user-data that runs a script.
func document(script string) []byte {
	var out bytes.Buffer
	out.WriteString(head)
	for line := range strings.Lines(script) {
		if line != "\n" {
			out.WriteString("      ")
		}
		out.WriteString(line)
	}
	return out.Bytes()
}

// start is the end of the script. Below a root nothing is asked of the system that
// runs, which at this time waits for us.
const start = `nodelocaldns --root / apply
systemctl daemon-reload
systemctl start --no-block nodelocaldns.service
`

// install is the part of the script after which the programs are there.
func (s Source) install() (string, error) {
	switch {
	case s.Package != nil && s.Downloads != nil:
		return "", errors.New("a package comes from a repository or from a URL, not from both")
	case s.Repository != nil && s.Package == nil:
		return "", errors.New("a repository is for a package of it")
	case s.Package != nil:
		return s.Package.install(), nil
	case s.Downloads != nil:
		return download(s.Downloads)
	}
	return "", nil
}

func (p Package) install() string {
	of := func(separator string) string {
		if p.version == "" {
			return p.name
		}
		return quote(p.name + separator + p.version)
	}
	return fmt.Sprintf(`get() {
  if command -v apt-get >/dev/null; then
    apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install %s
  elif command -v dnf >/dev/null; then
    dnf -y install %[2]s
  else
    yum -y install %[2]s
  fi
}
`, of("="), of("-")) + again
}

// again is for a network that is there a little later than cloud-init believes.
const again = `tries=0
until get; do
  tries=$((tries + 1))
  test $tries -lt 10
  sleep 3
done
`

// The tools that images have: curl on most, wget on Debian's, python3 wherever
// cloud-init finds it by that name. All of them end by themselves.
const fetch = `dir=$(mktemp -d /run/nodelocaldns.XXXXXX)
trap 'rm -rf "$dir"' EXIT
package=$dir/package
get() {
  if command -v curl >/dev/null; then
    curl -fsSL --connect-timeout 10 -o "$package" "$url"
  elif command -v wget >/dev/null; then
    wget -q --tries=1 --timeout=30 -O "$package" "$url"
  else
    python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])' "$url" "$package"
  fi
}
` + again + `echo "$sum  $package" | sha256sum --check --quiet
`

// download is the part of the script for packages that are fetched.
func download(all []Download) (string, error) {
	var out strings.Builder
	if len(all) == 1 {
		fmt.Fprintf(&out, "url=%s\nsum=%s\n", quote(all[0].url), all[0].sum)
	} else {
		out.WriteString("case $(uname -m) in\n")
		for i, d := range all {
			if d.arch == "" {
				return "", fmt.Errorf("%s does not say for which architecture it is: names of packages end as in _amd64.deb or .x86_64.rpm", d.url)
			}
			if slices.ContainsFunc(all[:i], func(e Download) bool { return e.arch == d.arch }) {
				return "", fmt.Errorf("%s is the second package for %s", d.url, d.arch)
			}
			fmt.Fprintf(&out, "%s)\n  url=%s\n  sum=%s\n  ;;\n", d.arch, quote(d.url), d.sum)
		}
		out.WriteString("*)\n  echo \"no package for $(uname -m)\" >&2\n  exit 1\n  ;;\nesac\n")
	}
	out.WriteString(fetch)
	out.WriteString(`case ${url%%\?*} in
*.deb) dpkg --install "$package" ;;
*.rpm) rpm --upgrade --replacepkgs "$package" ;;
esac
`)
	return out.String(), nil
}

// end is the line that ends a file in the script.
const end = "END"

// write is the part of the script that writes the file: as text where it can be, and
// is not to be packed.
func (f File) write(packed bool) string {
	text := f.Text
	if len(text) > 0 && !bytes.HasSuffix(text, []byte("\n")) {
		text = append(slices.Clone(text), '\n')
	}
	command := fmt.Sprintf("cat >%s <<'%s'\n", quote(f.Name), end)
	if packed || !readable(text) {
		command = fmt.Sprintf("base64 -d <<'%s' | gzip -d >%s\n", end, quote(f.Name))
		text = pack(text)
	}
	return "mkdir -p " + quote(path.Dir(f.Name)) + "\n" + command + string(text) + end + "\n"
}

// readable says whether text comes through YAML, and a shell's here-document, as it is.
// YAML 1.1 takes some other signs for line ends.
func readable(text []byte) bool {
	return utf8.Valid(text) && !bytes.Contains(append([]byte("\n"), text...), []byte("\n"+end+"\n")) &&
		bytes.IndexFunc(text, func(r rune) bool { return r != '\n' && r != '\t' && !unicode.IsPrint(r) }) < 0
}

// pack is text compressed, in lines of base64.
func pack(text []byte) []byte {
	var packed bytes.Buffer
	w, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression) // a level that there is
	_, _ = w.Write(text)                                       // nor does memory fail
	_ = w.Close()
	var out bytes.Buffer
	for line := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString(packed.Bytes())), 76) {
		out.Write(append(line, '\n'))
	}
	return out.Bytes()
}

var plain = regexp.MustCompile(`^[a-zA-Z0-9/._:+=-]+$`)

// quote is a word of the shell.
func quote(word string) string {
	if plain.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
