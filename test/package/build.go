// Package packaging builds the project's packages for tests, and tests them: what
// is in them, and what their scripts do. Its directory node has those on booted
// nodes.
package packaging

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Build builds all packages into dir, which it makes, from the project's tree, as
// version and of a time that do not depend on git. env are further variables of
// the environment, such as TZ=UTC.
func Build(tree, dir, version string, env ...string) error {
	cmd := exec.Command(filepath.Join(tree, "units/package/build.sh"), dir)
	cmd.Env = append(os.Environ(), "VERSION="+version, "SOURCE_DATE_EPOCH=1767323045") // 2026-01-02 03:04:05
	cmd.Env = append(cmd.Env, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the packages: %w\n%s", err, out)
	}
	return nil
}

// Deb is the name of the package for dpkg, in the directory where it was built.
func Deb(version, arch string) string { return "nodelocaldns_" + version + "_" + arch + ".deb" }

// RPM is the name of the package for rpm, in the directory where it was built.
func RPM(version, arch string) string {
	return "nodelocaldns-" + version + "-1." + map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch] + ".rpm"
}
