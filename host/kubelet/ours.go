package kubelet

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"nodelocaldns/host/fsys"
	"nodelocaldns/units"
)

// EnvFile is where the back-end env leaves what it computed, until the node
// goes down or the kubelet starts again.
const EnvFile = "/run/nodelocaldns/kubelet.env"

// fileName is the last part of every file name of ours. What stands before it
// decides when the file counts: the last wins.
const fileName = "-nodelocaldns.conf"

// fileNames are the names our file may have, in the order in which they are
// tried. Names of others that sort behind 99 are rare, and behind zzzz unheard
// of.
var fileNames = []string{"99" + fileName, "zz" + fileName, "zzz" + fileName, "zzzz" + fileName, "zzzzzzzz" + fileName}

// nameAfter is the first of our names that sorts behind all of others, which
// are file names without directories.
func nameAfter(others []string) (string, bool) {
	for _, name := range fileNames {
		last := true
		for _, o := range others {
			last = last && o < name
		}
		if last {
			return name, true
		}
	}
	return "", false
}

// The lines of our header that are read back.
const (
	marker   = "# nodelocaldns "
	bodyLine = "# sha256 of the rest: "
	baseLine = "# made from: "
)

// version is that of what we render. A file of another version is rendered
// anew.
const version = 1

// withHeader puts our header over a body: what it is, what it was made from,
// and a sum by which a later edit is told from an older version.
func withHeader(b Backend, what, madeFrom string, body []byte) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s%d %s: %s\n", marker, version, b, what)
	out.WriteString("# Rendered: an edit stays, and keeps us from touching the file. nodelocaldns rollback takes it away.\n")
	if madeFrom != "" {
		fmt.Fprintf(&out, "%ssha256:%s\n", baseLine, sum([]byte(madeFrom)))
	}
	fmt.Fprintf(&out, "%s%s\n", bodyLine, sum(body))
	out.Write(body)
	return out.Bytes()
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// ourFile says whether the content is a file of ours, and whether it is still
// what we wrote.
func ourFile(data []byte) (mine, intact bool) {
	if !bytes.HasPrefix(data, []byte(marker)) {
		return false, false
	}
	rest := data
	for {
		line, after, ok := bytes.Cut(rest, []byte("\n"))
		if !ok || !bytes.HasPrefix(line, []byte("#")) {
			return true, false
		}
		if text, found := strings.CutPrefix(string(line), bodyLine); found {
			return true, text == sum(after)
		}
		rest = after
	}
}

// startsUs is what our drop-ins for a unit begin with. Guard puts itself before the
// kubelet, and nothing else of ours is waited for.
const startsUs = `[Unit]
# A kubelet that names us to pods brings us up, also where somebody has disabled us.
Wants=` + units.Guard + " " + units.Socket + " " + units.Resolver + "\n\n"

// isOurs says whether name is a file of ours, edited or not.
func isOurs(tree fsys.Tree, name string) (bool, error) {
	data, err := tree.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	mine, _ := ourFile(data)
	return mine, nil
}

// dropInDir is where the administrator's drop-ins of a unit are. It outranks
// the directories of packages and of the running system for equal names only.
func (f *found) dropInDir() string { return path.Join("/etc/systemd/system", f.unitID()+".d") }

func (f *found) unitID() string {
	if f.unit != nil && f.unit.ID != "" {
		return f.unit.ID
	}
	return f.Unit
}

// ourNames are the names that a drop-in of ours may have.
func (f *found) ourNames() []string {
	var out []string
	for _, name := range fileNames {
		out = append(out, path.Join(f.dropInDir(), name))
	}
	return out
}
