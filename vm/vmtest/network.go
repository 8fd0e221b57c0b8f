package vmtest

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"vmand/vm"
)

// A Network is a vm.HostNetwork that makes nothing on the host and remembers what it
// was told. Its zero value is ready.
type Network struct {
	// Hook, when set, is called before every method that acts, with the
	// method's name and the network's or the VM's. The error it returns is the
	// method's.
	Hook func(ctx context.Context, method, name string) error

	mu    sync.Mutex
	calls []string
	drift []vm.Drift
	found map[string][]vm.LearnedAddress
}

var _ vm.HostNetwork = (*Network)(nil)

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

// Calls returns the methods that acted, as "Method name", in order.
func (n *Network) Calls() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.calls)
}

// SetDrift makes Reconcile find something.
func (n *Network) SetDrift(drift ...vm.Drift) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drift = drift
}

// SetLearned makes Reconcile see a guest's addresses.
func (n *Network) SetLearned(vmID string, addresses ...vm.LearnedAddress) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.found == nil {
		n.found = map[string][]vm.LearnedAddress{}
	}
	n.found[vmID] = addresses
}

// Check asks the hook.
func (n *Network) Check(mode vm.NetworkMode) error {
	if n.Hook != nil {
		return n.Hook(context.Background(), "Check", string(mode))
	}
	return nil
}

// FreeSubnet returns wish, or the first 10.N.0.0/24 that overlaps none of taken.
func (n *Network) FreeSubnet(ctx context.Context, wish netip.Prefix, taken []netip.Prefix) (netip.Prefix, string, error) {
	overlaps := func(p netip.Prefix) bool { return slices.ContainsFunc(taken, p.Overlaps) }
	if !overlaps(wish) {
		return wish, "", nil
	}
	for i := range 256 {
		if p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 24); !overlaps(p) {
			return p, "it is taken", nil
		}
	}
	return netip.Prefix{}, "", &vm.Fault{Code: vm.CodeNetworkUnavailable, Detail: "no subnet is free"}
}

// Admit asks the hook.
func (n *Network) Admit(ctx context.Context, v vm.Network) error {
	return n.do(ctx, "Admit", v.Name)
}

// Up does nothing.
func (n *Network) Up(ctx context.Context, v vm.Network) error { return n.do(ctx, "Up", v.Name) }

// Down does nothing.
func (n *Network) Down(ctx context.Context, v vm.Network) error {
	return n.do(ctx, "Down", v.Name)
}

// Connect returns user-mode ports.
func (n *Network) Connect(ctx context.Context, v vm.VM, nics []vm.NIC, _ map[string]vm.Network) ([]vm.Port, error) {
	ports := make([]vm.Port, len(nics))
	for i, nic := range nics {
		ports[i] = vm.Port{NIC: nic, Kind: vm.PortUser}
	}
	return ports, n.do(ctx, "Connect", v.ID)
}

// Update does nothing.
func (n *Network) Update(ctx context.Context, v vm.VM, _ map[string]vm.Network) error {
	return n.do(ctx, "Update", v.ID)
}

// Disconnect does nothing.
func (n *Network) Disconnect(ctx context.Context, id string) error {
	return n.do(ctx, "Disconnect", id)
}

// CheckHostPort asks the hook.
func (n *Network) CheckHostPort(ctx context.Context, f vm.PortForward) error {
	return n.do(ctx, "CheckHostPort", f.HostAddress.String())
}

// Probe asks the hook.
func (n *Network) Probe(ctx context.Context, v vm.VM, port int) error {
	return n.do(ctx, "Probe", v.ID)
}

// Reconcile returns what was set.
func (n *Network) Reconcile(ctx context.Context, w vm.Wanted, repair bool) (vm.NetworkSurvey, error) {
	err := n.do(ctx, "Reconcile", "")
	n.mu.Lock()
	defer n.mu.Unlock()
	s := vm.NetworkSurvey{Drift: slices.Clone(n.drift), Learned: n.found}
	for i := range s.Drift {
		s.Drift[i].Repaired = repair
	}
	return s, err
}

// Status returns the network's bridge.
func (n *Network) Status(ctx context.Context, v vm.Network) vm.NetworkStatus {
	return vm.NetworkStatus{Interfaces: []string{v.Bridge}}
}
