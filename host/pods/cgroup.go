package pods

import "strings"

// A member is where a process is among pods.
type member struct {
	pod       string // UID
	container string // id, empty where the process is in the group of the pod itself
}

// memberOf reads the control groups of a process, as /proc/PID/cgroup has
// them. It knows what kubelets and runtimes name the groups of pods, with both
// cgroup drivers:
//
//	/kubepods/burstable/pod<uid>/<id>
//	/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<u_i_d>.slice/cri-containerd-<id>.scope
//	/kubelet.slice/kubelet-kubepods.slice/…/kubelet-kubepods-besteffort-pod<u_i_d>.slice/crio-<id>.scope   (kind, --cgroup-root)
//	/system.slice/containerd.service/kubepods-burstable-pod<u_i_d>.slice:cri-containerd:<id>   (the two disagree on the driver)
//
// One hierarchy that tells is enough: on nodes with both versions of control
// groups the others may hold nothing. Of groups within groups the outermost
// counts: a cluster in a pod is part of that pod.
func memberOf(groups string) (member, bool) {
	for line := range strings.Lines(groups) {
		// id:controllers:path, and a path may have colons.
		w := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(w) != 3 || !strings.Contains(w[2], "kubepods") {
			continue
		}
		// A group that was removed under its last processes is said to be.
		if m, ok := memberAt(strings.TrimSuffix(w[2], " (deleted)")); ok {
			return m, true
		}
	}
	return member{}, false
}

// memberAt reads one path. Also that of a container's specification, where
// systemd's form is "kubepods-….slice:prefix:id".
func memberAt(path string) (member, bool) {
	elements := strings.Split(path, "/")
	within := false // a group "kubepods" holds those of the cgroupfs driver
	for i, e := range elements {
		slice, rest, _ := strings.Cut(e, ":")
		slice, isSlice := strings.CutSuffix(slice, ".slice")
		switch {
		case isSlice && strings.Contains(slice, "kubepods"):
			j := strings.LastIndex(slice, "-pod")
			if j < 0 {
				continue
			}
			uid := strings.ReplaceAll(slice[j+len("-pod"):], "_", "-")
			if rest == "" && i+1 < len(elements) {
				rest = elements[i+1]
			}
			return member{uid, containerID(rest)}, uid != ""
		case e == "kubepods":
			within = true
		case within && strings.HasPrefix(e, "pod"):
			id := ""
			if i+1 < len(elements) {
				id = containerID(elements[i+1])
			}
			return member{strings.TrimPrefix(e, "pod"), id}, e != "pod"
		}
	}
	return member{}, false
}

// containerID takes the runtime's prefix and suffix off: ids have neither
// dashes nor colons.
func containerID(group string) string {
	id := strings.TrimSuffix(group, ".scope")
	return id[strings.LastIndexAny(id, "-:")+1:]
}
