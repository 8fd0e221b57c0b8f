package vmtest

import (
	"context"
	"slices"

	"vmand/vm"
)

// nic runs a method on the process of a VM.
func (d *Driver) nic(ctx context.Context, method, id string, act func(*process)) error {
	return d.do(ctx, method, id, func() error {
		p := d.procs[id]
		if p == nil {
			return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "no process"}
		}
		act(p)
		return nil
	})
}

// AttachNIC plugs a NIC.
func (d *Driver) AttachNIC(ctx context.Context, vmID string, port vm.Port) error {
	return d.nic(ctx, "AttachNIC", vmID, func(p *process) {
		if !slices.Contains(p.nics, port.Slot) {
			p.nics = append(p.nics, port.Slot)
		}
	})
}

// DetachNIC unplugs a NIC.
func (d *Driver) DetachNIC(ctx context.Context, vmID string, slot int) error {
	return d.do(ctx, "DetachNIC", vmID, func() error {
		if p := d.procs[vmID]; p != nil {
			p.nics = slices.DeleteFunc(p.nics, func(n int) bool { return n == slot })
		}
		return nil
	})
}

// SetLink does nothing.
func (d *Driver) SetLink(ctx context.Context, vmID string, slot int, up bool) error {
	return d.nic(ctx, "SetLink", vmID, func(*process) {})
}

// SetForwards does nothing.
func (d *Driver) SetForwards(ctx context.Context, vmID string, slot int, had, want []vm.PortForward) error {
	return d.nic(ctx, "SetForwards", vmID, func(*process) {})
}
