package dnscache

import (
	"net/netip"
	"testing"
)

func TestRoomIsMadeByWhoHasMost(t *testing.T) {
	const room = 12
	h := holders{}
	begin := func(client int) *flight {
		fl := &flight{client: address(client)}
		h.add(fl)
		return fl
	}
	if got := h.victim(address(1), room); got != nil {
		t.Errorf("of nobody %v makes room", got)
	}
	var first, second *flight
	for i := range 9 {
		switch fl := begin(1); i {
		case 0:
			first = fl
		case 1:
			second = fl
		}
	}
	for range 2 {
		begin(2)
	}
	only := begin(3)
	for _, tt := range []struct {
		client int
		want   *flight
	}{{1, first}, {2, first}, {3, first}, {4, first}} {
		if got := h.victim(address(tt.client), room); got != tt.want {
			t.Errorf("for client %d: not the oldest of the one that has most", tt.client)
		}
	}
	h.remove(first)
	begin(2)
	if got := h.victim(address(2), room); got != second { // 3 of 12, where 4 are its share
		t.Error("one that has less than its share makes room itself")
	}
	begin(2)
	if got := h.victim(address(2), room); got != h[address(2)].oldest {
		t.Error("one that has its share takes it from another")
	}
	h.remove(only)
	if _, ok := h[address(3)]; ok || len(h) != 2 {
		t.Errorf("holders are %v", h)
	}
}

// What is taken out in any order leaves the others in theirs.
func TestHoldersKeepTheOrder(t *testing.T) {
	for mask := range 1 << 5 {
		h := holders{}
		var all []*flight
		for range 5 {
			fl := &flight{client: netip.Addr{}}
			h.add(fl)
			all = append(all, fl)
		}
		var want []*flight
		for i, fl := range all {
			if mask&(1<<i) != 0 {
				h.remove(fl)
			} else {
				want = append(want, fl)
			}
		}
		for _, fl := range want {
			if got := h.victim(netip.Addr{}, 0); got != fl {
				t.Fatalf("without %05b the oldest is not the oldest", mask)
			}
			h.remove(fl)
		}
		if len(h) != 0 {
			t.Fatalf("without %05b: %v is left", mask, h)
		}
	}
}
