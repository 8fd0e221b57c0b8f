// Package network connects virtual machines to the world.
//
// There is one way today, QEMU's user-mode network (libslirp): a guest reaches
// out through ordinary sockets of its QEMU process, nobody reaches in, and
// nothing is set up on the host, so no privilege is needed. It implements
// [vm.Network] and imports package vm alone.
//
// A guest on a user-mode network also reaches every service that listens on
// the host's own 127.0.0.1, under the address 10.0.2.2. Loopback is therefore
// no protection: what listens there, this daemon's API included, has to ask for
// credentials of its own.
package network

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"strconv"

	"vmand/vm"
)

// UserMode gives each VM one NIC on a user-mode network of its own.
type UserMode struct{}

var _ vm.Network = (*UserMode)(nil)

// NewUserMode returns the user-mode network. It holds nothing and does no I/O.
func NewUserMode() *UserMode { return &UserMode{} }

// Connect returns the VM's only NIC, slot 0. Its MAC follows from the VM's UUID,
// so a VM keeps it for life and from host to host. It never blocks.
func (*UserMode) Connect(_ context.Context, v vm.VM) ([]vm.NIC, error) {
	if v.UUID == "" {
		return nil, fmt.Errorf("connect vm %s: it has no uuid to derive a mac address from", v.ID)
	}
	return []vm.NIC{{Slot: 0, MAC: macOf(v.UUID, 0).String(), Mode: vm.NICUser}}, nil
}

// Disconnect has nothing to remove: the network ends with the QEMU process.
func (*UserMode) Disconnect(context.Context, string) error { return nil }

// macOf returns the MAC address of the NIC in a slot of the VM with the given
// UUID: the octet 0x52 and the first 40 bits of the SHA-256 of both.
//
// In 0x52 the bit "locally administered" is set and the bit "group" is not
// (IEEE 802, section 8.4), so no vendor owns the address and it is a unicast
// one. QEMU's customary prefix 52:54:00 would leave 24 bits, and a thousand VMs
// on one network would then hold two alike in one case of 34; with 40 bits it
// is one in two million.
func macOf(uuid string, slot int) net.HardwareAddr {
	sum := sha256.Sum256([]byte(uuid + "/nic/" + strconv.Itoa(slot)))
	return append(net.HardwareAddr{0x52}, sum[:5]...)
}
