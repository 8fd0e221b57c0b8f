package vm

import (
	"context"
	"net/netip"
)

// HostNetwork implements networks on the host. Every method blocks at most until its context
// ends and is safe for concurrent use. Package manager never calls two methods that change the
// same VM at once.
type HostNetwork interface {
	// Check returns nil if the host supports networks of the given mode, and a [Fault] of code
	// [CodeNetworkUnavailable] with a hint otherwise.
	Check(mode NetworkMode) error
	// FreeSubnet returns preferred if no route of the host leads into it and it overlaps no
	// subnet in taken. Otherwise it returns the next free /24 of the private addresses (RFC
	// 1918) and a text that says why preferred is not free.
	FreeSubnet(
		ctx context.Context, preferred netip.Prefix, taken []netip.Prefix,
	) (free netip.Prefix, why string, err error)
	// Admit returns nil if n, which does not exist yet, can be created: its bridge exists with
	// mode bridge, no interface has its name with another mode, and no route of the host leads
	// into its subnet.
	Admit(ctx context.Context, n Network) error
	// Up creates n or repairs its missing or different parts, and serves DHCP, DNS and router
	// advertisements by the settings of n. It is idempotent.
	Up(ctx context.Context, n Network) error
	// Down removes everything that Up created. It is idempotent.
	Down(ctx context.Context, n Network) error

	// Connect creates the ports of the given NICs of v for a QEMU process that is about to
	// use them, and the firewall rules of v. networks holds the networks of the NICs by name.
	// The caller must close the ports after QEMU has them: a tap that no process has open
	// vanishes.
	Connect(ctx context.Context, v VM, nics []NIC, networks map[string]Network) ([]Port, error)
	// Update applies the addresses, rates and port forwards of v, which has a process, to the
	// host. The forwards of a NIC on a network of mode user are not applied here: QEMU has
	// them.
	Update(ctx context.Context, v VM, networks map[string]Network) error
	// Disconnect removes everything that Connect and Update created for a VM. It is idempotent.
	Disconnect(ctx context.Context, id string) error

	// Declined returns the addresses of a network that guests have declined a short time ago,
	// because another machine uses them.
	Declined(networkName string) []netip.Addr
	// CheckHostPorts returns nil if f can listen on its host ports. It fails with [CodeInUse] if
	// a program of the host uses one of them, and with [CodeInvalid] if the host does not have
	// the address.
	CheckHostPorts(ctx context.Context, f PortForward) error
	// Blocked returns addresses that the guest of v used without a permission within about the last
	// minute, at most one of each NIC and family.
	Blocked(ctx context.Context, v VM) []BlockedAddress
	// Probe returns nil if a TCP port of the guest of v accepts a connection. It fails with
	// [CodeInvalid] if the host can never reach the port.
	Probe(ctx context.Context, v VM, port int) error

	// Reconcile compares the host with w. If repair is true it also repairs the differences.
	Reconcile(ctx context.Context, w Wanted, repair bool) (NetworkSurvey, error)
	// Status returns the state of n on the host. Fields that it cannot observe are empty.
	Status(ctx context.Context, n Network) NetworkStatus
}

// A BlockedAddress is an address that the guest of a NIC may not use. Packets from it are dropped.
type BlockedAddress struct {
	Slot int
	IP   netip.Addr
}

// Wanted is the recorded state that the networks of the host must match.
type Wanted struct {
	Networks []Network
	VMs      []VM // the VMs that have a process
}

// A NetworkSurvey is the result of [HostNetwork.Reconcile].
type NetworkSurvey struct {
	Drift    []Drift
	Problems []NetworkProblem
	Learned  map[string][]LearnedAddress // by VM id: addresses that the host observed and vmand did not assign
}

// A Drift is a difference between the records and the host.
type Drift struct {
	Resource Resource // a network or a VM
	Details  string
	Repaired bool
	Err      error // why the repair failed; nil otherwise
}

// A NetworkStatus is the state of a network on the host.
type NetworkStatus struct {
	Interfaces []string // on the host: the bridge first, then the taps of the VMs
	// Leases holds, by MAC, the leases that DHCP acknowledged since the start of the daemon.
	// Only Acked and Expires are set.
	Leases map[string]Lease
	// DNSLimited is the number of DNS queries that were not answered because of a limit, since
	// the start of the daemon.
	DNSLimited int64
	Problems   []NetworkProblem
}

// A ProblemKind is the stable name of a kind of problem. It is the type of the issue that the
// observer reports.
type ProblemKind string

// The kinds of problems.
const (
	ProblemBlocked  ProblemKind = "network_blocked"  // packets of guests do not reach their destination
	ProblemOverlap  ProblemKind = "network_overlap"  // a route of the host leads into the subnet of a network
	ProblemForward  ProblemKind = "forward_blocked"  // a port forward takes connections from a program, or gets none
	ProblemDNS      ProblemKind = "dns_limited"      // DNS queries of a guest are not answered, because of a limit
	ProblemConflict ProblemKind = "address_conflict" // another machine uses the address of a guest
)

// ProblemKinds lists every kind.
var ProblemKinds = []ProblemKind{ProblemBlocked, ProblemOverlap, ProblemForward, ProblemDNS, ProblemConflict}

// A NetworkProblem is a state of the host or of a guest that prevents a network from working.
// vmand does not repair it: the operator does.
type NetworkProblem struct {
	Kind     ProblemKind
	Resource Resource // a network or a VM
	Detail   string
	Fix      string // the solution, as a command if possible
}
