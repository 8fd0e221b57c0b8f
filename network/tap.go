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
	// tapPatience is how long a tap may still be held by a QEMU that has ended.
	tapPatience = 2 * time.Second
	tapRetry    = 10 * time.Millisecond
)

const vhostDevice = "/dev/vhost-net"

// tapName returns the interface of a NIC: "vt", 40 bits of a hash of the VM's
// UUID and the slot, 14 bytes of the 15 that a name may have.
func tapName(uuid string, slot int) string {
	sum := sha256.Sum256([]byte(uuid))
	return "vt" + hex.EncodeToString(sum[:5]) + "-" + strconv.Itoa(slot)
}

// tapAlias says on the interface whose it is, for people and for [Networks.Status].
func tapAlias(id string, slot int) string { return fmt.Sprintf("%s %s %d", alias, id, slot) }

// isTap reports whether an interface is a tap of ours.
func isTap(l netlink.Link) bool {
	return l.Type() == "tuntap" && strings.HasPrefix(l.Attrs().Alias, alias+" ")
}

// makeTap returns a new tap. It lives as long as somebody has the file open, so
// it goes with its QEMU. A tap of that name that a QEMU at its end still holds
// is waited for.
func makeTap(ctx context.Context, name string) (*os.File, error) {
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

// connectTap makes the tap of a NIC and puts it on its bridge.
func (n *Networks) connectTap(ctx context.Context, v vm.VM, nic vm.NIC, nw vm.Network) (p vm.Port, err error) {
	name := tapName(v.UUID, nic.Slot)
	if nw.Mode.Managed() && nic.MAC == bridgeMAC(nw.Bridge).String() {
		return p, &vm.Fault{Code: vm.CodeInvalid, Detail: fmt.Sprintf("NIC %d of vm %s has the MAC address of the gateway of network %s", nic.Slot, v.ID, nw.Name),
			Hint: "give it another one"}
	}
	p = vm.Port{NIC: nic, Kind: vm.PortTap, MTU: nw.MTU}
	bridge, err := n.bridgeOf(nw)
	if err != nil {
		return p, err
	}
	f, err := makeTap(ctx, name)
	if err != nil {
		return p, unavailable(err, "make the tap %s for NIC %d of vm %s", name, nic.Slot, v.ID)
	}
	p.Files = []*os.File{f}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	failpoint.Hit("tap.made")
	tap, err := n.links.LinkByName(name)
	if err == nil {
		err = n.links.LinkSetAlias(tap, tapAlias(v.ID, nic.Slot))
	}
	if err == nil {
		err = silence(name)
	}
	if err == nil {
		err = n.fitTap(nw, tap, bridge)
	}
	if err == nil {
		err = n.pin(tap, nic.MAC)
	}
	if err == nil {
		n.forget(name)
		err = n.shape(name, tap.Attrs().Index, nic.RateIn)
	}
	if err != nil {
		return p, unavailable(err, "put the tap %s of vm %s on the bridge %s", name, v.ID, nw.Bridge)
	}
	failpoint.Hit("tap.bridged")
	if vhost, err := os.OpenFile(vhostDevice, os.O_RDWR, 0); err == nil {
		p.VHost = vhost
	}
	return p, nil
}

// bridgeOf returns the bridge of a network that is up.
func (n *Networks) bridgeOf(nw vm.Network) (netlink.Link, error) {
	if nw.Mode == vm.NetworkBridge {
		return n.hostBridge(nw)
	}
	bridge, err := n.find(nw.Bridge)
	if err != nil {
		return nil, err
	}
	if bridge == nil || !ours(bridge) {
		return nil, unavailable(nil, "the bridge %s of network %s is not there", nw.Bridge, nw.Name)
	}
	return bridge, nil
}

// silence keeps the host's own IPv6 from the tap: what it would ask there, the
// guest would hear.
func silence(name string) error {
	err := setSysctl("ipv6/conf/"+name+"/disable_ipv6", "1")
	if errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
		return nil
	}
	return err
}

// fitTap makes a tap as its network is: MTU, bridge, isolation, no learning,
// hairpin mode, VLAN, up.
func (n *Networks) fitTap(nw vm.Network, tap, bridge netlink.Link) error {
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
	// A bridge learns from frames to reserved group addresses too, which no rule
	// sees, so a guest could take the MAC of another: where it is, pin says.
	if err := n.links.LinkSetLearning(tap, false); err != nil {
		return fmt.Errorf("keep the bridge from learning by it: %w", err)
	}
	// With br_netfilter, what a guest sends to its own port forward is given its
	// new destination before the bridge knows of it, and goes back by the same port.
	if !joins || nw.Mode == vm.NetworkNAT {
		if err := n.links.LinkSetHairpin(tap, nw.Mode == vm.NetworkNAT); err != nil {
			return fmt.Errorf("set its hairpin mode: %w", err)
		}
	}
	if nw.VLAN != 0 {
		if err := n.tag(tap, nw.VLAN); err != nil {
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

// pin tells the bridge that a tap is on which MAC is behind it, in every VLAN
// that the tap is in.
func (n *Networks) pin(tap netlink.Link, mac string) error {
	address, err := net.ParseMAC(mac)
	if err == nil {
		err = n.links.NeighSet(&netlink.Neigh{LinkIndex: tap.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP,
			Flags: netlink.NTF_MASTER, HardwareAddr: address})
	}
	if err != nil {
		return fmt.Errorf("tell the bridge of %s: %w", mac, err)
	}
	return nil
}

// tag puts a tap into one VLAN, untagged, and out of the bridge's default one.
func (n *Networks) tag(tap netlink.Link, vlan int) error {
	if err := n.links.BridgeVlanAdd(tap, uint16(vlan), true, true, false, true); err != nil {
		return fmt.Errorf("put it into VLAN %d: %w", vlan, err)
	}
	if vlan == 1 {
		return nil
	}
	if err := n.links.BridgeVlanDel(tap, 1, true, true, false, true); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("take it out of VLAN 1: %w", err)
	}
	return nil
}

// shape limits what a guest gets, in kbit/s; 0 for no limit. What the host sends
// to a tap is queued in a token bucket filter that lets a twentieth of a second
// through at once and drops what waits for longer than a fifth.
func (n *Networks) shape(name string, index, kbit int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reshape(name, index, kbit)
}

// forget notes that a tap is new, and so without a limit.
func (n *Networks) forget(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shaped[name] = 0
}

// reshape is shape for a caller that holds n.mu.
func (n *Networks) reshape(name string, index, kbit int) error {
	had, known := n.shaped[name]
	if known && had == kbit {
		return nil
	}
	attrs := netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	tbf := tokenBucket(attrs, kbit)
	var err error
	if kbit > 0 {
		err = n.links.QdiscReplace(tbf)
	} else if err = n.links.QdiscDel(tbf); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // there is none
		err = nil
	}
	if err != nil {
		return fmt.Errorf("limit it to %d kbit/s: %w", kbit, err)
	}
	n.shaped[name] = kbit
	return nil
}

func tokenBucket(attrs netlink.QdiscAttrs, kbit int) *netlink.Tbf {
	rate := uint64(kbit) * 1000 / 8
	burst := min(max(rate/20, 16<<10), 1<<30)
	return &netlink.Tbf{QdiscAttrs: attrs, Rate: rate, Buffer: netlink.Xmittime(max(rate, 1), uint32(burst)),
		Limit: uint32(min(burst+rate/5, 1<<31))}
}
