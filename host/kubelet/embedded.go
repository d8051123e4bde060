package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// findEmbedded is for k3s and rke2, which start a kubelet with a configuration
// directory of their own. They write one file of it anew at each start and
// leave the others.
func (f *found) findEmbedded(ctx context.Context) error {
	name := "k3s"
	if f.kind == isRKE2 {
		name = "rke2"
	}
	if b := f.want.Backend; b != Auto && b != ByConfigDir {
		return refuse("set kubelet.backend: auto", "back-end %s does not fit %s, whose kubelet has no unit of its own", b, name)
	}
	f.Backend, f.Program = ByConfigDir, name
	settings, err := f.rancher(name)
	if err != nil {
		return err
	}
	f.dir = path.Join(settings.data, "agent/etc/kubelet.conf.d")
	f.Kubeconfig = path.Join(settings.data, "agent/kubelet.kubeconfig")
	for _, a := range settings.args {
		key, _, _ := strings.Cut(strings.ReplaceAll(strings.TrimLeft(a.text, "-"), "_", "-"), "=")
		switch strings.TrimRight(key, "+-") {
		case clusterDNS:
			return refuse(fmt.Sprintf("put %s in front of it there, or take it out", join(f.want.Addresses)),
				"kubelet-arg %q in %s beats every configuration file", a.text, a.file)
		case "config-dir", "config":
			return refuse("take it out, so that the kubelet reads "+f.dir,
				"kubelet-arg %q in %s leads the kubelet elsewhere", a.text, a.file)
		}
		if all, err := flags([]string{"--" + strings.TrimLeft(a.text, "-")}); err == nil {
			f.all = append(f.all, all...)
		}
	}
	if info, err := f.node.Tree.Stat(f.dir); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return refuse(fmt.Sprintf("start %s once, at least version 1.32; with an older one set kubelet-arg: [cluster-dns=ADDRESS,KUBE-DNS] in /etc/rancher/%s/config.yaml", name, name),
			"there is no directory %s", f.dir)
	} else if err != nil {
		return err
	}
	if err := f.ourConfigs(); err != nil {
		return err
	}
	c, err := readConfig(f.node.Tree, "", f.dir, f.isMine)
	if err != nil {
		return notKnown(err)
	}
	f.setConfig(c)
	if len(f.ours) > 0 {
		if c, err := readConfig(f.node.Tree, "", f.dir, nil); err == nil {
			f.Now, f.NowFrom = parseServers(c.list), "clusterDNS in "+c.file
		}
	}
	if f.node.Running != nil {
		p, err := f.node.Running(f.Unit)
		if err != nil {
			return fmt.Errorf("looking for the kubelet of %s: %w", f.Unit, err)
		}
		if p != nil {
			f.PID = p.PID
			if at := kubeletWord(p.Argv); at >= 0 {
				all, _ := flags(p.Argv[at+1:])
				if list, set, _ := serversOf(all); set {
					return refuse("upgrade "+name+", or set the address where that flag comes from",
						"%s (pid %d) passes --cluster-dns=%s, which beats every configuration file", name, p.PID, strings.Join(list, ","))
				}
			}
		}
	}
	return f.decide(ctx)
}

// rancherSettings are what k3s and rke2 are told that matters here.
type rancherSettings struct {
	data string
	args []placed
}

// placed is a text and the file that has it.
type placed struct{ text, file string }

// rancher reads the settings of k3s or rke2 from its command line and its
// configuration files.
func (f *found) rancher(name string) (rancherSettings, error) {
	out := rancherSettings{data: "/var/lib/rancher/" + name}
	config := "/etc/rancher/" + name + "/config.yaml"
	env, err := f.unit.Environment()
	if err != nil {
		return out, notKnown(err)
	}
	commands, err := f.unit.Commands("ExecStart")
	if err != nil || len(commands) != 1 {
		return out, refuse("mend the unit first: systemctl status "+f.Unit, "%s would not start, or what it would start cannot be told: %v", f.Unit, err)
	}
	args, err := commands[0].Expand(env)
	if err != nil {
		return out, notKnown(err)
	}
	argv := make([]string, len(args))
	for i, a := range args {
		argv[i] = a.Text
	}
	if slices.Contains(shells, path.Base(commands[0].Path)) {
		return out, refuse("start "+name+" itself in ExecStart", "%s is started by a shell: %s", f.Unit, commands[0].Path)
	}
	up := strings.ToUpper(name)
	if v, ok := env.Get(up + "_CONFIG_FILE"); ok && v.Value != "" {
		config = v.Value
	}
	if v, ok := env.Get(up + "_DATA_DIR"); ok && v.Value != "" {
		out.data = v.Value
	}
	var data string
	for i := 1; i < len(argv); i++ {
		key, value, given := strings.Cut(strings.TrimLeft(argv[i], "-"), "=")
		if key == argv[i] { // no dash: a word of its own
			continue
		}
		switch key {
		case "config", "c", "data-dir", "d", "kubelet-arg":
		default:
			continue
		}
		if !given && i+1 < len(argv) {
			i++
			value = argv[i]
		}
		switch key {
		case "config", "c":
			config = value
		case "data-dir", "d":
			data = value
		case "kubelet-arg":
			out.args = append(out.args, placed{value, "ExecStart of " + commands[0].Setting.File})
		}
	}
	files := []string{config}
	entries, err := f.node.Tree.ReadDir(config + ".d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return out, err
	}
	for _, e := range entries {
		if ext := path.Ext(e.Name()); ext == ".yaml" || ext == ".yml" {
			files = append(files, path.Join(config+".d", e.Name()))
		}
	}
	for _, file := range files {
		text, err := f.node.Tree.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return out, err
		}
		if strings.TrimSpace(string(text)) == "" {
			continue
		}
		m, err := object(text)
		if err != nil {
			return out, notKnown(fmt.Errorf("%s: %w", file, err))
		}
		if v, ok := m["data-dir"].(string); ok {
			out.data = v
		}
		for _, key := range []string{"kubelet-arg", "kubelet-arg+"} {
			switch v := m[key].(type) {
			case string:
				out.args = append(out.args, placed{v, file})
			case []any:
				for _, e := range v {
					out.args = append(out.args, placed{fmt.Sprint(e), file})
				}
			}
		}
	}
	if data != "" { // the command line wins
		out.data = data
	}
	return out, nil
}
