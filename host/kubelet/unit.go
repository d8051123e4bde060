package kubelet

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"nodelocaldns/host/unitfile"
)

// A kind is how the kubelet of a node is run.
type kind int

const (
	isKubelet  kind = iota // a unit of its own
	isK3s                  // one process with k3s
	isRKE2                 // a child of rke2
	isMicroK8s             // one process with microk8s' kubelite
	isK0s                  // a child of k0s
	isEKSSnap              // the snap of Ubuntu for EKS
)

// kubelets are the units a kubelet may be in, in the order in which they are
// looked for.
var kubelets = []struct {
	name string
	kind kind
}{
	{"kubelet.service", isKubelet},
	{"k3s.service", isK3s},
	{"k3s-agent.service", isK3s},
	{"rke2-server.service", isRKE2},
	{"rke2-agent.service", isRKE2},
	{"snap.microk8s.daemon-kubelite.service", isMicroK8s},
	{"k0scontroller.service", isK0s},
	{"k0sworker.service", isK0s},
	{"snap.kubelet-eks.daemon.service", isEKSSnap},
}

// Names are the units that a kubelet may be in.
func Names() []string {
	names := make([]string, len(kubelets))
	for i, k := range kubelets {
		names[i] = k.name
	}
	return names
}

// system refuses operating systems that own every file on them.
func (f *found) system() error {
	if f.anywhere {
		return nil
	}
	data, err := f.node.Tree.ReadFile("/etc/os-release")
	if err != nil {
		data, _ = f.node.Tree.ReadFile("/usr/lib/os-release")
	}
	id := ""
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "ID="); ok {
			id = strings.Trim(v, `"'`)
		}
	}
	switch id {
	case "talos":
		return refuse("set machine.kubelet.clusterDNS in the machine configuration (talosctl patch machineconfig)",
			"Talos owns the kubelet's configuration")
	case "bottlerocket":
		return refuse("set settings.kubernetes.cluster-dns-ip (apiclient set)", "Bottlerocket owns the kubelet's configuration")
	}
	if f.want.Backend != Auto {
		return nil
	}
	if _, err := f.node.Tree.Stat("/etc/machine-config-daemon"); err == nil {
		return refuseMCO()
	}
	return nil
}

func refuseMCO() error {
	return refuse("the DaemonSet dns-default of OpenShift answers on each node already; kubelet.backend: dropin overrides this refusal",
		"the Machine Config Operator of OpenShift owns the kubelet's unit")
}

// ErrNone is the *Refusal for a node without a kubelet that is known to us.
var ErrNone error = &Refusal{
	Why:  "no unit of a kubelet was found (kubelet.service, k3s, rke2, microk8s)",
	Next: "install the kubelet first, or set kubelet.unit to the unit that runs it, or kubelet.manage: false",
}

func (f *found) findUnit() error {
	look := kubelets
	if f.want.Unit != "" {
		k := isKubelet
		for _, u := range kubelets {
			if u.name == f.want.Unit {
				k = u.kind
			}
		}
		look = []struct {
			name string
			kind kind
		}{{f.want.Unit, k}}
	}
	masked := ""
	for _, u := range look {
		unit, err := unitfile.Load(f.node.Tree, u.name, f.node.Host)
		switch {
		case errors.Is(err, unitfile.ErrNotFound):
			continue
		case errors.Is(err, unitfile.ErrMasked):
			if masked == "" {
				masked = u.name
			}
			continue
		case err != nil:
			return refuse("mend it first: systemctl cat "+u.name, "%s cannot be read: %v", u.name, err)
		}
		f.Unit, f.kind, f.unit = u.name, u.kind, unit
		return f.known()
	}
	if masked != "" {
		return refuse("unmask it if a kubelet is to run here: systemctl unmask "+masked, "%s is masked", masked)
	}
	if f.want.Unit != "" {
		return refuse("set kubelet.unit to the unit that runs the kubelet", "there is no unit %s", f.want.Unit)
	}
	return ErrNone
}

// known ends the search for kinds that are not to be touched.
func (f *found) known() error {
	switch f.kind {
	case isK0s:
		return refuse("start k0s with --kubelet-extra-args=--cluster-dns=ADDRESS,KUBE-DNS (k0s install … --force)",
			"k0s writes the kubelet's configuration anew at each start, and reserves clusterDNS (%s)", f.Unit)
	case isEKSSnap:
		return refuse("snap set kubelet-eks cluster-dns=ADDRESS,KUBE-DNS", "snapd owns the kubelet's arguments (%s)", f.Unit)
	}
	return nil
}

// wrappers start the program that is named among their arguments, and leave
// its own arguments as they are.
var wrappers = []string{"kubenswrapper", "hyperkube", "nice", "ionice", "chrt", "taskset", "numactl", "env", "setpriv"}

var shells = []string{"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"}

var containers = []string{"docker", "podman", "nerdctl", "ctr", "crictl", "rkt", "runc", "systemd-nspawn"}

// kubeletWord is the index of the first word whose last path element is
// kubelet, or -1.
func kubeletWord(words []string) int {
	return slices.IndexFunc(words, func(w string) bool { return path.Base(w) == "kubelet" })
}

// command finds the one command line that starts the kubelet, and the kubelet
// in it, with our own file out of the way.
func (f *found) command() error {
	for _, name := range f.ourNames() {
		if f.whole {
			break
		}
		mine, err := isOurs(f.node.Tree, name)
		if err != nil || !mine {
			continue // missing, or in the way: the step says which
		}
		unit, err := f.unit.Without(name)
		if err != nil {
			return refuse("mend it first: systemctl cat "+f.Unit, "%s without %s cannot be read: %v", f.Unit, name, err)
		}
		f.unit, f.ours = unit, append(f.ours, name)
	}
	if _, err := f.node.Tree.Lstat(EnvFile); err == nil && !f.whole {
		unit, err := f.unit.Without(EnvFile)
		if err != nil {
			return fmt.Errorf("reading %s: %w", f.Unit, err)
		}
		f.unit = unit
	}
	mend := fmt.Sprintf("mend the unit first: systemctl cat %s; systemctl status %s", f.Unit, f.Unit)
	commands, err := f.unit.Commands("ExecStart")
	if err != nil {
		return refuse(mend, "%s would not start, or what it would start cannot be told: %v", f.Unit, err)
	}
	if len(commands) != 1 {
		return refuse(mend, "%s has %d commands in ExecStart, where a kubelet is one", f.Unit, len(commands))
	}
	f.cmd = commands[0]
	words := texts(f.cmd.Argv)
	program := path.Base(f.cmd.Path)
	at := kubeletWord(words[1:]) + 1 // the first is the program, or what it is to be called
	where := "ExecStart of " + f.cmd.Setting.File
	switch {
	case slices.Contains(shells, program):
		return refuse("put the address in front in what the shell runs, or start the kubelet without one",
			"the kubelet is started by a shell: %s (%s)", f.cmd.Path, where)
	case slices.Contains(containers, program):
		return refuse("set clusterDNS in the configuration file that the container mounts",
			"the kubelet runs in a container: %s (%s)", f.cmd.Path, where)
	case program != "kubelet" && !slices.Contains(wrappers, program):
		return refuse("start the kubelet itself in ExecStart, or set kubelet.unit to the unit that does",
			"%s does not start a kubelet that we can see: %s (%s)", f.Unit, f.cmd.Path, where)
	case program != "kubelet" && at == 0:
		return refuse("name the kubelet itself in ExecStart", "there is no word kubelet behind %s (%s)", f.cmd.Path, where)
	case program == "kubenswrapper" && f.want.Backend == Auto && !f.anywhere:
		return refuseMCO()
	case program == "kubelet":
		f.word, f.Program = 0, f.cmd.Path
	default:
		f.word, f.Program = at, words[at]
		for _, w := range words[:at] {
			if strings.Contains(w, "$") {
				return refuse("name the kubelet before any variable in ExecStart", "%q stands before the kubelet (%s)", w, where)
			}
		}
	}
	return nil
}

// expand fills in the arguments of the kubelet as systemd would pass them now.
func (f *found) expand() error {
	env, err := f.unit.Environment()
	if err != nil {
		return err
	}
	all, err := f.cmd.ExpandKnown(env)
	if err != nil {
		return err
	}
	args := []unitfile.Arg{}
	for _, a := range all {
		if a.Word <= f.word {
			continue
		}
		if a.Unknown != "" && decides(a) {
			return fmt.Errorf("argument %s: %s is not known from files", a.Text, a.Unknown)
		}
		args = append(args, a)
	}
	f.env, f.args = env, args
	return nil
}

// decides says that what is not known of an argument may say whom pods ask: all
// but the value of a flag that says something else.
func decides(a unitfile.Arg) bool {
	name, _, ok := strings.Cut(a.Text[:a.Known], "=")
	if !ok || !strings.HasPrefix(name, "--") {
		return true
	}
	return slices.Contains([]string{clusterDNS, "config", "config-dir", "kubeconfig"}, strings.ReplaceAll(name[2:], "_", "-"))
}

// words are the arguments of the kubelet.
func (f *found) words() []string {
	out := make([]string, len(f.args))
	for i, a := range f.args {
		out[i] = a.Text
	}
	return out
}

// variable is the variable that the word of ExecStart stands for, or "".
func (f *found) variable(word int) string {
	if word < 0 || strings.Contains(f.cmd.Prefix, ":") {
		return ""
	}
	name, _ := f.cmd.Argv[word].Variable()
	return name
}

// last is the variable that ExecStart ends in, or "".
func (f *found) last() string {
	if n := len(f.cmd.Argv) - 1; n > f.word {
		return f.variable(n)
	}
	return ""
}
