// Package network implements the networks of package vm on the host: see [Networks].
//
// As root, a network of mode nat or isolated is a bridge of its own and a NIC is a tap; QEMU
// inherits the tap's file. nftables limits the traffic of a guest: rules.go holds the rules,
// elements.go the entries for each network and VM. The packages below this one serve DHCP,
// DNS and router advertisements. Without privileges only networks of mode user work; there
// each NIC has a process of its own: passt, or QEMU's libslirp.
//
// The daemon finds everything on the host again by name and mark: a bridge has the
// name of its network and the alias "vmand", the name of a tap derives from the UUID
// of its VM, and the nftables tables are called "vman". After a kill between any two
// steps, the next daemon observes the host and repairs it. Everything but the servers
// keeps working while no daemon runs.
//
// The word network has three meanings. In this package nw is a record (vm.Network), n
// is the host's side (*Networks, the vm.HostNetwork), and a name is a networkName.
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

	diag "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"

	"vmand/host"
	"vmand/vm"
)

// Modes of [Options].
const (
	ModeAuto   = "auto"   // ModeBridge where the host permits it, else ModeUser
	ModeBridge = "bridge" // networks of every mode
	ModeUser   = "user"   // networks of mode user only
)

// netlinkTimeout is the longest wait for the kernel's reply to one request.
const netlinkTimeout = 5 * time.Second

// Directory finds the recorded lease of a NIC. It returns an error of class
// [vm.ErrNotFound] if there is none.
type Directory interface {
	LeaseByMAC(ctx context.Context, networkName, mac string) (vm.Lease, error)
	LeaseByName(ctx context.Context, networkName, hostname string) (vm.Lease, error)
	LeaseByIP(ctx context.Context, networkName string, ip netip.Addr) (vm.Lease, error)
}

// Options configure [Networks].
type Options struct {
	Mode       string    // ModeAuto, ModeBridge or ModeUser; empty: ModeAuto
	RuntimeDir string    // keeps the previous values of the host's sysctls until the host boots
	Directory  Directory // the recorded leases
	Passt      string    // the program; empty: "passt"
	Nice       int       // nice value of passt, if it is higher than vmand's
}

// Networks manages the networks of the network namespace that vmand was started in. It
// implements [vm.HostNetwork] and is safe for concurrent use.
type Networks struct {
	o     Options
	log   *slog.Logger
	mode  string          // ModeBridge or ModeUser
	why   string          // why it is that mode
	owner io.Closer       // holds the port that only one daemon can have; nil in mode user
	links *netlink.Handle // nil if the host has no netlink
	acks  *acks           // delivered by Watch

	mu          sync.Mutex // guards the fields below, and every change of the host except to taps
	firewall    *firewall  // nil in mode user
	sysctls     *sysctls
	adopted     bool                 // a repairing pass has taken over the tables of an earlier daemon
	serving     map[string]*servers  // by network name
	tapLimits   map[string]int       // by tap name: the limit set on it, in kbit/s
	missingTaps map[string]bool      // by tap name: missing in the previous pass
	leftovers   map[string]time.Time // since when something on the host has had no record
	vmRevisions map[string]int64     // by VM id: the revision of the record that its rules follow
	foreign     rulesetCache         // the firewall rules of other programs
	used        subnetCache          // the subnets of the host's routes
	sockets     *diag.Conn           // for the listening sockets of the host; nil if the kernel lacks sock_diag
	programs    programs
}

var _ vm.HostNetwork = (*Networks)(nil)

// New returns the networks of the calling thread's network namespace. With
// [ModeBridge] it fails if the host does not permit bridges or another daemon manages
// the namespace. It changes nothing on the host.
func New(o Options, log *slog.Logger) (*Networks, error) {
	if o.Mode == "" {
		o.Mode = ModeAuto
	}
	if o.Passt == "" {
		o.Passt = "passt"
	}
	n := &Networks{
		o:           o,
		log:         log,
		acks:        newAcks(),
		serving:     map[string]*servers{},
		tapLimits:   map[string]int{},
		missingTaps: map[string]bool{},
		leftovers:   map[string]time.Time{},
		vmRevisions: map[string]int64{},
	}
	if links, err := netlink.NewHandle(syscall.NETLINK_ROUTE); err == nil {
		n.links = links
		if err := links.SetSocketTimeout(netlinkTimeout); err != nil {
			return nil, fmt.Errorf("set the timeout of netlink: %w", err)
		}
	}
	if conn, err := host.OpenSocketDiag(); err == nil {
		n.sockets = conn
	}
	switch o.Mode {
	case ModeUser:
		n.mode, n.why = ModeUser, "network.mode is user"
		return n, nil
	case ModeAuto, ModeBridge:
	default:
		return nil, fmt.Errorf("network.mode is %q: it must be auto, bridge or user", o.Mode)
	}
	err := n.acquire()
	switch {
	case err == nil && o.Mode == ModeBridge:
		n.mode, n.why = ModeBridge, "network.mode is bridge"
	case err == nil:
		n.mode, n.why = ModeBridge, "vmand may configure the host's network"
	case o.Mode == ModeBridge:
		n.Close()
		return nil, fmt.Errorf("network.mode is bridge: %w", err)
	default:
		n.mode, n.why = ModeUser, err.Error()
	}
	return n, nil
}

// acquire opens what networks with bridges need: privileges, the ownership of the
// namespace, the firewall. Its error says which one is missing.
func (n *Networks) acquire() error {
	if err := checkPrivileges(); err != nil {
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

// Mode returns ModeBridge or ModeUser, and the reason in words.
func (n *Networks) Mode() (mode, why string) { return n.mode, n.why }

// Close stops the servers and gives up the ownership of the namespace. Bridges, taps
// and rules stay, so VMs keep their network.
func (n *Networks) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for networkName, s := range n.serving {
		s.close(n.log)
		delete(n.serving, networkName)
	}
	if n.firewall != nil {
		n.firewall.close()
	}
	if n.links != nil {
		n.links.Close()
	}
	if n.sockets != nil {
		n.sockets.Close()
		n.sockets = nil
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
	return &vm.Fault{
		Code:   vm.CodeNetworkUnavailable,
		Detail: fmt.Sprintf("this host supports only networks of mode user, not %s: %s", mode, n.why),
		Hint:   "run one vmand as root with network.mode auto or bridge, or use a network of mode user",
	}
}

// unavailable returns the fault of something that the host cannot provide now. err may
// be nil.
func unavailable(err error, format string, args ...any) *vm.Fault {
	return &vm.Fault{Code: vm.CodeNetworkUnavailable, Detail: fmt.Sprintf(format, args...), Err: err}
}
