package vm

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// MaxForwards is how many port forwards a VM can have.
const MaxForwards = 64

// AddForward leads a port of the host to a port of a guest, at once if it runs,
// and returns it as it is recorded.
func (m *Manager) AddForward(ctx context.Context, vmID string, f PortForward) (PortForward, error) {
	f.ID = "pf-" + randomWord(8)
	if f.Protocol == "" {
		f.Protocol = TCP
	}
	if !f.HostAddress.IsValid() {
		f.HostAddress = netip.IPv4Unspecified()
	}
	if err := f.check(); err != nil {
		return f, err
	}
	var had []PortForward
	err := m.tune(ctx, tuning{kind: ForwardAdd, vmID: vmID, step: func() string { return f.ID }, edit: func(ctx context.Context, v *VM) error {
		n, err := v.NIC(f.Slot)
		if err != nil {
			return invalidField("/nic", "VM %s has no NIC in slot %d", vmID, f.Slot)
		}
		if n.Mode != NetworkNAT && n.Mode != NetworkUser {
			return invalidField("/nic", "NIC %d is on a network of mode %s: ports are forwarded on networks of mode nat and user", f.Slot, n.Mode)
		}
		if err := m.network.Check(n.Mode); err != nil {
			return err
		}
		if len(v.Forwards) >= MaxForwards {
			return &Fault{Code: CodeLimitReached, Detail: fmt.Sprintf("VM %s already has %d port forwards, the most there can be", vmID, MaxForwards)}
		}
		had = v.Forwards
		v.Forwards = append(slices.Clone(v.Forwards), f)
		return m.network.CheckHostPort(ctx, f)
	}, apply: func(ctx context.Context, v VM) error { return m.forward(ctx, v, f.Slot, had) }})
	return f, err
}

func (f PortForward) check() error {
	if f.Protocol != TCP && f.Protocol != UDP {
		return invalidField("/protocol", "must be tcp or udp")
	}
	if a := f.HostAddress; !a.Is4() || a.IsMulticast() {
		return invalidField("/host_address", "must be an IPv4 address of the host, or 0.0.0.0 for all of them")
	}
	if f.HostPort < 1 || f.HostPort > 65535 {
		return invalidField("/host_port", "must be 1 to 65535")
	}
	if f.GuestPort < 1 || f.GuestPort > 65535 {
		return invalidField("/guest_port", "must be 1 to 65535")
	}
	return nil
}

// RemoveForward ends a port forward, at once if the VM runs.
func (m *Manager) RemoveForward(ctx context.Context, vmID, id string, match Match) error {
	var had []PortForward
	var slot int
	return m.tune(ctx, tuning{kind: ForwardRemove, vmID: vmID, match: match, step: func() string { return id }, late: true, edit: func(_ context.Context, v *VM) error {
		i := slices.IndexFunc(v.Forwards, func(f PortForward) bool { return f.ID == id })
		if i < 0 {
			return NotFound("port forward of vm "+vmID, id)
		}
		had, slot = v.Forwards, v.Forwards[i].Slot
		v.Forwards = slices.Delete(slices.Clone(v.Forwards), i, i+1)
		return nil
	}, apply: func(ctx context.Context, v VM) error { return m.forward(ctx, v, slot, had) }})
}

// forward makes a running VM's forwards to the NIC in a slot so.
func (m *Manager) forward(ctx context.Context, v VM, slot int, had []PortForward) error {
	if n, err := v.NIC(slot); err == nil && n.Mode == NetworkUser {
		return m.driver.SetForwards(ctx, v.ID, slot, ForwardsTo(had, slot), ForwardsTo(v.Forwards, slot))
	}
	return m.passFor(ctx, v)
}

// ForwardsTo returns those of all forwards that go to the NIC in a slot.
func ForwardsTo(all []PortForward, slot int) []PortForward {
	return slices.DeleteFunc(slices.Clone(all), func(f PortForward) bool { return f.Slot != slot })
}
