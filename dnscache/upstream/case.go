package upstream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"

	"nodelocaldns/dnscache/wire"
)

// RandomCase asks each question with its letters in upper or lower case by chance
// (draft-vixie-dnsext-dns0x20). Servers repeat it as it is, so that who has not seen
// it must guess one bit more for each letter, beside port and id (RFC 5452 9). What
// comes out has the letters of the question that came in, everywhere.
//
// It is for datagrams. A connection has sequence numbers that are harder to guess,
// and its server is the only one that can write to it.
type RandomCase struct {
	Exchanger           // reads until a reply has come; over UDP
	Random    io.Reader // unpredictable bytes; it may be read at the same time from many goroutines
}

// errOtherCase says that the question of a reply was spelled in another way, as by
// a server that folds it, or one that has guessed.
var errOtherCase = errors.New("reply whose question is spelled differently")

// Exchange implements [Exchanger]. A reply without the letters of the question is
// an error, one without the question too.
func (r *RandomCase) Exchange(ctx context.Context, query, buf []byte) ([]byte, error) {
	asked := bytes.Clone(query)
	end := wire.SkipName(query, wire.HeaderLen)
	sent, name := asked[wire.HeaderLen:end], query[wire.HeaderLen:end]
	if err := randomCase(sent, r.Random); err != nil {
		return nil, err
	}
	out, err := r.Exchanger.Exchange(ctx, asked, buf)
	if err != nil {
		return nil, err
	}
	reply := out[len(buf):]
	if binary.BigEndian.Uint16(reply[4:]) != 1 || !bytes.Equal(reply[wire.HeaderLen:end], sent) {
		return nil, errOtherCase
	}
	wire.Respell(reply, sent, name)
	return out, nil
}

// randomCase changes the case of letters of a name, each with a chance of one half.
func randomCase(name []byte, random io.Reader) error {
	var bits [(wire.MaxName + 7) / 8]byte
	if _, err := io.ReadFull(random, bits[:(len(name)+7)/8]); err != nil {
		return err
	}
	for i, c := range name {
		if c |= 0x20; c-'a' < 26 {
			name[i] ^= bits[i/8] >> (i % 8) & 1 << 5
		}
	}
	return nil
}
