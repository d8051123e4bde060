package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"nodelocaldns/host/kubelet"
)

// The oldest that this program is made for. Nothing older was tried.
const (
	leastKernel     = "4.18"
	leastSystemd    = 247
	leastKubernetes = "1.28"
)

// keepsReady is the first minor of Kubernetes whose kubelet keeps the readiness
// of pods over its restart: the gate ChangeContainerStatusOnKubeletRestart is
// off from there on (kubernetes/kubernetes#100277).
const keepsReady = "1.35"

var numbers = regexp.MustCompile(`(\d+)\.(\d+)`)

// before says whether version a is older than b, by the first two numbers of
// both. known is false where one has none.
func before(a, b string) (older, known bool) {
	x, y := numbers.FindStringSubmatch(a), numbers.FindStringSubmatch(b)
	if x == nil || y == nil {
		return false, false
	}
	for i := 1; i <= 2; i++ {
		m, merr := strconv.Atoi(x[i])
		n, nerr := strconv.Atoi(y[i])
		if merr != nil || nerr != nil {
			return false, false
		}
		if m != n {
			return m < n, true
		}
	}
	return false, true
}

func (e *Env) kernel(context.Context) []Result {
	release := e.sys("kernel.osrelease")
	old, known := before(release, leastKernel)
	switch {
	case !known:
		return warning("it must be "+leastKernel+" or newer", "%q is no version of a kernel", release)
	case old:
		return failure("use a newer kernel", "%s is older than %s, the oldest this is made for", release, leastKernel)
	}
	return ok("%s", release)
}

func (e *Env) systemd(ctx context.Context) []Result {
	if e.Systemd == nil {
		return warning("guard, serve and the restart of the kubelet are then for another supervisor to see to", "systemd does not run here")
	}
	version, err := e.Systemd.Version(ctx)
	if err != nil {
		return unseen(err)
	}
	n, err := strconv.Atoi(regexp.MustCompile(`^\d*`).FindString(version))
	switch {
	case err != nil:
		return warning(fmt.Sprintf("it must be %d or newer", leastSystemd), "%q is no version of systemd", version)
	case n < leastSystemd:
		return failure("use a newer distribution", "%s is older than %d, the oldest this is made for", version, leastSystemd)
	}
	return ok("%s", version)
}

// kubernetes asks the kubelet for its version. The file that runs is asked, by
// way of /proc/PID/exe, and not the one of that name: the package may have been
// upgraded since. That it tells in its build information is not to be had:
// Kubernetes is built with -trimpath, which leaves the linker's flags out of
// it. Answering costs it some tens of milliseconds and touches nothing.
func (e *Env) kubernetes(ctx context.Context) []Result {
	f, _ := e.Kubelet(ctx)
	program := e.kubeletProgram(f)
	if program == "" {
		return nil
	}
	text, err := e.Version(ctx, program)
	if errors.Is(err, fs.ErrPermission) {
		text, err = e.Version(ctx, f.Program)
	}
	if err != nil {
		return unseen(err)
	}
	version := release.FindString(text)
	old, known := before(version, leastKubernetes)
	flips, _ := before(version, keepsReady)
	switch {
	case !known:
		return info("", "the kubelet does not tell its version")
	case old:
		return failure("upgrade the cluster first", "%s is older than %s, the oldest this is made for", version, leastKubernetes)
	case flips:
		return info("one node at a time, or drain it first (kubernetes/kubernetes#100277, mended in 1.35)",
			"%s: a restart of this kubelet makes pods with readiness probes unready for a moment", version)
	}
	return ok("%s", version)
}

// kubeletProgram is what to ask for the version, or "" where there is nothing
// that is known to answer and do no more.
func (e *Env) kubeletProgram(f kubelet.Facts) string {
	if f.PID != 0 {
		return e.proc(fmt.Sprintf("%d/exe", f.PID))
	}
	names := []string{f.Program}
	if !path.IsAbs(f.Program) { // it is one with its distribution
		names = []string{"/usr/local/bin/" + f.Program, "/usr/bin/" + f.Program, "/opt/rke2/bin/" + f.Program}
	}
	for _, name := range names {
		if slices.Contains([]string{"kubelet", "k3s", "rke2"}, path.Base(name)) && e.exists(name) {
			return e.Tree.Path(name)
		}
	}
	return ""
}

// release is a version of Kubernetes in what a program prints of itself.
var release = regexp.MustCompile(`v\d+\.\d+\.\d+[-+.\w]*`)

// link says which kind of device can hold our addresses. None is made to find
// out: a kind is there if such a device is, if its module is loaded or built
// in, or if it can be loaded.
func (e *Env) link(context.Context) []Result {
	var have []string
	for _, kind := range []string{"dummy", "bridge"} {
		if e.canMake(kind) {
			have = append(have, kind)
		}
	}
	want := string(e.Want.LinkType)
	switch {
	case want == "lo":
		return ok("the addresses go on lo")
	case want != "auto" && !slices.Contains(have, want):
		return warning("set listen.linkType: auto", "this kernel may have no %s devices: neither a module nor its configuration tells of any", want)
	case want == "auto" && len(have) == 0:
		return info("", "this kernel may have neither dummy nor bridge devices: then the addresses go on lo, which works as well")
	case want != "auto":
		return ok("this kernel has %s devices", want)
	}
	return ok("this kernel has %s devices", have[0])
}

func (e *Env) canMake(kind string) bool {
	if devices, err := e.deviceList(); err == nil {
		for _, d := range devices {
			if d.Kind == kind {
				return true
			}
		}
	}
	if e.exists("/sys/module/" + kind) {
		return true
	}
	version := e.sys("kernel.osrelease")
	listed := func(file, text string) bool {
		data, err := e.Tree.ReadFile(file)
		return err == nil && strings.Contains("\n"+string(data), text)
	}
	if listed("/lib/modules/"+version+"/modules.builtin", "/"+kind+".ko") ||
		listed("/boot/config-"+version, "\nCONFIG_"+strings.ToUpper(kind)+"=y") {
		return true
	}
	return e.sys("kernel.modules_disabled") != "1" && listed("/lib/modules/"+version+"/modules.dep", "/"+kind+".ko")
}
