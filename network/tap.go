package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/failpoint"
	"vmand/vm"
)

const (
	// tapPatience is the longest wait for a QEMU that is ending to release a tap.
	tapPatience = 2 * time.Second
	tapRetry    = 10 * time.Millisecond
)

const vhostDevice = "/dev/vhost-net"

// tapName returns the name of the interface of a NIC: "vt", 40 bits of a hash of the VM's
// UUID, and the slot. These are 14 bytes; a name may have 15.
func tapName(uuid string, slot int) string {
	sum := sha256.Sum256([]byte(uuid))
	return "vt" + hex.EncodeToString(sum[:5]) + "-" + strconv.Itoa(slot)
}

// tapAlias returns the alias of a tap. It shows the VM and the slot to an administrator.
func tapAlias(id string, slot int) string { return fmt.Sprintf("%s %s %d", alias, id, slot) }

// isTap reports whether an interface is a tap of vmand.
func isTap(l netlink.Link) bool {
	return l.Type() == "tuntap" && strings.HasPrefix(l.Attrs().Alias, alias+" ")
}

// createTap creates a tap. The tap exists as long as a process has the file open, so it
// vanishes with its QEMU. createTap waits for up to tapPatience while an ending QEMU
// holds a tap with the name.
func createTap(ctx context.Context, name string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, tapPatience)
	defer cancel()
	for {
		f, err := openTap(name)
		if !errors.Is(err, unix.EBUSY) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another process has it open: %w", err)
		case <-time.After(tapRetry):
		}
	}
}

func openTap(name string) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: tunDevice, Err: err}
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// connectTap creates the tap of a NIC and adds it to the bridge of its network.
func (n *Networks) connectTap(ctx context.Context, v vm.VM, nic vm.NIC, nw vm.Network) (p vm.Port, err error) {
	name := tapName(v.UUID, nic.Slot)
	if nw.Mode.Managed() && nic.MAC == bridgeMAC(nw.Bridge).String() {
		return p, &vm.Fault{
			Code: vm.CodeInvalid,
			Detail: fmt.Sprintf("NIC %d of VM %s has the MAC address of the gateway of network %s",
				nic.Slot, v.ID, nw.Name),
			Hint: "give the NIC another MAC address",
		}
	}
	p = vm.Port{NIC: nic, Kind: vm.PortTap, MTU: nw.MTU}
	bridge, err := n.activeBridge(nw)
	if err != nil {
		return p, err
	}
	f, err := createTap(ctx, name)
	if err != nil {
		return p, unavailable(err, "create the tap %s for NIC %d of VM %s", name, nic.Slot, v.ID)
	}
	p.Files = []*os.File{f}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	failpoint.Hit("tap.made")
	if err := n.configureNewTap(v, nic, nw, bridge); err != nil {
		return p, unavailable(err, "add the tap %s of VM %s to the bridge %s", name, v.ID, nw.Bridge)
	}
	failpoint.Hit("tap.bridged")
	if vhost, err := os.OpenFile(vhostDevice, os.O_RDWR, 0); err == nil {
		p.VHost = vhost
	}
	return p, nil
}

// configureNewTap marks the tap of a NIC, adds it to a bridge and limits its rate.
func (n *Networks) configureNewTap(v vm.VM, nic vm.NIC, nw vm.Network, bridge netlink.Link) error {
	name := tapName(v.UUID, nic.Slot)
	tap, err := n.links.LinkByName(name)
	if err != nil {
		return err
	}
	if err := n.links.LinkSetAlias(tap, tapAlias(v.ID, nic.Slot)); err != nil {
		return err
	}
	if err := disableIPv6(name); err != nil {
		return err
	}
	if err := n.configureTap(nw, tap, bridge); err != nil {
		return err
	}
	if err := n.addStaticMAC(tap, nic.MAC); err != nil {
		return err
	}
	n.noteUnlimited(name)
	return n.limitTap(name, tap.Attrs().Index, nic.RateIn)
}

// disableIPv6 disables the host's IPv6 on a tap, so the host sends nothing to the guest
// on its own.
func disableIPv6(name string) error {
	err := setSysctl("ipv6/conf/"+name+"/disable_ipv6", "1")
	if errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
		return nil
	}
	return err
}

// configureTap configures a tap for its network: MTU, bridge, isolation, no learning,
// hairpin mode, VLAN, up.
func (n *Networks) configureTap(nw vm.Network, tap, bridge netlink.Link) error {
	a := tap.Attrs()
	if a.MTU != mtu(nw) && (nw.MTU != 0 || nw.Mode.Managed()) {
		if err := n.links.LinkSetMTU(tap, mtu(nw)); err != nil {
			return fmt.Errorf("set its MTU to %d: %w", mtu(nw), err)
		}
	}
	joins := a.MasterIndex != bridge.Attrs().Index
	if joins {
		if err := n.links.LinkSetMaster(tap, bridge); err != nil {
			return fmt.Errorf("add it to the bridge: %w", err)
		}
	}
	if !joins || nw.IsolateVMs {
		if err := n.links.LinkSetIsolated(tap, nw.IsolateVMs); err != nil {
			return fmt.Errorf("isolate it: %w", err)
		}
	}
	// A bridge also learns from frames to reserved group addresses, which pass no rule,
	// so a guest could take the MAC address of another. addStaticMAC replaces learning.
	if err := n.links.LinkSetLearning(tap, false); err != nil {
		return fmt.Errorf("disable learning: %w", err)
	}
	// With br_netfilter, a frame from a guest to its own port forward gets its new
	// destination before the bridge chooses a port, and leaves by the port it came from.
	if !joins || nw.Mode == vm.NetworkNAT {
		if err := n.links.LinkSetHairpin(tap, nw.Mode == vm.NetworkNAT); err != nil {
			return fmt.Errorf("set its hairpin mode: %w", err)
		}
	}
	if joins && nw.VLAN != 0 { // a change of the VLAN takes effect at the next start
		if err := n.joinVLAN(tap, nw.VLAN); err != nil {
			return err
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := n.links.LinkSetUp(tap); err != nil {
			return fmt.Errorf("bring it up: %w", err)
		}
	}
	return nil
}

// addStaticMAC adds a MAC address behind a tap to the forwarding table of its bridge, in
// every VLAN of the tap.
func (n *Networks) addStaticMAC(tap netlink.Link, mac string) error {
	address, err := net.ParseMAC(mac)
	if err == nil {
		err = n.links.NeighSet(&netlink.Neigh{
			LinkIndex:    tap.Attrs().Index,
			Family:       unix.AF_BRIDGE,
			State:        netlink.NUD_NOARP,
			Flags:        netlink.NTF_MASTER,
			HardwareAddr: address,
		})
	}
	if err != nil {
		return fmt.Errorf("add %s to the bridge's forwarding table: %w", mac, err)
	}
	return nil
}

// joinVLAN puts a tap into one VLAN, untagged, and removes it from the bridge's default
// VLAN 1.
func (n *Networks) joinVLAN(tap netlink.Link, vlan int) error {
	if err := n.links.BridgeVlanAdd(tap, uint16(vlan), true, true, false, true); err != nil {
		return fmt.Errorf("put it into VLAN %d: %w", vlan, err)
	}
	if vlan == 1 {
		return nil
	}
	err := n.links.BridgeVlanDel(tap, 1, true, true, false, true)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove it from VLAN 1: %w", err)
	}
	return nil
}

// limitTap limits the rate that a guest receives, in kbit/s; 0 removes the limit. It must
// be called without mu held.
func (n *Networks) limitTap(name string, index, kbit int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.limitTapLocked(name, index, kbit)
}

// noteUnlimited records that a tap is new and so has no limit.
func (n *Networks) noteUnlimited(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tapLimits[name] = 0
}

// limitTapLocked is limitTap; it must be called with mu held. It is a no-op if the tap has
// the limit already.
func (n *Networks) limitTapLocked(name string, index, kbit int) error {
	had, known := n.tapLimits[name]
	if known && had == kbit {
		return nil
	}
	tbf := tokenBucket(index, kbit)
	var err error
	if kbit > 0 {
		err = n.links.QdiscReplace(tbf)
	} else {
		err = n.links.QdiscDel(tbf)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // it had none
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("limit it to %d kbit/s: %w", kbit, err)
	}
	n.tapLimits[name] = kbit
	return nil
}

// tokenBucket returns a token bucket filter for the frames that the host sends to a tap.
// It passes bursts of a twentieth of a second and drops what would wait for longer than a
// fifth.
func tokenBucket(index, kbit int) *netlink.Tbf {
	rate := uint64(kbit) * 1000 / 8
	burst := min(max(rate/20, 16<<10), 1<<30)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: index,
			Handle:    netlink.MakeHandle(1, 0),
			Parent:    netlink.HANDLE_ROOT,
		},
		Rate:   rate,
		Buffer: netlink.Xmittime(max(rate, 1), uint32(burst)),
		Limit:  uint32(min(burst+rate/5, 1<<31)),
	}
}
