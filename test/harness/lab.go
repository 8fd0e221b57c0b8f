package harness

import (
	"os"
	"testing"
)

// Addresses of the lab, of the blocks for documentation (RFC 5737, RFC 3849).
const (
	HostAddress    = "203.0.113.1"
	OutsideAddress = "203.0.113.2"
	OtherAddress   = "203.0.113.3"
	FarAddress     = "198.51.100.1" // of outside too, behind its gateway
)

// A Lab is a small world: a host for the daemon, the outside with its servers,
// which the host's default route leads to, and another host beside it.
//
//	host (up0) ── outside (lan0) ── other (up0)
type Lab struct {
	Host, Outside, Other *Namespace
}

// NewLab makes a lab. Outside answers as `vmt serve` says, and knows names: A and
// AAAA of *.example, and TXT of who.example, which is the asker's address.
func NewLab(t testing.TB) *Lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes networks; run the tests as root")
	}
	l := &Lab{Host: NewNamespace(t, "host"), Outside: NewNamespace(t, "outside"), Other: NewNamespace(t, "other")}
	l.Outside.AddBridge("lan0")
	l.Outside.AddAddress("lan0", OutsideAddress+"/24", "2001:db8::2/64")
	l.Outside.AddAddress("lo", FarAddress+"/32")
	for i, n := range []*Namespace{l.Host, l.Other} {
		n.Plug("up0", l.Outside, "lan0")
		n.AddAddress("up0", []string{HostAddress, OtherAddress}[i]+"/24", []string{"2001:db8::1/64", "2001:db8::3/64"}[i])
		n.AddRoute("", OutsideAddress)
	}
	l.Host.ReplaceFile("/etc/resolv.conf", "nameserver "+OutsideAddress+"\n")
	l.Host.SetSysctl("net/ipv4/ip_forward", "0") // the kernel may copy it from where the test runs
	l.Outside.Serve()
	l.Outside.ServeDNS()
	return l
}

// StartDaemon returns a daemon in the lab's host that answers, with the default
// network on a bridge of its own and guests that have a network.
func (l *Lab) StartDaemon(t testing.TB, env ...string) *Daemon {
	t.Helper()
	d := NewDaemon(t, append([]string{"VMAN_NETWORK_MODE=bridge", BootDisk("net")}, env...)...)
	d.Host = l.Host
	d.Start()
	d.CreateTemplate()
	return d
}

// Run runs a part of a test: what fails in it is the part's, also of the
// namespaces, the daemon and its guests.
func (l *Lab) Run(d *Daemon, name string, f func(t *testing.T)) {
	group, ok := d.T.(*testing.T)
	if !ok {
		d.T.Fatal("only a test has parts")
	}
	group.Run(name, func(t *testing.T) {
		defer l.SetT(d, group)
		l.SetT(d, t)
		f(t)
	})
}

// SetT makes t the test that the failures are of.
func (l *Lab) SetT(d *Daemon, t testing.TB) {
	d.SetT(t)
	l.Host.T, l.Outside.T, l.Other.T = t, t, t
}
