package kubelet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"go.yaml.in/yaml/v3"

	"nodelocaldns/host/fsys"
)

const (
	configAPI  = "kubelet.config.k8s.io/v1beta1"
	configKind = "KubeletConfiguration"
)

// A setting is clusterDNS in the kubelet's configuration.
type setting struct {
	list []string // as written
	set  bool     // false: nowhere, or null in the last file that has it
	file string   // the last file that has it
}

// readConfig is the kubelet's --config file and then its --config-dir, either
// of which may be empty: the file gives the list, and each file of the
// directory that has one replaces it (RFC 7386: lists are not joined, null
// takes away). Files of the directory for which skip returns true are taken
// for missing.
func readConfig(tree fsys.Tree, file, dir string, skip func(name string) bool) (setting, error) {
	var got setting
	if file != "" {
		m, err := readObject(tree, file)
		if err != nil {
			return setting{}, err
		}
		if err := got.merge(m, file); err != nil {
			return setting{}, err
		}
	}
	if dir == "" {
		return got, nil
	}
	names, err := configFiles(tree, dir)
	if err != nil {
		return setting{}, err
	}
	for _, name := range names {
		if skip != nil && skip(name) {
			continue
		}
		m, err := readObject(tree, name)
		if err != nil {
			return setting{}, err
		}
		if err := got.merge(m, name); err != nil {
			return setting{}, err
		}
	}
	return got, nil
}

func (s *setting) merge(m map[string]any, file string) error {
	v, ok := m["clusterDNS"]
	if !ok {
		return nil
	}
	if v == nil {
		*s = setting{file: file}
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		return fmt.Errorf("%s: clusterDNS is no list: the kubelet would exit", file)
	}
	*s = setting{set: true, file: file}
	for _, e := range list {
		text, ok := e.(string)
		if !ok {
			return fmt.Errorf("%s: clusterDNS has an entry that is no string: the kubelet would exit", file)
		}
		s.list = append(s.list, text)
	}
	return nil
}

// configFiles are the files of a --config-dir in the order in which the
// kubelet merges them: it walks down, name by name, and takes *.conf alone. It
// follows no link to a directory.
func configFiles(tree fsys.Tree, dir string) ([]string, error) {
	entries, err := tree.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		switch {
		case e.IsDir():
			below, err := configFiles(tree, name)
			if err != nil {
				return nil, err
			}
			out = append(out, below...)
		case path.Ext(name) == ".conf":
			out = append(out, name)
		}
	}
	return out, nil
}

// readObject reads one configuration file, YAML or JSON. Like the kubelet it
// insists on apiVersion and kind, and takes a file for what its content says,
// not its name.
func readObject(tree fsys.Tree, name string) (map[string]any, error) {
	data, err := tree.ReadFile(name)
	if err != nil {
		return nil, err
	}
	m, err := object(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if m["apiVersion"] != configAPI || m["kind"] != configKind {
		return nil, fmt.Errorf("%s: apiVersion %v and kind %v are not %s and %s: the kubelet would exit",
			name, m["apiVersion"], m["kind"], configAPI, configKind)
	}
	return m, nil
}

// object decodes one YAML or JSON object. JSON is not left to the YAML parser,
// which refuses tabs.
func object(data []byte) (map[string]any, error) {
	var m map[string]any
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) && json.Valid(data) {
		return m, json.Unmarshal(data, &m)
	}
	err := yaml.Unmarshal(data, &m)
	if err == nil && m == nil {
		err = errors.New("is empty")
	}
	if err != nil {
		err = errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return m, err
}

// isKubeconfig says whether the file is a credential and not a kubelet's
// configuration: both are called kubelet.conf somewhere.
func isKubeconfig(tree fsys.Tree, name string) (bool, error) {
	data, err := tree.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	m, err := object(data)
	if err != nil {
		return false, nil //nolint:nilerr // what cannot be read as an object is none
	}
	return m["kind"] == "Config", nil
}
