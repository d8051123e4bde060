// Package journal keeps the engine's records in a file.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"nodelocaldns/host/engine"
	"nodelocaldns/host/step"
)

// version is the schema of the file. A binary reads only its own: undoing by
// half-understood records is worse than asking for the binary that made them.
const version = 1

// Files is what the journal needs of a file system; fsys.Dir is one.
type Files interface {
	Path(name string) string
	ReadFile(name string) ([]byte, error)
	WriteAtomic(name string, data []byte, perm fs.FileMode) error
	Remove(name string) error
}

// A Journal is all records of one plan in one JSON file, so that each change
// is one rename and the order is that of the first Put. It has one writer: the
// holder of the Lock. Open may be called by anybody at any time.
type Journal struct {
	files Files
	name  string
}

// New returns the journal kept in the file name. A missing file is an empty
// journal, and an empty journal leaves no file.
func New(files Files, name string) *Journal { return &Journal{files: files, name: name} }

type content struct {
	Version int             `json:"version"`
	Records []engine.Record `json:"records"`
}

// Put inserts r, or replaces the record of that name in place.
func (j *Journal) Put(r engine.Record) error {
	recs, err := j.Open()
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(recs, named(r.Name)); i >= 0 {
		recs[i] = r
	} else {
		recs = append(recs, r)
	}
	return j.write(recs)
}

// Drop forgets the record of that name. One that is not there is not an error.
func (j *Journal) Drop(name string) error {
	recs, err := j.Open()
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(recs, named(name))
	if len(left) == 0 {
		return j.files.Remove(j.name)
	}
	return j.write(left)
}

// Open returns the open records, oldest first. A file that is damaged, or that
// another version of the program wrote, is an error and never an empty
// journal: what it describes is still on the node.
func (j *Journal) Open() ([]engine.Record, error) {
	data, err := j.files.ReadFile(j.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	path := j.files.Path(j.name)
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, damaged(path, err)
	}
	if head.Version != version {
		return nil, &step.Error{
			Err:  fmt.Errorf("journal %s has version %d, this program reads version %d", path, head.Version, version),
			Next: "run rollback with the program that wrote it, then apply with this one",
		}
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var c content
	if err := dec.Decode(&c); err != nil {
		return nil, damaged(path, err)
	}
	for _, r := range c.Records {
		if r.Name == "" {
			return nil, damaged(path, errors.New("a record has no name"))
		}
	}
	return c.Records, nil
}

func (j *Journal) write(recs []engine.Record) error {
	data, err := json.MarshalIndent(content{Version: version, Records: recs}, "", "  ")
	if err != nil {
		return err
	}
	return j.files.WriteAtomic(j.name, append(data, '\n'), 0o644)
}

func damaged(path string, err error) error {
	return &step.Error{
		Err:  fmt.Errorf("journal %s is damaged: %w", path, err),
		Next: "it says what to undo: keep it, compare it with the node by hand, then move it away",
	}
}

func named(name string) func(engine.Record) bool {
	return func(r engine.Record) bool { return r.Name == name }
}
