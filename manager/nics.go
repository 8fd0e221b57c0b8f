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
	"time"

	"vmand/failpoint"
	"vmand/vm"
)

// reservations are addresses that operations on their way have chosen and not
// recorded yet.
type reservations struct {
	mu    sync.Mutex
	taken map[string][]netip.Addr // by network
}

// reserve returns an address that nobody has and nobody else gets until it is
// released.
func (s *NICs) reserve(ctx context.Context, network string, first, last netip.Addr, except netip.Addr) (netip.Addr, error) {
	r := &s.reserved
	r.mu.Lock()
	defer r.mu.Unlock()
	a, err := s.store.FreeIP(ctx, network, first, last, append(slices.Clone(r.taken[network]), except))
	if err != nil {
		return a, err
	}
	if r.taken == nil {
		r.taken = map[string][]netip.Addr{}
	}
	r.taken[network] = append(r.taken[network], a)
	return a, nil
}

// release gives free what was reserved for NICs; they are recorded by now, or
// never will be.
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

// place returns the NIC to be recorded in a slot of v. A managed address it
// has is reserved: release it in the end. field is where the request names it.
func (s *NICs) place(ctx context.Context, v vm.VM, slot int, want vm.NewNIC, field string) (vm.NIC, error) {
	name := cmp.Or(want.Network, vm.DefaultNetwork)
	network, err := s.store.Network(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		f := vm.InvalidField(field+"/network", "network %q not found", name)
		if want.Network == "" {
			f.Hint = "create the network, name another one, or give nics: [] for none"
		}
		return vm.NIC{}, f
	}
	if err != nil {
		return vm.NIC{}, err
	}
	n := vm.NIC{Slot: slot, Network: name, Mode: network.Mode, Model: cmp.Or(want.Model, vm.NICVirtio), MAC: vm.MACOf(v.UUID, slot),
		RateIn: want.RateIn, RateOut: want.RateOut, LinkDown: want.LinkDown, State: vm.NICAttached}
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
	return n, s.placeIP(ctx, &n, network, want.IP, field+"/ip")
}

// placeIP gives n its address on a network.
func (s *NICs) placeIP(ctx context.Context, n *vm.NIC, network vm.Network, want netip.Addr, field string) (err error) {
	if !network.Mode.Managed() {
		if network.Mode == vm.NetworkUser {
			n.IP = network.UserGuest()
		}
		if want.IsValid() && want != n.IP {
			return vm.InvalidField(field, "the address of a guest on network %s, of mode %s, cannot be chosen", network.Name, network.Mode)
		}
		return nil
	}
	first, last := network.Subnet.Addr().Next(), vm.LastAddr(network.Subnet).Prev()
	if want.IsValid() {
		if !vm.UsableAddr(network.Subnet, want) || want == network.Gateway {
			return vm.InvalidField(field, "%s is not an address for a guest in %s of network %s", want, network.Subnet, network.Name)
		}
		first, last = want, want
	}
	n.IP, err = s.reserve(ctx, network.Name, first, last, network.Gateway)
	var f *vm.Fault
	if want.IsValid() && errors.As(err, &f) && f.Code == vm.CodeAddressesExhausted {
		return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("address %s of network %s is taken", want, network.Name),
			Fields: []vm.FieldFault{{Field: field, Detail: "is taken"}}, Hint: "leave it out to get the lowest free one"}
	}
	n.IPv6 = network.AddressIPv6(n.IP)
	return err
}

// placeAll gives v, which is new, the NICs it is to have; nil means one on the
// default network. What it has reserved is in v.NICs also after an error.
func (s *NICs) placeAll(ctx context.Context, v *vm.VM, want *[]vm.NewNIC) error {
	if want == nil {
		want = &[]vm.NewNIC{{}}
	}
	if len(*want) > vm.MaxNICs {
		return vm.InvalidField("/nics", "must be at most %d", vm.MaxNICs)
	}
	for slot, w := range *want {
		n, err := s.place(ctx, *v, slot, w, fmt.Sprintf("/nics/%d", slot))
		if n.IP.IsValid() {
			v.NICs = append(v.NICs, n)
		}
		if err != nil {
			return err
		}
		if !n.IP.IsValid() {
			v.NICs = append(v.NICs, n)
		}
	}
	return nil
}

// nicTimeout is how long a change of a NIC may take; its guest has less.
const nicTimeout = 30 * time.Second

// Attach gives a VM another NIC, plugging it in if the VM runs, and returns
// it.
func (s *NICs) Attach(ctx context.Context, vmID string, want vm.NewNIC) (vm.NIC, vm.Operation, error) {
	var v vm.VM
	var n vm.NIC
	r, err := s.begin(ctx, change{
		kind: vm.NICAttach, resources: []string{vm.VMResource(vmID)}, timeout: nicTimeout, preemptible: true,
		after: func() { s.release([]vm.NIC{n}) },
		intent: func(ctx context.Context, r *run) (_ vm.Change, err error) {
			if v, err = s.VMs.settled(ctx, vmID); err != nil {
				return vm.Change{}, err
			}
			slot, err := vm.FreeNICSlot(v)
			if err != nil {
				return vm.Change{}, err
			}
			if n, err = s.place(ctx, v, slot, want, ""); err != nil {
				return vm.Change{}, err
			}
			if vm.Live(v) {
				n.State = vm.NICAttaching
			}
			r.report(nicStep(slot), "on network "+n.Network)
			v.NICs = slices.Insert(slices.Clone(v.NICs), vm.NICIndex(v, slot), n)
			return vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}, nil
		},
		act: func(ctx context.Context, _ *run) (vm.Change, error) {
			if n.State == vm.NICAttached {
				return vm.Change{}, nil
			}
			if err := s.plug(ctx, v, n); err != nil {
				return vm.Change{}, err
			}
			n.State = vm.NICAttached
			v.NICs = slices.Clone(v.NICs)
			v.NICs[vm.NICIndex(v, n.Slot)] = n
			return vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}, nil
		},
		truth: func(ctx context.Context) (vm.Change, error) { return s.VMs.truth(ctx, vmID) },
	})
	if err != nil {
		return n, vm.Operation{}, err
	}
	op, err := r.wait(ctx)
	return n, op, err
}

// nicStep names the step of an operation on the NIC in a slot; [Engine.reached]
// tells by it whether the operation has done its work.
func nicStep(slot int) string { return fmt.Sprintf("nic-%d", slot) }

func (s *NICs) plug(ctx context.Context, v vm.VM, n vm.NIC) error {
	networks, err := s.Networks.of(ctx, v)
	if err != nil {
		return err
	}
	ports, err := s.network.Connect(ctx, v, []vm.NIC{n}, networks)
	if err != nil {
		return err
	}
	defer vm.ClosePorts(ports)
	failpoint.Hit("network.connected")
	return s.driver.AttachNIC(ctx, v.ID, ports[0])
}

// find returns a VM in a settled state and one of its NICs.
func (s *NICs) find(ctx context.Context, vmID string, slot int) (vm.VM, vm.NIC, error) {
	v, err := s.VMs.settled(ctx, vmID)
	if err != nil {
		return v, vm.NIC{}, err
	}
	n, err := v.NIC(slot)
	return v, n, err
}

// Detach takes a NIC from a VM, unplugging it if the VM runs, which needs the
// guest. It reports whether the NIC is gone: one that the guest has not let go of
// is returned as detaching, is asked for again, and goes with the VM's QEMU at the
// latest.
func (s *NICs) Detach(ctx context.Context, vmID string, slot int, match vm.Match) (n vm.NIC, gone bool, op vm.Operation, err error) {
	var v vm.VM
	r, err := s.begin(ctx, change{
		kind: vm.NICDetach, resources: []string{vm.VMResource(vmID)}, timeout: nicTimeout, preemptible: true,
		intent: func(ctx context.Context, r *run) (_ vm.Change, err error) {
			if v, n, err = s.find(ctx, vmID, slot); err != nil {
				return vm.Change{}, err
			}
			if err := match.Check("VM "+vmID, v.Version()); err != nil {
				return vm.Change{}, err
			}
			r.report(nicStep(slot), "on network "+n.Network)
			if !vm.Live(v) {
				v.RemoveNIC(slot)
				return vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}, nil
			}
			n.State, n.Reason = vm.NICDetaching, ""
			v.NICs = slices.Clone(v.NICs)
			v.NICs[vm.NICIndex(v, slot)] = n
			return vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}, nil
		},
		act: func(ctx context.Context, _ *run) (vm.Change, error) {
			if n.State != vm.NICDetaching {
				return vm.Change{}, nil
			}
			if err := s.driver.DetachNIC(ctx, vmID, slot); err != nil {
				return vm.Change{}, err
			}
			v.RemoveNIC(slot)
			return vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}}, s.applyNetwork(ctx, v)
		},
		truth: func(ctx context.Context) (vm.Change, error) { return s.VMs.truth(ctx, vmID) },
	})
	if err != nil {
		return n, false, vm.Operation{}, err
	}
	op, err = r.wait(ctx)
	if err != nil && !errors.Is(err, vm.ErrUnavailable) {
		return n, false, op, err
	}
	_, now, lookErr := s.find(context.WithoutCancel(ctx), vmID, slot)
	switch {
	case errors.Is(lookErr, vm.ErrNotFound):
		return n, true, op, nil
	case lookErr != nil:
		return n, false, op, lookErr
	case now.State == vm.NICDetaching:
		return now, false, op, nil
	}
	return now, false, op, err
}

// applyNetwork makes the host's side of a VM what is said of it now.
func (s *NICs) applyNetwork(ctx context.Context, v vm.VM) error {
	networks, err := s.Networks.of(ctx, v)
	if err != nil {
		return err
	}
	return s.network.Update(ctx, v, networks)
}

// Update changes a NIC, at once if the VM runs, and returns it.
func (s *NICs) Update(ctx context.Context, vmID string, slot int, e vm.NICEdits, match vm.Match) (vm.NIC, error) {
	var n, was vm.NIC
	err := s.VMs.liveEdit(ctx, tuning{kind: vm.NICUpdate, vmID: vmID, match: match, edit: func(ctx context.Context, v *vm.VM) (err error) {
		if *v, n, err = s.find(ctx, vmID, slot); err != nil {
			return err
		}
		was = n
		e.Apply(&n)
		if n.RateIn != was.RateIn || n.RateOut != was.RateOut {
			if err := s.network.Check(n.Mode); err != nil {
				return err
			}
		}
		v.NICs = slices.Clone(v.NICs)
		v.NICs[vm.NICIndex(*v, slot)] = n
		return n.CheckRates("")
	}, apply: func(ctx context.Context, v vm.VM) error {
		if n.LinkDown != was.LinkDown {
			if err := s.driver.SetLink(ctx, vmID, slot, !n.LinkDown); err != nil {
				return err
			}
		}
		return s.applyNetwork(ctx, v)
	}})
	return n, err
}
