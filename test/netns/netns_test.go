package netns_test

import (
	"net"
	"os"
	"testing"

	"nodelocaldns/test/netns"
)

func TestATestSeesNothingOfTheHost(t *testing.T) {
	if !netns.Enter(t) {
		return
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Name != "lo" || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("links are %v, want lo alone and up", links)
	}
	if files, err := os.ReadDir("/run"); err != nil || len(files) != 0 {
		t.Errorf("/run has %v, err %v, want it empty", files, err)
	}
	t.Run("also in a subtest", func(t *testing.T) {
		if links, _ := net.Interfaces(); len(links) != 1 {
			t.Errorf("links are %v", links)
		}
	})
}
