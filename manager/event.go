package manager

import (
	"context"
	"sync"

	"vmand/vm"
)

// apply records c and the events it makes, and wakes whoever waits for events.
func (e *Engine) apply(ctx context.Context, c vm.Change) error {
	c.Events = append(eventsOf(c), c.Events...)
	at := now()
	for i := range c.Events {
		c.Events[i].At = at
	}
	if err := e.store.Apply(ctx, c); err != nil {
		return err
	}
	if len(c.Events) > 0 {
		e.feed.wake()
	}
	return nil
}

// Tell records events of the daemon's own.
func (e *Engine) Tell(ctx context.Context, events ...vm.Event) error {
	return e.apply(ctx, vm.Change{Events: events})
}

// NextEvent returns a channel that is closed when the next event is recorded.
// Ask for it before reading the events there are, and none is missed.
func (e *Engine) NextEvent() <-chan struct{} { return e.feed.next() }

// A feed tells any number of listeners that there is something new.
type feed struct {
	mu sync.Mutex
	c  chan struct{}
}

func (f *feed) next() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.c == nil {
		f.c = make(chan struct{})
	}
	return f.c
}

func (f *feed) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.c != nil {
		close(f.c)
		f.c = nil
	}
}

func operationEvent(kind string, op vm.Operation) vm.Event {
	data := map[string]any{"kind": op.Kind, "resource": op.Resource, "state": op.State, "requested_by": op.RequestedBy}
	if op.Step != "" {
		data["step"] = op.Step
	}
	if op.Progress != nil {
		data["progress"] = *op.Progress
	}
	if op.Problem != nil {
		data["problem"] = op.Problem
	}
	return vm.NewEvent(kind, "operations/"+op.ID, data)
}

// eventsOf returns what there is to tell of the VMs, disks and templates in c.
func eventsOf(c vm.Change) []vm.Event {
	var events []vm.Event
	add := func(kind, resource string, data map[string]any) {
		events = append(events, vm.NewEvent(kind, resource, data))
	}
	if t := c.NewTemplate; t != nil {
		add("template.created", vm.TemplateResource(t.Name), map[string]any{"cpu_count": t.CPUCount, "ram_amount": t.RAMMiB})
	}
	if c.DeleteTemplate != "" {
		add("template.deleted", vm.TemplateResource(c.DeleteTemplate), map[string]any{})
	}
	if v := c.NewVM; v != nil {
		add("vm.created", vm.VMResource(v.ID), map[string]any{"template": v.Template.Name, "state": v.State})
	}
	if u := c.VM; u != nil {
		v := u.VM
		switch {
		case c.Operation != nil && isEdit(c.Operation.Kind):
			add("vm.updated", vm.VMResource(v.ID), map[string]any{"state": v.State})
		case u.From != v.State || c.Operation == nil:
			add("vm.state", vm.VMResource(v.ID), map[string]any{"from": u.From, "to": v.State, "reason": v.Reason, "detail": v.ReasonDetail})
		}
	}
	events = append(events, diskEvents(c)...)
	events = append(events, imageEvents(c)...)
	events = append(events, networkEvents(c)...)
	if c.DeleteVM != "" {
		add("vm.deleted", vm.VMResource(c.DeleteVM), map[string]any{})
	}
	return events
}

// isEdit reports whether an operation changes what a VM is and not what it does.
func isEdit(k vm.Kind) bool {
	switch k {
	case vm.VMEdit, vm.NICAttach, vm.NICDetach, vm.NICUpdate, vm.ForwardAdd, vm.ForwardRemove, vm.CDROMAttach, vm.CDROMEject, vm.CloudInitSet:
		return true
	}
	return false
}

func networkEvents(c vm.Change) []vm.Event {
	var events []vm.Event
	add := func(kind string, n *vm.Network) {
		if n != nil {
			events = append(events, vm.NewEvent(kind, vm.NetworkResource(n.Name), map[string]any{"mode": n.Mode, "subnet": n.Subnet}))
		}
	}
	add("network.created", c.NewNetwork)
	add("network.updated", c.Network)
	if c.DeleteNetwork != "" {
		events = append(events, vm.NewEvent("network.deleted", vm.NetworkResource(c.DeleteNetwork), map[string]any{}))
	}
	return events
}

func imageEvents(c vm.Change) []vm.Event {
	var events []vm.Event
	if i := c.NewImage; i != nil {
		events = append(events, vm.NewEvent("image.created", vm.ImageResource(i.Name), map[string]any{"state": i.State, "source": i.Source}))
	}
	if u := c.Image; u != nil {
		kind := "image.state"
		if u.From == u.Image.State {
			kind = "image.updated"
		}
		events = append(events, vm.NewEvent(kind, vm.ImageResource(u.Image.Name),
			map[string]any{"from": u.From, "to": u.Image.State, "sha256": u.Image.SHA256, "size_bytes": u.Image.Bytes}))
	}
	if c.DeleteImage != "" {
		events = append(events, vm.NewEvent("image.deleted", vm.ImageResource(c.DeleteImage), map[string]any{}))
	}
	return events
}

func diskEvents(c vm.Change) []vm.Event {
	var events []vm.Event
	if d := c.NewDisk; d != nil {
		events = append(events, vm.NewEvent("disk.created", vm.DiskResource(d.ID), map[string]any{"size_mib": d.SizeMiB, "state": d.State}))
	}
	for _, u := range c.Disks {
		kind := "disk.state"
		if u.From == u.Disk.State {
			kind = "disk.updated"
		}
		events = append(events, vm.NewEvent(kind, vm.DiskResource(u.Disk.ID),
			map[string]any{"from": u.From, "to": u.Disk.State, "vm_id": u.Disk.VMID, "size_mib": u.Disk.SizeMiB}))
	}
	if c.DeleteDisk != "" {
		events = append(events, vm.NewEvent("disk.deleted", vm.DiskResource(c.DeleteDisk), map[string]any{}))
	}
	return events
}
