package vm

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
)

// A NewNIC is what is asked of a NIC.
type NewNIC struct {
	Network         string     // empty: [DefaultNetwork]
	IP              netip.Addr // zero: the lowest free one
	MAC             string     // empty: one that follows from the VM's UUID
	Model           NICModel   // empty: virtio
	RateIn, RateOut int        // kbit/s, 0: no limit
	LinkDown        bool
}

// reservations are addresses that operations on their way have chosen and not
// recorded yet.
type reservations struct {
	mu    sync.Mutex
	taken map[string][]netip.Addr // by network
}

// reserve returns an address that nobody has and nobody else gets until it is
// released.
func (m *Manager) reserve(ctx context.Context, network string, first, last netip.Addr, except netip.Addr) (netip.Addr, error) {
	r := &m.reserved
	r.mu.Lock()
	defer r.mu.Unlock()
	a, err := m.store.FreeIP(ctx, network, first, last, append(slices.Clone(r.taken[network]), except))
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
func (m *Manager) release(nics []NIC) {
	r := &m.reserved
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

// placeNIC returns the NIC to be recorded in a slot of v. A managed address it
// has is reserved: release it in the end. field is where the request names it.
func (m *Manager) placeNIC(ctx context.Context, v VM, slot int, want NewNIC, field string) (NIC, error) {
	name := cmp.Or(want.Network, DefaultNetwork)
	network, err := m.store.Network(ctx, name)
	if errors.Is(err, ErrNotFound) {
		f := invalidField(field+"/network", "network %q not found", name)
		if want.Network == "" {
			f.Hint = "create the network, name another one, or give nics: [] for none"
		}
		return NIC{}, f
	}
	if err != nil {
		return NIC{}, err
	}
	n := NIC{Slot: slot, Network: name, Mode: network.Mode, Model: cmp.Or(want.Model, NICVirtio), MAC: MACOf(v.UUID, slot),
		RateIn: want.RateIn, RateOut: want.RateOut, LinkDown: want.LinkDown, State: NICAttached}
	if want.MAC != "" {
		mac, err := net.ParseMAC(want.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
			return n, invalidField(field+"/mac", "%q is not a unicast MAC address such as 52:54:00:12:34:56", want.MAC)
		}
		n.MAC = mac.String()
	}
	if n.Model != NICVirtio && n.Model != NICE1000e {
		return n, invalidField(field+"/model", "must be virtio or e1000e")
	}
	if err := n.checkRates(field); err != nil {
		return n, err
	}
	return n, m.placeIP(ctx, &n, network, want.IP, field+"/ip")
}

func (n NIC) checkRates(field string) error {
	for f, rate := range map[string]int{"/rate_in": n.RateIn, "/rate_out": n.RateOut} {
		if rate < 0 || rate > MaxRateKbit {
			return invalidField(field+f, "must be 1 to %d kbit/s, or 0 for no limit", MaxRateKbit)
		}
		if rate > 0 && n.Mode == NetworkUser {
			return invalidField(field+f, "a NIC on a network of mode user has no limits")
		}
	}
	return nil
}

// placeIP gives n its address on a network.
func (m *Manager) placeIP(ctx context.Context, n *NIC, network Network, want netip.Addr, field string) (err error) {
	if !network.Mode.Managed() {
		if network.Mode == NetworkUser {
			n.IP = network.userGuest()
		}
		if want.IsValid() && want != n.IP {
			return invalidField(field, "the address of a guest on network %s, of mode %s, cannot be chosen", network.Name, network.Mode)
		}
		return nil
	}
	first, last := network.Subnet.Addr().Next(), lastAddr(network.Subnet).Prev()
	if want.IsValid() {
		if !usable(network.Subnet, want) || want == network.Gateway {
			return invalidField(field, "%s is not an address for a guest in %s of network %s", want, network.Subnet, network.Name)
		}
		first, last = want, want
	}
	n.IP, err = m.reserve(ctx, network.Name, first, last, network.Gateway)
	var f *Fault
	if want.IsValid() && errors.As(err, &f) && f.Code == CodeAddressesExhausted {
		return &Fault{Code: CodeInUse, Detail: fmt.Sprintf("address %s of network %s is taken", want, network.Name),
			Fields: []FieldFault{{Field: field, Detail: "is taken"}}, Hint: "leave it out to get the lowest free one"}
	}
	n.IPv6 = network.AddressIPv6(n.IP)
	return err
}

// placeNICs gives v, which is new, the NICs it is to have; nil means one on the
// default network. What it has reserved is in v.NICs also after an error.
func (m *Manager) placeNICs(ctx context.Context, v *VM, want *[]NewNIC) error {
	if want == nil {
		want = &[]NewNIC{{}}
	}
	if len(*want) > MaxNICs {
		return invalidField("/nics", "must be at most %d", MaxNICs)
	}
	for slot, w := range *want {
		n, err := m.placeNIC(ctx, *v, slot, w, fmt.Sprintf("/nics/%d", slot))
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

// AttachNIC gives a VM another NIC, plugging it in if the VM runs, and returns
// it.
func (m *Manager) AttachNIC(ctx context.Context, vmID string, want NewNIC) (NIC, Operation, error) {
	var v VM
	var n NIC
	r, err := m.begin(ctx, change{
		kind: NICAttach, resources: []string{VMResource(vmID)}, timeout: nicTimeout, preemptible: true,
		after: func() { m.release([]NIC{n}) },
		intent: func(ctx context.Context, r *run) (_ Change, err error) {
			if v, err = m.settled(ctx, vmID); err != nil {
				return Change{}, err
			}
			slot, err := freeSlot(v)
			if err != nil {
				return Change{}, err
			}
			if n, err = m.placeNIC(ctx, v, slot, want, ""); err != nil {
				return Change{}, err
			}
			if live(v) {
				n.State = NICAttaching
			}
			r.report(nicStep(slot), "on network "+n.Network)
			v.NICs = slices.Insert(slices.Clone(v.NICs), nicIndex(v, slot), n)
			return Change{VM: &VMUpdate{From: v.State, VM: v}}, nil
		},
		act: func(ctx context.Context, _ *run) (Change, error) {
			if n.State == NICAttached {
				return Change{}, nil
			}
			if err := m.plugNIC(ctx, v, n); err != nil {
				return Change{}, err
			}
			n.State = NICAttached
			v.NICs = slices.Clone(v.NICs)
			v.NICs[nicIndex(v, n.Slot)] = n
			return Change{VM: &VMUpdate{From: v.State, VM: v}}, nil
		},
		truth: func(ctx context.Context) (Change, error) { return m.vmTruth(ctx, vmID) },
	})
	if err != nil {
		return n, Operation{}, err
	}
	op, err := r.wait(ctx)
	return n, op, err
}

// freeSlot returns the lowest slot of v that has no NIC.
func freeSlot(v VM) (int, error) {
	for slot := range MaxNICs {
		if _, err := v.NIC(slot); err != nil {
			return slot, nil
		}
	}
	return 0, &Fault{Code: CodeLimitReached, Detail: fmt.Sprintf("VM %s already has %d NICs, the most there can be", v.ID, MaxNICs), Hint: "remove one first"}
}

// nicStep names the step of an operation on the NIC in a slot; [Manager.reached]
// tells by it whether the operation has done its work.
func nicStep(slot int) string { return fmt.Sprintf("nic-%d", slot) }

// nicIndex returns where in v.NICs the NIC of a slot is, or belongs.
func nicIndex(v VM, slot int) int {
	i, _ := slices.BinarySearchFunc(v.NICs, slot, func(n NIC, slot int) int { return n.Slot - slot })
	return i
}

func (m *Manager) plugNIC(ctx context.Context, v VM, n NIC) error {
	networks, err := m.networksOf(ctx, v)
	if err != nil {
		return err
	}
	ports, err := m.network.Connect(ctx, v, []NIC{n}, networks)
	if err != nil {
		return err
	}
	defer ClosePorts(ports)
	failpoint.Hit("network.connected")
	return m.driver.AttachNIC(ctx, v.ID, ports[0])
}

// nicOf returns a VM in a settled state and one of its NICs.
func (m *Manager) nicOf(ctx context.Context, vmID string, slot int) (VM, NIC, error) {
	v, err := m.settled(ctx, vmID)
	if err != nil {
		return v, NIC{}, err
	}
	n, err := v.NIC(slot)
	return v, n, err
}

// withoutNIC takes a NIC, and what is forwarded to it, from v.
func (v *VM) withoutNIC(slot int) {
	v.NICs = slices.DeleteFunc(slices.Clone(v.NICs), func(n NIC) bool { return n.Slot == slot })
	v.Forwards = slices.DeleteFunc(slices.Clone(v.Forwards), func(f PortForward) bool { return f.Slot == slot })
}

// DetachNIC takes a NIC from a VM, unplugging it if the VM runs, which needs the
// guest. It reports whether the NIC is gone: one that the guest has not let go of
// is returned as detaching, is asked for again, and goes with the VM's QEMU at the
// latest.
func (m *Manager) DetachNIC(ctx context.Context, vmID string, slot int, match Match) (n NIC, gone bool, op Operation, err error) {
	var v VM
	r, err := m.begin(ctx, change{
		kind: NICDetach, resources: []string{VMResource(vmID)}, timeout: nicTimeout, preemptible: true,
		intent: func(ctx context.Context, r *run) (_ Change, err error) {
			if v, n, err = m.nicOf(ctx, vmID, slot); err != nil {
				return Change{}, err
			}
			if err := match.check("VM "+vmID, Version{v.Seq, v.Revision}); err != nil {
				return Change{}, err
			}
			r.report(nicStep(slot), "on network "+n.Network)
			if !live(v) {
				v.withoutNIC(slot)
				return Change{VM: &VMUpdate{From: v.State, VM: v}}, nil
			}
			n.State, n.Reason = NICDetaching, ""
			v.NICs = slices.Clone(v.NICs)
			v.NICs[nicIndex(v, slot)] = n
			return Change{VM: &VMUpdate{From: v.State, VM: v}}, nil
		},
		act: func(ctx context.Context, _ *run) (Change, error) {
			if n.State != NICDetaching {
				return Change{}, nil
			}
			if err := m.driver.DetachNIC(ctx, vmID, slot); err != nil {
				return Change{}, err
			}
			v.withoutNIC(slot)
			return Change{VM: &VMUpdate{From: v.State, VM: v}}, m.passFor(ctx, v)
		},
		truth: func(ctx context.Context) (Change, error) { return m.vmTruth(ctx, vmID) },
	})
	if err != nil {
		return n, false, Operation{}, err
	}
	op, err = r.wait(ctx)
	if err != nil && !errors.Is(err, ErrUnavailable) {
		return n, false, op, err
	}
	_, now, lookErr := m.nicOf(context.WithoutCancel(ctx), vmID, slot)
	switch {
	case errors.Is(lookErr, ErrNotFound):
		return n, true, op, nil
	case lookErr != nil:
		return n, false, op, lookErr
	case now.State == NICDetaching:
		return now, false, op, nil
	}
	return now, false, op, err
}

// passFor makes the host's side of a VM what is said of it now.
func (m *Manager) passFor(ctx context.Context, v VM) error {
	networks, err := m.networksOf(ctx, v)
	if err != nil {
		return err
	}
	return m.network.Update(ctx, v, networks)
}

// NICEdits are what can be changed of a NIC at any time; nil leaves a thing as
// it is.
type NICEdits struct {
	RateIn, RateOut *int // kbit/s, 0: no limit
	LinkDown        *bool
}

func (e NICEdits) apply(n *NIC) {
	set(&n.RateIn, e.RateIn)
	set(&n.RateOut, e.RateOut)
	set(&n.LinkDown, e.LinkDown)
}

// UpdateNIC changes a NIC, at once if the VM runs, and returns it.
func (m *Manager) UpdateNIC(ctx context.Context, vmID string, slot int, e NICEdits, match Match) (NIC, error) {
	var n, was NIC
	err := m.tune(ctx, tuning{kind: NICUpdate, vmID: vmID, match: match, edit: func(ctx context.Context, v *VM) (err error) {
		if *v, n, err = m.nicOf(ctx, vmID, slot); err != nil {
			return err
		}
		was = n
		e.apply(&n)
		if n.RateIn != was.RateIn || n.RateOut != was.RateOut {
			if err := m.network.Check(n.Mode); err != nil {
				return err
			}
		}
		v.NICs = slices.Clone(v.NICs)
		v.NICs[nicIndex(*v, slot)] = n
		return n.checkRates("")
	}, apply: func(ctx context.Context, v VM) error {
		if n.LinkDown != was.LinkDown {
			if err := m.driver.SetLink(ctx, vmID, slot, !n.LinkDown); err != nil {
				return err
			}
		}
		return m.passFor(ctx, v)
	}})
	return n, err
}
