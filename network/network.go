// Package network connects virtual machines to the world: [Networks] is the
// host's side of the networks of package vm.
//
// As root, a network of mode nat or isolated is a bridge of its own, a NIC is a
// tap on it whose file QEMU gets, and what a guest may send is held by nftables
// (rules.go says by which rules, elements.go for whom). DHCP, DNS and router
// advertisements are served by the packages below this one. Without privileges
// there are networks of mode user alone, where each NIC has a process of its
// own: passt, or QEMU's libslirp.
//
// Everything on the host is found again by name and mark: bridges are called as
// their network and carry the alias "vmand", taps are called after their VM's
// UUID, the nftables tables are called "vman". So a daemon that was killed
// between any two steps is followed by one that sees the rest and repairs it.
// All but the servers goes on while no daemon runs.
package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"vmand/vm"
)

// Modes of [Options].
const (
	ModeAuto   = "auto"   // bridge if the host lets us, else user
	ModeBridge = "bridge" // networks of every mode
	ModeUser   = "user"   // networks of mode user alone
)

// netlinkTimeout is the longest that the kernel may take for one request.
const netlinkTimeout = 5 * time.Second

// Directory knows who has which address. A miss is an error of class
// [vm.ErrNotFound].
type Directory interface {
	LeaseByMAC(ctx context.Context, network, mac string) (vm.Lease, error)
	LeaseByName(ctx context.Context, network, hostname string) (vm.Lease, error)
	LeaseByIP(ctx context.Context, network string, ip netip.Addr) (vm.Lease, error)
}

// Options are what [Networks] are made of.
type Options struct {
	Mode       string              // ModeAuto, ModeBridge or ModeUser; empty: ModeAuto
	RuntimeDir string              // what the host's sysctls were is kept here until it boots
	Directory  Directory           // the recorded leases
	Passt      string              // the program; empty: "passt"
	Nice       int                 // nice value that passt runs with, if that is higher than vmand's
	User       *syscall.Credential // whom passt runs as if vmand is root; nil: uid and gid 65534
}

// Networks are the networks of the host's network namespace that vmand was
// started in. They implement [vm.HostNetwork].
type Networks struct {
	o     Options
	log   *slog.Logger
	mode  string
	why   string
	owner io.Closer       // holds the port that only one daemon can have; nil in mode user
	links *netlink.Handle // nil if the host has no netlink
	acks  *acks           // delivered by Watch

	mu        sync.Mutex // guards everything that follows, and every change of the host but taps
	firewall  *firewall  // nil in mode user
	sysctls   *sysctls
	serving   map[string]*servers  // by network
	shaped    map[string]int       // by tap: the rate it is limited to, in kbit/s
	absent    map[string]bool      // taps that the last pass has missed
	settled   bool                 // a pass has made the firewall this daemon's
	unwanted  map[string]time.Time // what no record knew, and since when
	revisions map[string]int64     // by VM id: which its rules are of
}

var _ vm.HostNetwork = (*Networks)(nil)

// New returns the networks of the calling thread's network namespace. In mode
// bridge it fails where they cannot be had or another daemon has them. It
// changes nothing on the host.
func New(o Options, log *slog.Logger) (*Networks, error) {
	if o.Mode == "" {
		o.Mode = ModeAuto
	}
	if o.Passt == "" {
		o.Passt = "passt"
	}
	n := &Networks{o: o, log: log, acks: newAcks(), serving: map[string]*servers{}, shaped: map[string]int{}, absent: map[string]bool{}, revisions: map[string]int64{}, unwanted: map[string]time.Time{}}
	if links, err := netlink.NewHandle(syscall.NETLINK_ROUTE); err == nil {
		n.links = links
		if err := links.SetSocketTimeout(netlinkTimeout); err != nil {
			return nil, fmt.Errorf("set the timeout of netlink: %w", err)
		}
	}
	switch o.Mode {
	case ModeUser:
		n.mode, n.why = ModeUser, "network.mode is user"
		return n, nil
	case ModeAuto, ModeBridge:
	default:
		return nil, fmt.Errorf("network.mode is %q: it must be auto, bridge or user", o.Mode)
	}
	err := n.own()
	switch {
	case err == nil && o.Mode == ModeBridge:
		n.mode, n.why = ModeBridge, "network.mode is bridge"
	case err == nil:
		n.mode, n.why = ModeBridge, "vmand may administer the host's network"
	case o.Mode == ModeBridge:
		n.Close()
		return nil, fmt.Errorf("network.mode is bridge: %w", err)
	default:
		n.mode, n.why = ModeUser, err.Error()
	}
	return n, nil
}

// own takes what networks with bridges need, or says what is missing.
func (n *Networks) own() error {
	if err := privileged(); err != nil {
		return err
	}
	if n.links == nil {
		return fmt.Errorf("the kernel has no rtnetlink")
	}
	var err error
	if n.owner, err = claim(); err != nil {
		return err
	}
	if n.firewall, err = newFirewall(); err != nil {
		n.owner.Close()
		n.owner = nil
		return err
	}
	n.sysctls = &sysctls{dir: n.o.RuntimeDir}
	return nil
}

// Mode returns ModeBridge or ModeUser, and why it is that, in words.
func (n *Networks) Mode() (mode, why string) { return n.mode, n.why }

// Close ends the servers and lets another daemon have the networks. Bridges,
// taps and rules stay: VMs go on.
func (n *Networks) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, s := range n.serving {
		s.close(n.log)
		delete(n.serving, name)
	}
	if n.firewall != nil {
		n.firewall.close()
	}
	if n.links != nil {
		n.links.Close()
	}
	if n.owner != nil {
		return n.owner.Close()
	}
	return nil
}

// Check implements [vm.HostNetwork].
func (n *Networks) Check(mode vm.NetworkMode) error {
	if mode == vm.NetworkUser || n.mode == ModeBridge {
		return nil
	}
	return &vm.Fault{Code: vm.CodeNetworkUnavailable,
		Detail: fmt.Sprintf("this host can only have networks of mode user, not %s: %s", mode, n.why),
		Hint:   "run one vmand as root, with network.mode auto or bridge, or use a network of mode user"}
}

// unavailable is the fault of a network that the host cannot have now.
func unavailable(err error, format string, args ...any) *vm.Fault {
	return &vm.Fault{Code: vm.CodeNetworkUnavailable, Detail: fmt.Sprintf(format, args...), Err: err}
}
