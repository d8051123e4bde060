package limit_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"go.yaml.in/yaml/v3"

	"nodelocaldns/host/limit"
)

func TestTheRoleNamesTheLeases(t *testing.T) {
	text, err := os.ReadFile("../../units/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for i := range 10 {
		want = append(want, fmt.Sprintf("%s/%s [get update]", limit.Namespace, limit.Name(i)))
	}
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var role struct {
			Metadata struct{ Namespace string }
			Rules    []struct {
				ResourceNames []string `yaml:"resourceNames"`
				Verbs         []string
			}
		}
		if err := d.Decode(&role); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, r := range role.Rules {
			for _, name := range r.ResourceNames {
				got = append(got, fmt.Sprintf("%s/%s %s", role.Metadata.Namespace, name, r.Verbs))
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
