package vmtest

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"vmand/vm"
)

// A Network is a [vm.HostNetwork] that does not change the host and records the calls of its
// methods. The zero value is ready for use. It is safe for concurrent use.
type Network struct {
	// Hook, if set, is called at the begin of every method that changes something, with the
	// name of the method and of the network or the id of the VM. The method returns its error.
	Hook func(ctx context.Context, method, name string) error

	mu    sync.Mutex
	calls []string
	drift []vm.Drift
	probs []vm.NetworkProblem
	taken []netip.Addr
	found map[string][]vm.LearnedAddress
}

var _ vm.HostNetwork = (*Network)(nil)

// do calls the hook and records the call.
func (n *Network) do(ctx context.Context, method, name string) error {
	if n.Hook != nil {
		if err := n.Hook(ctx, method, name); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = append(n.calls, method+" "+name)
	return ctx.Err()
}

// Calls returns the calls of methods that change something, as "Method name", in order.
func (n *Network) Calls() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.calls)
}

// SetDrift sets the differences that Reconcile finds.
func (n *Network) SetDrift(drift ...vm.Drift) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drift = drift
}

// SetDeclined sets the addresses that guests have declined.
func (n *Network) SetDeclined(addresses ...netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.taken = addresses
}

// Declined returns the addresses that the test has set.
func (n *Network) Declined(string) []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.taken
}

// SetProblems sets the problems that Reconcile finds.
func (n *Network) SetProblems(problems ...vm.NetworkProblem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.probs = problems
}

// SetLearned sets the addresses of a guest that Reconcile observes.
func (n *Network) SetLearned(vmID string, addresses ...vm.LearnedAddress) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.found == nil {
		n.found = map[string][]vm.LearnedAddress{}
	}
	n.found[vmID] = addresses
}

// Check returns the error of the hook.
func (n *Network) Check(mode vm.NetworkMode) error {
	if n.Hook != nil {
		return n.Hook(context.Background(), "Check", string(mode))
	}
	return nil
}

// FreeSubnet returns preferred, or the first 10.N.0.0/24 that overlaps no subnet in taken.
func (n *Network) FreeSubnet(
	ctx context.Context, preferred netip.Prefix, taken []netip.Prefix,
) (free netip.Prefix, why string, err error) {
	overlaps := func(p netip.Prefix) bool { return slices.ContainsFunc(taken, p.Overlaps) }
	if !overlaps(preferred) {
		return preferred, "", nil
	}
	for i := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 24)
		if !overlaps(p) {
			return p, "it is in use", nil
		}
	}
	return netip.Prefix{}, "", &vm.Fault{Code: vm.CodeNetworkUnavailable, Detail: "no subnet is free"}
}

// Admit only records the call.
func (n *Network) Admit(ctx context.Context, v vm.Network) error {
	return n.do(ctx, "Admit", v.Name)
}

// Up only records the call.
func (n *Network) Up(ctx context.Context, v vm.Network) error {
	return n.do(ctx, "Up", v.Name)
}

// Down only records the call.
func (n *Network) Down(ctx context.Context, v vm.Network) error {
	return n.do(ctx, "Down", v.Name)
}

// Connect returns ports of kind [vm.PortUser].
func (n *Network) Connect(ctx context.Context, v vm.VM, nics []vm.NIC, _ map[string]vm.Network) ([]vm.Port, error) {
	ports := make([]vm.Port, len(nics))
	for i, nic := range nics {
		ports[i] = vm.Port{NIC: nic, Kind: vm.PortUser}
	}
	return ports, n.do(ctx, "Connect", v.ID)
}

// Update only records the call.
func (n *Network) Update(ctx context.Context, v vm.VM, _ map[string]vm.Network) error {
	return n.do(ctx, "Update", v.ID)
}

// Disconnect only records the call.
func (n *Network) Disconnect(ctx context.Context, id string) error {
	return n.do(ctx, "Disconnect", id)
}

// CheckHostPorts only records the call.
func (n *Network) CheckHostPorts(ctx context.Context, f vm.PortForward) error {
	return n.do(ctx, "CheckHostPorts", f.HostAddress.String())
}

// Blocked returns nothing.
func (n *Network) Blocked(context.Context, vm.VM) []vm.BlockedAddress { return nil }

// Probe only records the call.
func (n *Network) Probe(ctx context.Context, v vm.VM, port int) error {
	return n.do(ctx, "Probe", v.ID)
}

// Reconcile returns what SetDrift and SetLearned set.
func (n *Network) Reconcile(ctx context.Context, w vm.Wanted, repair bool) (vm.NetworkSurvey, error) {
	err := n.do(ctx, "Reconcile", "")
	n.mu.Lock()
	defer n.mu.Unlock()
	s := vm.NetworkSurvey{Drift: slices.Clone(n.drift), Problems: n.probs, Learned: n.found}
	for i := range s.Drift {
		s.Drift[i].Repaired = repair
	}
	return s, err
}

// Status returns the bridge of the network.
func (n *Network) Status(ctx context.Context, v vm.Network) vm.NetworkStatus {
	return vm.NetworkStatus{Interfaces: []string{v.Bridge}}
}
