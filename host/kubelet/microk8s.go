package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"strings"
)

const (
	microK8sData = "/var/snap/microk8s/current"
	microK8sArgs = microK8sData + "/args/kubelet"
)

// findMicroK8s is for microk8s, whose kubelet takes its flags from a file, one
// a line. That file is the only place: there is no directory to put one of
// ours into, and no configuration file. So one line of it is ours, and undo
// puts the bytes back that were there.
func (f *found) findMicroK8s(ctx context.Context) error {
	if b := f.want.Backend; b != Auto && b != ByArgsFile {
		return refuse("set kubelet.backend: auto", "back-end %s does not fit microk8s, whose kubelet has no unit of its own", b)
	}
	f.Backend, f.Program = ByArgsFile, "kubelite"
	text, err := f.node.Tree.ReadFile(microK8sArgs)
	if err != nil {
		return notKnown(err)
	}
	f.text = text
	var entries []string
	set := false
	for line := range bytes.Lines(text) {
		words := argWords(string(line))
		if len(words) == 0 {
			continue
		}
		all, err := flags(words)
		if err != nil {
			return refuse("mend it: one flag a line", "%s: %v", microK8sArgs, err)
		}
		f.all = append(f.all, all...)
		if k, ok := lastValue(all, "kubeconfig"); ok {
			f.Kubeconfig = k
		}
		list, has, err := serversOf(all)
		if err != nil {
			return refuse("mend it: one flag and its value a line", "%s: %v", microK8sArgs, err)
		}
		if has && len(all) > 1 {
			return refuse("give --cluster-dns a line of its own there", "%s has other flags on the line of --cluster-dns", microK8sArgs)
		}
		entries, set = append(entries, list...), set || has
	}
	if set {
		f.setBase(entries, FromArgs, "--cluster-dns in "+microK8sArgs)
	}
	if f.node.Running != nil {
		p, err := f.node.Running(f.Unit)
		if err != nil {
			return fmt.Errorf("looking for the kubelet of %s: %w", f.Unit, err)
		}
		if p != nil {
			f.PID = p.PID
		}
	}
	return f.decide(ctx)
}

// argWords are the words of one line, variables of snapd replaced.
func argWords(line string) []string {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "#") {
		return nil
	}
	vars := strings.NewReplacer(
		"${SNAP_DATA}", microK8sData, "$SNAP_DATA", microK8sData,
		"${SNAP_COMMON}", "/var/snap/microk8s/common", "$SNAP_COMMON", "/var/snap/microk8s/common",
		"${SNAP}", "/snap/microk8s/current", "$SNAP", "/snap/microk8s/current",
	)
	return strings.Fields(vars.Replace(strings.NewReplacer(`"`, "", `'`, "").Replace(line)))
}

// renderArgs is the file with the list on the first line that had one, or on a
// new last line; all other bytes are as they were.
func renderArgs(text []byte, list string) []byte {
	var out bytes.Buffer
	done := false
	for line := range bytes.Lines(text) {
		words := argWords(string(line))
		all, _ := flags(words)
		if len(all) == 0 || all[0].name != clusterDNS {
			out.Write(line)
			continue
		}
		if !done {
			body := bytes.TrimLeft(line, " \t")
			out.Write(line[:len(line)-len(body)])
			out.WriteString("--" + clusterDNS + "=" + list)
			out.Write(body[len(bytes.TrimRight(body, " \t\r\n")):])
			done = true
		}
	}
	if !done {
		if n := out.Len(); n > 0 && out.Bytes()[n-1] != '\n' {
			out.WriteByte('\n')
		}
		out.WriteString("--" + clusterDNS + "=" + list + "\n")
	}
	return out.Bytes()
}
