package network

import (
	"net"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

// TestHealthSaysThatANetworkIsNotServed starts the daemon while another program has the port
// of DHCP, as dnsmasq without bind-dynamic does.
func TestHealthSaysThatANetworkIsNotServed(t *testing.T) {
	l := harness.NewLab(t)
	d := harness.NewDaemon(t, "VMAN_NETWORK_MODE=bridge")
	d.Host = l.Host
	occupy := func() net.PacketConn {
		var other net.PacketConn
		l.Host.Must("listen on port 67", func() (err error) {
			other, err = net.ListenPacket("udp4", ":67")
			return err
		})
		return other
	}
	degraded := func(says string) {
		t.Helper()
		check := harness.As[openapi.Health](d.Call("GET", "/health", nil).Want(503)).Checks.Network
		if check.Status != openapi.HealthStatusDegraded || !strings.Contains(*check.Detail, says) {
			t.Errorf("the check of the networks is %s, %s; want %q", check.Status, *check.Detail, says)
		}
	}
	other := occupy()
	d.Start()
	degraded("network vman0 could not be made")
	d.Stop()
	other.Close()
	d.Start()
	d.Call("GET", "/health", nil).Want(200)
	d.Stop()
	other = occupy()
	d.Start()
	degraded("DHCP of network vman0 is not served")
	other.Close()
	harness.Eventually(t, 20*time.Second, "the network to be served", func() error {
		if h := d.Call("GET", "/health", nil); h.Status != 200 {
			return harness.ErrNotYet
		}
		return nil
	})
}
