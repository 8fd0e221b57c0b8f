package vmtest

import (
	"context"
	"slices"

	"vmand/vm"
)

// nic calls act with the process of a VM and with d.mu held.
func (d *Driver) nic(ctx context.Context, method, id string, act func(*process)) error {
	return d.do(ctx, method, id, func() error {
		p := d.procs[id]
		if p == nil {
			return noProcess(id)
		}
		act(p)
		return nil
	})
}

// AttachNIC adds a NIC to the process of a VM.
func (d *Driver) AttachNIC(ctx context.Context, vmID string, port vm.Port) error {
	return d.nic(ctx, "AttachNIC", vmID, func(p *process) {
		if !slices.Contains(p.nics, port.Slot) {
			p.nics = append(p.nics, port.Slot)
		}
	})
}

// DetachNIC removes a NIC from the process of a VM.
func (d *Driver) DetachNIC(ctx context.Context, vmID string, slot int) error {
	return d.do(ctx, "DetachNIC", vmID, func() error {
		if p := d.procs[vmID]; p != nil {
			p.nics = slices.DeleteFunc(p.nics, func(n int) bool { return n == slot })
		}
		return nil
	})
}

// SetLink only records the call.
func (d *Driver) SetLink(ctx context.Context, vmID string, slot int, up bool) error {
	return d.nic(ctx, "SetLink", vmID, func(*process) {})
}

// SetForwards only records the call.
func (d *Driver) SetForwards(ctx context.Context, vmID string, slot int, had, want []vm.PortForward) error {
	return d.nic(ctx, "SetForwards", vmID, func(*process) {})
}
