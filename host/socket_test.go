package host_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"vmand/host"
)

// pair returns the addresses of a TCP connection of this process.
func pair(t *testing.T, address string) (client, server netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip(err) // a host without IPv6
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
}

func TestTheProcessOfASocketIsFound(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			client, server := pair(t, address)
			s, err := host.FindSocket(client, server)
			if err != nil || s.UID != os.Getuid() {
				t.Fatalf("%+v, %v", s, err)
			}
			if !s.MayBeOf("/other", os.Args[0]) {
				t.Error("it is not of this program")
			}
			if s.MayBeOf("/other") {
				t.Error("it is of another program")
			}
		})
	}
	_, err := host.FindSocket(netip.MustParseAddrPort("192.0.2.1:4"), netip.MustParseAddrPort("192.0.2.2:5"))
	if !errors.Is(err, host.ErrNoSocket) {
		t.Errorf("a connection of other hosts: %v", err)
	}
}
