package test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const roleDir = "../ansible/roles/nodelocaldns"

// A roleOption is a variable of the Ansible role, as argument_specs.yml has it.
type roleOption struct {
	Type        string
	Elements    string
	Default     any
	Choices     []string
	Description string
}

// roleOptions are all, by name. It fails the test where an entry point has one
// with another meaning.
func roleOptions(t *testing.T) map[string]roleOption {
	t.Helper()
	var specs struct {
		ArgumentSpecs map[string]struct {
			Options map[string]roleOption
		} `yaml:"argument_specs"`
	}
	decode(t, roleDir+"/meta/argument_specs.yml", &specs)
	all := map[string]roleOption{}
	for entry, spec := range specs.ArgumentSpecs {
		for name, o := range spec.Options {
			if was, ok := all[name]; ok && !cmp.Equal(was, o) {
				t.Errorf("%s of %s is not that of the other entry points: %s", name, entry, cmp.Diff(was, o))
			}
			all[name] = o
		}
	}
	return all
}

func decode(t *testing.T, name string, to any) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = yaml.Unmarshal(b, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheDefaultsOfTheAnsibleRoleAreThoseOfItsSpecs(t *testing.T) {
	want := map[string]any{}
	for name, o := range roleOptions(t) {
		want[name] = o.Default
	}
	var got map[string]any
	decode(t, roleDir+"/defaults/main.yml", &got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-meta/argument_specs.yml +defaults/main.yml:\n%s", diff)
	}
}

func TestTheAnsibleReadmeHasATableOfAllVariables(t *testing.T) {
	options := roleOptions(t)
	var b strings.Builder
	b.WriteString("| variable | type | default | |\n|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(options)) {
		o := options[name]
		kind := o.Type
		if o.Choices != nil {
			kind = "one of `" + strings.Join(o.Choices, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | `%s` | %s |\n", name, kind, flow(t, o.Default), strings.TrimSpace(o.Description))
	}
	readme, err := os.ReadFile("../ansible/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(readme, []byte("\n\n"+b.String()+"\n")) {
		t.Errorf("ansible/README.md does not have this table:\n%s", b.String())
	}
}

// flow is a value on one line.
func flow(t *testing.T, value any) string {
	t.Helper()
	var n yaml.Node
	if err := n.Encode(value); err != nil {
		t.Fatal(err)
	}
	n.Style |= yaml.FlowStyle
	out, err := yaml.Marshal(&n)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
