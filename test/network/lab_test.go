package network

import (
	"encoding/hex"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"vmand/test/harness"
)

// TestLabConnectivity checks the lab itself: routes, names, captures.
func TestLabConnectivity(t *testing.T) {
	l := harness.NewLab(t)
	for _, n := range []*harness.Namespace{l.Host, l.Other, l.Outside} {
		if got, err := n.HTTPGet(harness.FarAddress + ":80"); err != nil {
			t.Errorf("namespace %s does not reach %s: %v", n.Name, harness.FarAddress, err)
		} else if n == l.Other && got[len(got)-len(harness.OtherAddress):] != harness.OtherAddress {
			t.Errorf("outside answers other with %q, want its address", got)
		}
	}
	got, _, err := l.Other.QueryDNS(harness.OutsideAddress, "www.example", dns.TypeA)
	if err != nil || !slices.Equal(got, []string{harness.OutsideAddress}) {
		t.Errorf("www.example resolves to %v, %v", got, err)
	}
	_, code, err := l.Other.QueryDNS(harness.OutsideAddress, "www.nowhere", dns.TypeA)
	if err != nil || code != dns.RcodeNameError {
		t.Errorf("www.nowhere resolves with the code %d, %v, want NXDOMAIN", code, err)
	}
	if l.Host.Sysctl("net/ipv4/ip_forward") != "0" {
		t.Error("the host forwards packets before vmand runs")
	}
	s := l.Outside.Sniff("lan0")
	frame := []byte("\xff\xff\xff\xff\xff\xff\x52\x00\x00\x00\x00\x01\x88\xb5 a frame of the lab's own.")
	if _, err := l.Other.VMT(hex.EncodeToString(frame), "send", "up0"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 5*time.Second, "the frame to arrive", func() error {
		if s.Count("of the lab's own") == 0 {
			return harness.ErrNotYet
		}
		return nil
	})
}
