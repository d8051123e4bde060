package pods

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"nodelocaldns/host/fsys"
)

// A bundle is a container that a runtime holds, and what its specification
// (config.json of the OCI runtime specification) says of its pod.
type bundle struct {
	id, uid         string
	namespace, name string // empty where it does not say
	sandbox         bool   // it holds the pod's namespaces
	conf            string // the resolv.conf on the node that its containers get
	hostNetwork     bool
	stays           bool     // the bundle outlives the container
	pinned          []string // namespaces that live as long as the pod
}

// holders are the directories in which runtimes keep a directory for each
// container. All are below /run or a place like it, so none outlasts a reboot,
// unlike the sandbox directories below /var/lib.
var holders = []struct {
	dir, in string
	stays   bool // after the container has ended, until it is removed
}{
	{dir: "/run/containerd/io.containerd.runtime.v2.task/k8s.io"},
	{dir: "/run/containerd/io.containerd.runtime.v1.linux/k8s.io"},
	{dir: "/run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io"}, // rke2 too
	{dir: "/run/k0s/containerd/io.containerd.runtime.v2.task/k8s.io"},
	{dir: "/var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/k8s.io"},
	{dir: "/run/containerd/io.containerd.runtime.v2.task/moby"}, // Docker by cri-dockerd
	{dir: "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby"},
	{dir: "/run/containers/storage/overlay-containers", in: "userdata", stays: true}, // CRI-O
}

// maxSpec bounds a specification: it holds the environment and the annotations
// of a pod, and an object in the API has at most 1.5 MiB.
const maxSpec = 8 << 20

// bundles returns the bundles of all pods' containers. Each is read once in the
// life of the Finder: they never change.
func (s *scan) bundles() ([]bundle, error) {
	var all []bundle
	var errs []error
	now := map[string]bundle{}
	for _, h := range holders {
		dirs, err := s.Tree.ReadDir(h.dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, d := range dirs {
			if s.ctx.Err() != nil {
				return nil, nil
			}
			dir := path.Join(h.dir, d.Name(), h.in)
			b, ok := s.specs[dir]
			if !ok {
				text, err := s.wait(dir, s.Tree.String(), path.Join(dir, "config.json"), maxSpec)
				if gone(err) {
					continue // it is being made, or taken away
				}
				if err == nil {
					b, err = parseBundle(text)
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("reading %s/config.json: %w", dir, err))
					continue
				}
				b.id, b.stays = d.Name(), h.stays
			}
			now[dir] = b
			if b.uid != "" {
				all = append(all, b)
			}
		}
	}
	s.specs = now
	return all, errors.Join(errs...)
}

// parseBundle reads a specification. One that is of no pod has no UID.
func parseBundle(text []byte) (bundle, error) {
	var spec struct {
		Annotations map[string]string `json:"annotations"`
		Mounts      []struct {
			Destination string `json:"destination"`
			Source      string `json:"source"`
		} `json:"mounts"`
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
			Namespaces  []struct {
				Type string `json:"type"`
				Path string `json:"path"`
			} `json:"namespaces"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(text, &spec); err != nil {
		return bundle{}, err
	}
	said := func(keys ...string) string {
		for _, k := range keys {
			if v := spec.Annotations[k]; v != "" {
				return v
			}
		}
		return ""
	}
	m, _ := memberAt(spec.Linux.CgroupsPath)
	b := bundle{
		uid:         m.pod,
		namespace:   said("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri-o.Namespace"),
		name:        said("io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName"),
		sandbox:     said("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType") == "sandbox",
		conf:        said("io.kubernetes.cri-o.ResolvPath"),
		hostNetwork: true,
	}
	if b.uid == "" {
		b.uid = said("io.kubernetes.cri.sandbox-uid")
	}
	for _, m := range spec.Mounts {
		if path.Clean(m.Destination) == resolvConf {
			b.conf = m.Source
		}
	}
	for _, n := range spec.Linux.Namespaces {
		if n.Type == "network" {
			b.hostNetwork = false
		}
		// CRI-O pins the namespaces of a pod as files, and so does what makes
		// its network; a container that joins those of another names /proc.
		if n.Path != "" && !strings.HasPrefix(n.Path, "/proc/") {
			b.pinned = append(b.pinned, n.Path)
		}
	}
	return b, nil
}

// lives says whether the container of a bundle may run, where no process tells.
func (b bundle) lives(tree fsys.Tree) bool {
	if !b.stays {
		return true
	}
	for _, p := range b.pinned {
		if _, err := tree.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}
