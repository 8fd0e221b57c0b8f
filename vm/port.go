package vm

import (
	"net/netip"
	"os"
)

// PortKind is the kind of backend of a NIC.
type PortKind string

// The kinds of ports.
const (
	PortTap    PortKind = "tap"    // Files[0] is a tap device
	PortStream PortKind = "stream" // Files[0] is a connected stream socket; a 4-byte length precedes each frame
	PortUser   PortKind = "user"   // the user-mode network inside QEMU (libslirp)
)

// A Port is a NIC with its backend on the host, in the form that QEMU needs.
type Port struct {
	NIC
	Kind  PortKind
	Files []*os.File
	VHost *os.File // /dev/vhost-net, for PortTap; nil for none
	MTU   int      // bytes; 0: 1500

	// The fields below are for PortUser only.
	Subnet   netip.Prefix
	Gateway  netip.Addr // the address of the host in Subnet
	Domain   string
	Restrict bool
	Forwards []PortForward
}

// ClosePorts closes the files of ports. The duplicates that QEMU has stay open.
func ClosePorts(ports []Port) {
	for _, p := range ports {
		for _, f := range p.Files {
			f.Close()
		}
		if p.VHost != nil {
			p.VHost.Close()
		}
	}
}
