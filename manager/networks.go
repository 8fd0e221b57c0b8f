package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"vmand/failpoint"
	"vmand/vm"
)

const (
	networkTimeout = time.Minute
	allNetworks    = "networks" // the resource that changes of any network hold, so that no two get one subnet
)

// Create makes a network, on the host and in the records, and returns it.
// Without a subnet it gets one that is free.
func (s *Networks) Create(ctx context.Context, n vm.Network) (vm.Network, error) {
	if !vm.ValidName(n.Name) || len(n.Name) > vm.MaxNetworkName {
		return n, vm.InvalidField("/name", "must be 1 to %d of a-z, 0-9 and '-', and begin and end with a letter or a digit", vm.MaxNetworkName)
	}
	if n.Name == "all" || n.Name == "default" {
		return n, vm.InvalidField("/name", "%q is what the kernel calls the settings of all interfaces: no interface can have that name", n.Name)
	}
	made := false
	r, err := s.begin(ctx, change{
		kind: vm.NetworkCreate, resources: []string{vm.NetworkResource(n.Name), allNetworks}, timeout: networkTimeout, claim: claim{patient: true},
		intent: func(ctx context.Context, _ *run) (_ vm.Change, err error) {
			n, err = s.plan(ctx, n)
			return vm.Change{}, err
		},
		act: func(ctx context.Context, _ *run) (vm.Change, error) {
			made = true
			if err := s.network.Up(ctx, n); err != nil {
				return vm.Change{}, err
			}
			failpoint.Hit("network.up")
			n.CreatedAt = now()
			return vm.Change{NewNetwork: &n}, nil
		},
		truth: func(ctx context.Context) (vm.Change, error) {
			if made {
				return vm.Change{}, s.removeLeftover(ctx, n.Name)
			}
			return vm.Change{}, nil
		},
	})
	if err != nil {
		return n, err
	}
	if _, err := r.wait(ctx); err != nil {
		return n, err
	}
	return s.store.Network(ctx, n.Name)
}

// plan completes and checks a network that is to be made.
func (s *Networks) plan(ctx context.Context, n vm.Network) (vm.Network, error) {
	switch _, err := s.store.Network(ctx, n.Name); {
	case err == nil:
		return n, &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("network %s already exists", n.Name)}
	case !errors.Is(err, vm.ErrNotFound):
		return n, err
	}
	if err := n.CheckMode(); err != nil {
		return n, err
	}
	if err := s.network.Check(n.Mode); err != nil {
		return n, err
	}
	if n.Mode.Managed() {
		n.Bridge = n.Name
		if err := s.placeSubnet(ctx, &n); err != nil {
			return n, err
		}
	}
	if n.Mode != vm.NetworkBridge {
		n.Domain = cmp.Or(n.Domain, n.Name+".internal")
	}
	if n.Mode == vm.NetworkUser && !n.Subnet.IsValid() {
		n.Subnet = userSubnet
	}
	if n.Subnet.IsValid() && !n.Gateway.IsValid() {
		n.Gateway = n.DefaultGateway()
	}
	if err := n.Check(); err != nil {
		return n, err
	}
	return n, s.network.Admit(ctx, n)
}

var (
	userSubnet  = netip.MustParsePrefix("10.0.2.0/24")
	firstSubnet = netip.MustParsePrefix("192.168.100.0/24")
)

// placeSubnet finds a subnet for n, or makes sure that the one it is to have is
// no other network's.
func (s *Networks) placeSubnet(ctx context.Context, n *vm.Network) error {
	others, err := s.store.Networks(ctx, vm.Page{})
	if err != nil {
		return err
	}
	var taken []netip.Prefix
	for _, o := range others {
		if !o.Mode.Managed() || o.Name == n.Name {
			continue
		}
		taken = append(taken, o.Subnet)
		for field, both := range map[string][2]netip.Prefix{"/subnet": {o.Subnet, n.Subnet}, "/ipv6_subnet": {o.IPv6, n.IPv6}} {
			if both[0].IsValid() && both[1].IsValid() && both[0].Overlaps(both[1]) {
				return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("%s: %s overlaps %s of network %s", field, both[1], both[0], o.Name),
					Fields: []vm.FieldFault{{Field: field, Detail: "overlaps that of network " + o.Name}}}
			}
		}
	}
	if n.Subnet.IsValid() {
		return nil
	}
	free, why, err := s.network.FreeSubnet(ctx, firstSubnet, taken)
	if err != nil {
		return err
	}
	if why != "" && n.Name == vm.DefaultNetwork { // the others cannot all have it
		s.log.Warn("a network gets another subnet than the usual one", "network", n.Name, "subnet", free, "usual", firstSubnet, "why", why)
	}
	n.Subnet = free
	return nil
}

// Update changes a network and returns it.
func (s *Networks) Update(ctx context.Context, name string, e vm.NetworkEdits, match vm.Match) (vm.Network, error) {
	var n vm.Network
	r, err := s.begin(ctx, change{
		kind: vm.NetworkUpdate, resources: []string{vm.NetworkResource(name), allNetworks}, timeout: networkTimeout, claim: claim{patient: true},
		intent: func(ctx context.Context, _ *run) (_ vm.Change, err error) {
			if n, err = s.store.Network(ctx, name); err != nil {
				return vm.Change{}, err
			}
			if err := match.Check("network "+name, n.Version()); err != nil {
				return vm.Change{}, err
			}
			if e.Apply(&n) {
				if err := s.checkUnused(ctx, name); err != nil {
					return vm.Change{}, err
				}
				if err := s.placeSubnet(ctx, &n); err != nil {
					return vm.Change{}, err
				}
			}
			if err := n.Check(); err != nil {
				return vm.Change{}, err
			}
			return vm.Change{Network: &n}, nil
		},
		act:   func(ctx context.Context, _ *run) (vm.Change, error) { return vm.Change{}, s.network.Up(ctx, n) },
		truth: func(context.Context) (vm.Change, error) { return vm.Change{}, nil }, // the record is what is wanted; the observer makes it so
	})
	if err != nil {
		return n, err
	}
	if _, err := r.wait(ctx); err != nil {
		return n, err
	}
	return s.store.Network(ctx, name)
}

func (s *Networks) checkUnused(ctx context.Context, name string) error {
	vms, err := s.store.VMs(ctx, vm.VMFilter{Network: name}, vm.Page{Limit: 1})
	if err == nil && len(vms) > 0 {
		err = &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("the addresses of network %s cannot change while VMs such as %s are on it", name, vms[0].ID),
			Hint: "make another network, or remove the NICs first"}
	}
	return err
}

// Delete removes a network that no VM is on.
func (s *Networks) Delete(ctx context.Context, name string, match vm.Match) error {
	r, err := s.begin(ctx, change{
		kind: vm.NetworkDelete, resources: []string{vm.NetworkResource(name), allNetworks}, timeout: networkTimeout, claim: claim{patient: true},
		intent: func(ctx context.Context, _ *run) (vm.Change, error) {
			n, err := s.store.Network(ctx, name)
			if err != nil {
				return vm.Change{}, err
			}
			// The record goes before the bridge: the open operation accounts for it.
			return vm.Change{DeleteNetwork: name}, match.Check("network "+name, n.Version())
		},
		act:   func(ctx context.Context, _ *run) (vm.Change, error) { return vm.Change{}, s.removeLeftover(ctx, name) },
		truth: func(context.Context) (vm.Change, error) { return vm.Change{}, nil },
	})
	if err != nil {
		return err
	}
	_, err = r.wait(ctx)
	return err
}

// removeLeftover removes from the host what belongs to a network that is not
// recorded.
func (s *Networks) removeLeftover(ctx context.Context, name string) error {
	_, err := s.store.Network(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		return s.network.Down(ctx, vm.Network{Name: name, Bridge: name})
	}
	return err
}

// Status looks at a network from every side. It changes nothing.
func (s *Networks) Status(ctx context.Context, name string) (vm.NetworkReport, error) {
	n, err := s.store.Network(ctx, name)
	if err != nil {
		return vm.NetworkReport{}, err
	}
	r := vm.NetworkReport{Network: n, Free: -1, Status: s.network.Status(ctx, n)}
	if r.Leases, err = s.store.Leases(ctx, name); err != nil {
		return vm.NetworkReport{}, err
	}
	for i := range r.Leases {
		if seen, ok := r.Status.Leases[r.Leases[i].MAC]; ok {
			r.Leases[i].Acked, r.Leases[i].Expires = seen.Acked, seen.Expires
		}
	}
	if n.Mode.Managed() {
		r.Free = 1<<(32-n.Subnet.Bits()) - 3 - len(r.Leases) // without the gateway and the two that mean all
	}
	return r, nil
}

// of returns the networks that a VM's NICs are on, by name.
func (s *Networks) of(ctx context.Context, v vm.VM) (map[string]vm.Network, error) {
	networks := make(map[string]vm.Network, len(v.NICs))
	for _, n := range v.NICs {
		if _, known := networks[n.Network]; known {
			continue
		}
		net, err := s.store.Network(ctx, n.Network)
		if err != nil {
			return nil, err
		}
		networks[n.Network] = net
	}
	return networks, nil
}
