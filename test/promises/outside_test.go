package promises

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"nodelocaldns/test/promises/load"
)

// Others who take away what guard has made.
func TestWhatOthersTakeAwayIsMadeAgain(t *testing.T) {
	t.Parallel()
	m := apply(t)
	const rate = 500
	for i, tt := range []struct {
		name     string
		do       []string
		gone     string // a command that succeeds while it is gone
		promised time.Duration
	}{
		{
			"all iptables rules flushed", []string{"sh", "-ec", "for t in raw mangle nat filter; do iptables -t $t -F; iptables -t $t -X; done"},
			"! iptables -t raw -S PREROUTING | grep -q NODELOCALDNS", 10 * time.Second,
		},
		{
			"address removed by hand", []string{"ip", "address", "del", local + "/32", "dev", "nodelocaldns0"},
			"! ip -o address show dev nodelocaldns0 | grep -q " + local + "/32", time.Second,
		},
		{
			"device deleted by hand", []string{"ip", "link", "del", "nodelocaldns0"},
			"! ip -o address show dev nodelocaldns0 | grep -q " + local + "/32", time.Second,
		},
		{
			"networkd told to configure the interface", []string{"sh", "-ec", `printf '[Match]\nName=nodelocaldns*\n[Network]\nLinkLocalAddressing=no\n' >/etc/systemd/network/00-all.network
				networkctl reload; networkctl reconfigure nodelocaldns0`},
			"! ip -o address show dev nodelocaldns0 | grep -q " + local + "/32", time.Second,
		},
	} {
		m.healthy(t)
		l := m.load(t, load.Plan{Rate: rate, Count: 60 * rate, Sockets: 16, Fresh: 20, Timeout: 2 * time.Second})
		time.Sleep(time.Second)
		m.output(t, tt.do...)
		begun := time.Now()
		var healed time.Time
		eventually(t, "what was taken away to be there again", time.Minute, func() error {
			r, err := m.Exec(t.Context(), "sh", "-c", tt.gone)
			if err == nil && r.Code == 0 {
				err = errors.New("it is not")
			}
			healed = time.Now()
			return err
		})
		time.Sleep(2 * time.Second) // it may be taken again
		if r, err := m.Exec(t.Context(), "sh", "-c", tt.gone); err != nil || r.Code == 0 {
			t.Errorf("%s: it came back, and went again", tt.name)
		}
		r := l.stop()
		s := r.Summary(nil)
		none(t, tt.name+": wrong answers", s.Wrong, s)
		inTime(t, tt.name+": the repair", healed.Sub(begun), tt.promised)
		report(t, 80+i, fmt.Sprintf("%s, UDP at %d q/s", tt.name, rate), "made again", []load.Summary{s},
			"within %s; lost %d, refused %d of %d queries", short(healed.Sub(begun)), s.Lost, s.Refused, s.Sent)
	}
}
