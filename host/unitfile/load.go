package unitfile

import "errors"

func load(f files, name string, host Host) (*Unit, error) {
	return nil, errors.New("not yet")
}
