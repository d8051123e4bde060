package upstream

import "context"

// An Exchanger asks one question of somebody else.
//
// query is a message in wire form and is not changed; the exchanger puts an
// id of its own into what it sends. The reply is appended to buf and returned;
// it has been found to answer query (wire.CheckReply). Exchange returns when
// ctx ends. It may be called at the same time from many goroutines.
type Exchanger interface {
	Exchange(ctx context.Context, query, buf []byte) ([]byte, error)
}

// orContext prefers the reason why ctx ended to the time-out it caused.
func orContext(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
