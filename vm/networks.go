package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"vmand/failpoint"
)

// DefaultNetwork is the name of the network that a VM is on when nothing else is
// asked for. It is made at the daemon's first start.
const DefaultNetwork = "vman0"

const (
	networkTimeout = time.Minute
	maxNetworkName = 15         // IFNAMSIZ of Linux, less its final zero byte
	allNetworks    = "networks" // the resource that changes of any network hold, so that no two get one subnet
)

// CreateNetwork makes a network, on the host and in the records, and returns it.
// Without a subnet it gets one that is free.
func (m *Manager) CreateNetwork(ctx context.Context, n Network) (Network, error) {
	if !ValidName(n.Name) || len(n.Name) > maxNetworkName {
		return n, invalidField("/name", "must be 1 to %d of a-z, 0-9 and '-', and begin and end with a letter or a digit", maxNetworkName)
	}
	if n.Name == "all" || n.Name == "default" {
		return n, invalidField("/name", "%q is what the kernel calls the settings of all interfaces: no interface can have that name", n.Name)
	}
	made := false
	r, err := m.begin(ctx, change{
		kind: NetworkCreate, resources: []string{NetworkResource(n.Name), allNetworks}, timeout: networkTimeout, claim: claim{patient: true},
		intent: func(ctx context.Context, _ *run) (_ Change, err error) {
			n, err = m.planNetwork(ctx, n)
			return Change{}, err
		},
		act: func(ctx context.Context, _ *run) (Change, error) {
			made = true
			if err := m.network.Up(ctx, n); err != nil {
				return Change{}, err
			}
			failpoint.Hit("network.up")
			n.CreatedAt = now()
			return Change{NewNetwork: &n}, nil
		},
		truth: func(ctx context.Context) (Change, error) {
			if made {
				return Change{}, m.networkLeftover(ctx, n.Name)
			}
			return Change{}, nil
		},
	})
	if err != nil {
		return n, err
	}
	if _, err := r.wait(ctx); err != nil {
		return n, err
	}
	return m.store.Network(ctx, n.Name)
}

// planNetwork completes and checks a network that is to be made.
func (m *Manager) planNetwork(ctx context.Context, n Network) (Network, error) {
	switch _, err := m.store.Network(ctx, n.Name); {
	case err == nil:
		return n, &Fault{Code: CodeExists, Detail: fmt.Sprintf("network %s already exists", n.Name)}
	case !errors.Is(err, ErrNotFound):
		return n, err
	}
	if err := n.checkMode(); err != nil {
		return n, err
	}
	if err := m.network.Check(n.Mode); err != nil {
		return n, err
	}
	if n.Mode.Managed() {
		n.Bridge = n.Name
		if err := m.placeSubnet(ctx, &n); err != nil {
			return n, err
		}
	}
	if n.Mode != NetworkBridge {
		n.Domain = cmp.Or(n.Domain, n.Name+".internal")
	}
	if n.Mode == NetworkUser && !n.Subnet.IsValid() {
		n.Subnet = userSubnet
	}
	if n.Subnet.IsValid() && !n.Gateway.IsValid() {
		n.Gateway = n.usualGateway()
	}
	if err := n.check(); err != nil {
		return n, err
	}
	return n, m.network.Admit(ctx, n)
}

var (
	userSubnet    = netip.MustParsePrefix("10.0.2.0/24")
	firstSubnet   = netip.MustParsePrefix("192.168.100.0/24")
	userGuestHost = 15 // the last octet that QEMU's user-mode network gives its guest
)

// usualGateway returns the gateway of a network that does not say another: the
// first address of its subnet, or with mode user the second, where users of QEMU
// know it.
func (n Network) usualGateway() netip.Addr {
	first := n.Subnet.Masked().Addr().Next()
	if n.Mode == NetworkUser {
		return first.Next()
	}
	return first
}

// placeSubnet finds a subnet for n, or makes sure that the one it is to have is
// no other network's.
func (m *Manager) placeSubnet(ctx context.Context, n *Network) error {
	others, err := m.store.Networks(ctx, Page{})
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
				return &Fault{Code: CodeInUse, Detail: fmt.Sprintf("%s: %s overlaps %s of network %s", field, both[1], both[0], o.Name),
					Fields: []FieldFault{{Field: field, Detail: "overlaps that of network " + o.Name}}}
			}
		}
	}
	if n.Subnet.IsValid() {
		return nil
	}
	free, why, err := m.network.FreeSubnet(ctx, firstSubnet, taken)
	if err != nil {
		return err
	}
	if why != "" && n.Name == DefaultNetwork { // the others cannot all have it
		m.log.Warn("a network gets another subnet than the usual one", "network", n.Name, "subnet", free, "usual", firstSubnet, "why", why)
	}
	n.Subnet = free
	return nil
}

// NetworkEdits are what can be changed of a network; nil leaves a thing as it is.
type NetworkEdits struct {
	// Subnet, Gateway and IPv6 can change only while no VM is on the network. With
	// another Subnet and no Gateway, the gateway is its first address. A zero IPv6
	// takes IPv6 away.
	Subnet               *netip.Prefix
	Gateway              *netip.Addr
	IPv6                 *netip.Prefix
	DNS, NTP             *[]netip.Addr
	Routes               *[]Route
	Domain               *string
	MTU, VLAN            *int // of VMs that run: at their next start
	IsolateVMs, Restrict *bool
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// apply changes n, and reports whether that needs the network to be unused.
func (e NetworkEdits) apply(n *Network) (addresses bool) {
	was := *n
	if e.Subnet != nil && *e.Subnet != n.Subnet {
		n.Subnet = *e.Subnet
		if e.Gateway == nil && n.Subnet.IsValid() {
			n.Gateway = n.usualGateway()
		}
	}
	set(&n.Gateway, e.Gateway)
	set(&n.IPv6, e.IPv6)
	set(&n.DNS, e.DNS)
	set(&n.NTP, e.NTP)
	set(&n.Routes, e.Routes)
	set(&n.Domain, e.Domain)
	set(&n.MTU, e.MTU)
	set(&n.VLAN, e.VLAN)
	set(&n.IsolateVMs, e.IsolateVMs)
	set(&n.Restrict, e.Restrict)
	return n.Subnet != was.Subnet || n.Gateway != was.Gateway || n.IPv6 != was.IPv6
}

// UpdateNetwork changes a network and returns it.
func (m *Manager) UpdateNetwork(ctx context.Context, name string, e NetworkEdits, match Match) (Network, error) {
	var n Network
	r, err := m.begin(ctx, change{
		kind: NetworkUpdate, resources: []string{NetworkResource(name), allNetworks}, timeout: networkTimeout, claim: claim{patient: true},
		intent: func(ctx context.Context, _ *run) (_ Change, err error) {
			if n, err = m.store.Network(ctx, name); err != nil {
				return Change{}, err
			}
			if err := match.check("network "+name, Version{n.Seq, n.Revision}); err != nil {
				return Change{}, err
			}
			if e.apply(&n) {
				if err := m.checkUnused(ctx, name); err != nil {
					return Change{}, err
				}
				if err := m.placeSubnet(ctx, &n); err != nil {
					return Change{}, err
				}
			}
			if err := n.check(); err != nil {
				return Change{}, err
			}
			return Change{Network: &n}, nil
		},
		act:   func(ctx context.Context, _ *run) (Change, error) { return Change{}, m.network.Up(ctx, n) },
		truth: func(context.Context) (Change, error) { return Change{}, nil }, // the record is what is wanted; the observer makes it so
	})
	if err != nil {
		return n, err
	}
	if _, err := r.wait(ctx); err != nil {
		return n, err
	}
	return m.store.Network(ctx, name)
}

func (m *Manager) checkUnused(ctx context.Context, name string) error {
	vms, err := m.store.VMs(ctx, VMFilter{Network: name}, Page{Limit: 1})
	if err == nil && len(vms) > 0 {
		err = &Fault{Code: CodeInUse, Detail: fmt.Sprintf("the addresses of network %s cannot change while VMs such as %s are on it", name, vms[0].ID),
			Hint: "make another network, or remove the NICs first"}
	}
	return err
}

// DeleteNetwork removes a network that no VM is on.
func (m *Manager) DeleteNetwork(ctx context.Context, name string, match Match) error {
	r, err := m.begin(ctx, change{
		kind: NetworkDelete, resources: []string{NetworkResource(name), allNetworks}, timeout: networkTimeout, claim: claim{patient: true},
		intent: func(ctx context.Context, _ *run) (Change, error) {
			n, err := m.store.Network(ctx, name)
			if err != nil {
				return Change{}, err
			}
			// The record goes before the bridge: the open operation accounts for it.
			return Change{DeleteNetwork: name}, match.check("network "+name, Version{n.Seq, n.Revision})
		},
		act:   func(ctx context.Context, _ *run) (Change, error) { return Change{}, m.networkLeftover(ctx, name) },
		truth: func(context.Context) (Change, error) { return Change{}, nil },
	})
	if err != nil {
		return err
	}
	_, err = r.wait(ctx)
	return err
}

// networkLeftover removes from the host what belongs to a network that is not
// recorded.
func (m *Manager) networkLeftover(ctx context.Context, name string) error {
	_, err := m.store.Network(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return m.network.Down(ctx, Network{Name: name, Bridge: name})
	}
	return err
}

// A NetworkReport is a network as it is recorded and as it is on the host.
type NetworkReport struct {
	Network Network
	Leases  []Lease // in order of their addresses
	Free    int     // addresses that are not taken; -1 if vmand does not give them out
	Status  NetworkStatus
}

// NetworkStatus looks at a network from every side. It changes nothing.
func (m *Manager) NetworkStatus(ctx context.Context, name string) (NetworkReport, error) {
	n, err := m.store.Network(ctx, name)
	if err != nil {
		return NetworkReport{}, err
	}
	r := NetworkReport{Network: n, Free: -1, Status: m.network.Status(ctx, n)}
	if r.Leases, err = m.store.Leases(ctx, name); err != nil {
		return NetworkReport{}, err
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

// networksOf returns the networks that a VM's NICs are on, by name.
func (m *Manager) networksOf(ctx context.Context, v VM) (map[string]Network, error) {
	networks := make(map[string]Network, len(v.NICs))
	for _, n := range v.NICs {
		if _, known := networks[n.Network]; known {
			continue
		}
		net, err := m.store.Network(ctx, n.Network)
		if err != nil {
			return nil, err
		}
		networks[n.Network] = net
	}
	return networks, nil
}
