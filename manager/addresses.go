package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"vmand/vm"
)

// reservations are addresses that running operations have chosen but not recorded yet.
type reservations struct {
	mu    sync.Mutex
	taken map[string][]netip.Addr // by network
}

// reserve returns the lowest free address from first to last on a network that is not one of
// except. No other operation gets it until it is released.
func (s *NICs) reserve(ctx context.Context, network string, first, last netip.Addr, except ...netip.Addr) (netip.Addr, error) {
	r := &s.reserved
	r.mu.Lock()
	defer r.mu.Unlock()
	a, err := s.store.FreeIP(ctx, network, first, last, append(slices.Clone(r.taken[network]), except...))
	if err != nil {
		return a, err
	}
	if r.taken == nil {
		r.taken = map[string][]netip.Addr{}
	}
	r.taken[network] = append(r.taken[network], a)
	return a, nil
}

// release ends the reservations for NICs: they are recorded by now, or never will be.
func (s *NICs) release(nics []vm.NIC) {
	r := &s.reserved
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range nics {
		if len(r.taken[n.Network]) == 0 {
			continue
		}
		r.taken[n.Network] = slices.DeleteFunc(r.taken[n.Network], func(a netip.Addr) bool { return a == n.IP })
		if len(r.taken[n.Network]) == 0 {
			delete(r.taken, n.Network)
		}
	}
}

// place returns the NIC to record in a slot of v. Its managed address, if it has one, is
// reserved until [NICs.release]. field is where the request names the NIC.
func (s *NICs) place(ctx context.Context, v vm.VM, slot int, want vm.NewNIC, field string) (vm.NIC, error) {
	name := cmp.Or(want.Network, vm.DefaultNetwork)
	network, err := s.store.Network(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		f := vm.InvalidField(field+"/network", "network %s not found", name)
		if want.Network == "" {
			f.Hint = "create the network, name another one, or give nics: [] for none"
		}
		return vm.NIC{}, f
	}
	if err != nil {
		return vm.NIC{}, err
	}
	n := vm.NIC{
		Slot: slot, Network: name, Mode: network.Mode, Model: cmp.Or(want.Model, vm.NICVirtio), MAC: vm.MACOf(v.UUID, slot),
		RateIn: want.RateIn, RateOut: want.RateOut, LinkDown: want.LinkDown, Extra: want.Extra, State: vm.NICAttached,
	}
	if want.MAC != "" {
		mac, err := net.ParseMAC(want.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
			return n, vm.InvalidField(field+"/mac", "%q is not a unicast MAC address such as 52:54:00:12:34:56", want.MAC)
		}
		n.MAC = mac.String()
	}
	if n.Model != vm.NICVirtio && n.Model != vm.NICE1000e {
		return n, vm.InvalidField(field+"/model", "must be virtio or e1000e")
	}
	if err := n.CheckRates(field); err != nil {
		return n, err
	}
	if err := network.CheckExtraAddresses(field+"/extra_addresses", n.Extra); err != nil {
		return n, err
	}
	err = s.placeIP(ctx, &n, network, want.IP, field+"/ip")
	return n, err
}

// placeIP gives n its address on a network.
func (s *NICs) placeIP(ctx context.Context, n *vm.NIC, network vm.Network, want netip.Addr, field string) (err error) {
	if !network.Mode.Managed() {
		if network.Mode == vm.NetworkUser {
			n.IP = network.UserGuest()
		}
		if want.IsValid() && want != n.IP {
			return vm.InvalidField(field, "the address of a guest on network %s, of mode %s, cannot be chosen",
				network.Name, network.Mode)
		}
		return nil
	}
	first, last := network.HostRange()
	except := []netip.Addr{network.Gateway}
	if !want.IsValid() { // addresses that guests have declined are in use by other machines
		except = append(except, s.network.Declined(network.Name)...)
	}
	if want.IsValid() {
		if !network.CanAssign(want) {
			return vm.InvalidField(field, "%s is not an address for a guest in %s of network %s",
				want, network.Subnet, network.Name)
		}
		first, last = want, want
	}
	n.IP, err = s.reserve(ctx, network.Name, first, last, except...)
	if want.IsValid() && vm.HasCode(err, vm.CodeAddressesExhausted) {
		return &vm.Fault{
			Code:   vm.CodeInUse,
			Detail: fmt.Sprintf("address %s of network %s is taken", want, network.Name),
			Fields: []vm.FieldFault{{Field: field, Detail: "is taken"}},
			Hint:   "leave it out to get the lowest free one",
		}
	}
	n.IPv6 = network.AddressIPv6(n.IP)
	return err
}

// placeAll gives v, which is new, its NICs; nil means one on the default network. The
// addresses it has reserved are in v.NICs also after an error.
func (s *NICs) placeAll(ctx context.Context, v *vm.VM, want *[]vm.NewNIC) error {
	if want == nil {
		want = &[]vm.NewNIC{{}}
	}
	if len(*want) > vm.MaxNICs {
		return vm.InvalidField("/nics", "must be at most %d", vm.MaxNICs)
	}
	for slot, w := range *want {
		n, err := s.place(ctx, *v, slot, w, fmt.Sprintf("/nics/%d", slot))
		if err == nil || n.IP.IsValid() {
			v.NICs = append(v.NICs, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
