// Image writes a container image of one static program, as a tar file that
// "ctr image import" takes (the format of "docker save").
//
// usage: image OUT REFERENCE PROGRAM NAME [LINK...]
//
// PROGRAM becomes /bin/NAME and the entry point; each LINK is another name of
// it, for programs that go by their name as busybox does. The same arguments
// make the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
)

func main() {
	if len(os.Args) < 5 {
		fmt.Fprintln(os.Stderr, "usage: image OUT REFERENCE PROGRAM NAME [LINK...]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5:]); err != nil {
		fmt.Fprintln(os.Stderr, "image: error:", err)
		os.Exit(1)
	}
}

func run(out, reference, program, name string, links []string) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	entries := []tar.Header{}
	for _, dir := range []string{"bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"} {
		entries = append(entries, tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755})
	}
	for _, link := range links {
		entries = append(entries, tar.Header{Name: "bin/" + link, Typeflag: tar.TypeSymlink, Linkname: name, Mode: 0o777})
	}
	layer, err := archive(entries, file{"bin/" + name, 0o755, data})
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/bin/" + name}, "Env": []string{"PATH=/bin"}},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest, err := json.Marshal([]any{map[string]any{"Config": configName, "RepoTags": []string{reference}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	image, err := archive(nil, file{"layer.tar", 0o644, layer}, file{configName, 0o644, config}, file{"manifest.json", 0o644, manifest})
	if err != nil {
		return err
	}
	return os.WriteFile(out, image, 0o644)
}

type file struct {
	name string
	mode int64
	data []byte
}

// archive is a tar of the entries, which have no content, and the files.
func archive(entries []tar.Header, files ...file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var errs []error
	for _, h := range entries {
		errs = append(errs, w.WriteHeader(&h))
	}
	for _, f := range files {
		errs = append(errs, w.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: f.mode, Size: int64(len(f.data))}))
		_, err := w.Write(f.data)
		errs = append(errs, err)
	}
	errs = append(errs, w.Close())
	return b.Bytes(), errors.Join(errs...)
}
