package vm

import (
	"net/netip"
	"os"
)

// PortKind says through what the frames of a NIC go.
type PortKind string

// The kinds of ports.
const (
	PortTap    PortKind = "tap"    // Files[0] is a tap
	PortStream PortKind = "stream" // Files[0] is a connected stream socket, each frame after its length in 4 bytes
	PortUser   PortKind = "user"   // QEMU's own user-mode network (libslirp)
)

// A Port is what a NIC is connected to, as QEMU gets it.
type Port struct {
	NIC
	Kind  PortKind
	Files []*os.File
	VHost *os.File // /dev/vhost-net, for a tap; nil for none
	MTU   int      // 0: 1500

	// For PortUser:
	Subnet   netip.Prefix
	Gateway  netip.Addr // the host, as the guest sees it
	Domain   string
	Restrict bool
	Forwards []PortForward
}

// ClosePorts closes the files of ports; those of QEMU stay open.
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
