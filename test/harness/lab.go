package harness

import (
	"os"
	"testing"
)

// Addresses of the lab, from the blocks for documentation (RFC 5737, RFC 3849).
const (
	HostAddress    = "203.0.113.1"
	OutsideAddress = "203.0.113.2"
	OtherAddress   = "203.0.113.3"
	FarAddress     = "198.51.100.1" // of Outside, reached through its gateway
)

// A Lab has three namespaces: a host for the daemon, the outside with its servers, which
// is the host's default gateway, and another host.
//
//	host (up0) ── outside (lan0) ── other (up0)
type Lab struct {
	Host, Outside, Other *Namespace
}

// NewLab returns a lab. Outside runs `vmt serve` and a name server, which answers A, AAAA
// and TXT of *.example. The TXT record is the address of the client.
func NewLab(t testing.TB) *Lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test creates network namespaces: run the tests as root")
	}
	l := &Lab{Host: NewNamespace(t, "host"), Outside: NewNamespace(t, "outside"), Other: NewNamespace(t, "other")}
	l.Outside.AddBridge("lan0")
	l.Outside.AddAddress("lan0", OutsideAddress+"/24", "2001:db8::2/64")
	l.Outside.AddAddress("lo", FarAddress+"/32")
	for _, host := range []struct {
		*Namespace
		ipv4, ipv6 string
	}{
		{l.Host, HostAddress, "2001:db8::1"},
		{l.Other, OtherAddress, "2001:db8::3"},
	} {
		host.Plug("up0", l.Outside, "lan0")
		host.AddAddress("up0", host.ipv4+"/24", host.ipv6+"/64")
		host.AddRoute("", OutsideAddress)
	}
	l.Host.ReplaceFile("/etc/resolv.conf", "nameserver "+OutsideAddress+"\n")
	l.Host.SetSysctl("net/ipv4/ip_forward", "0") // the kernel may have copied it from the namespace of the test
	l.Outside.Serve()
	l.Outside.ServeDNS()
	return l
}

// StartDaemon starts a daemon in the lab's host, with the default network on a bridge and
// guests of the variant "net".
func (l *Lab) StartDaemon(t testing.TB, env ...string) *Daemon {
	t.Helper()
	d := NewDaemon(t, append([]string{"VMAN_NETWORK_MODE=bridge", BootDisk("net")}, env...)...)
	d.Host = l.Host
	d.Start()
	d.CreateTemplate()
	return d
}

// Run runs a subtest. Failures of the namespaces, the daemon and its guests count as
// failures of the subtest.
func (l *Lab) Run(d *Daemon, name string, f func(t *testing.T)) {
	group, ok := d.T.(*testing.T)
	if !ok {
		d.T.Fatal("only a test has subtests")
	}
	group.Run(name, func(t *testing.T) {
		defer l.SetT(d, group)
		l.SetT(d, t)
		f(t)
	})
}

// SetT makes t the test that fails when the lab or the daemon does.
func (l *Lab) SetT(d *Daemon, t testing.TB) {
	d.SetT(t)
	l.Host.T, l.Outside.T, l.Other.T = t, t, t
}
