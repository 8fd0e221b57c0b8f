package manager

import (
	"context"

	"vmand/vm"
)

// apply records c together with the events that follow from it, and wakes those that
// wait for events.
func (e *Engine) apply(ctx context.Context, c vm.Change) error {
	_, err := e.commit(ctx, c)
	return err
}

// commit is apply that also returns the written rows. It has the clock of a guest checked
// that continues after a pause, of whatever cause.
func (e *Engine) commit(ctx context.Context, c vm.Change) (vm.Applied, error) {
	c.Events = append(e.eventsOf(c), c.Events...)
	at := now()
	for i := range c.Events {
		c.Events[i].At = at
	}
	written, err := e.store.Apply(ctx, c)
	if err == nil && len(c.Events) > 0 {
		e.feed.wake()
	}
	if err == nil && c.VM != nil && stoppedTime(c.VM.From, c.VM.VM.State) {
		e.Guests.CheckClock(c.VM.VM.ID)
	}
	return written, err
}

// Tell records events of the daemon's own.
func (e *Engine) Tell(ctx context.Context, events ...vm.Event) error {
	return e.apply(ctx, vm.Change{Events: events})
}

// NextEvent returns a channel that is closed when the next event is recorded. A caller
// that asks for it before it reads the events misses none.
func (e *Engine) NextEvent() <-chan struct{} { return e.feed.next() }

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
	return vm.NewEvent(kind, vm.OperationResource(op.ID), data)
}

// eventsOf returns the events of the resources that c changes.
func (e *Engine) eventsOf(c vm.Change) []vm.Event {
	var events []vm.Event
	if t := c.NewTemplate; t != nil {
		events = append(events, vm.NewEvent("template.created", vm.TemplateResource(t.Name),
			map[string]any{"cpu_count": t.CPUCount, "ram_amount": t.RAMMiB}))
	}
	if c.DeleteTemplate != "" {
		events = append(events, deleted("template", vm.TemplateResource(c.DeleteTemplate)))
	}
	if v := c.NewVM; v != nil {
		events = append(events, vm.NewEvent("vm.created", vm.VMResource(v.ID),
			map[string]any{"template": v.Template.Name, "state": v.State}))
	}
	if c.VM != nil {
		events = append(events, e.vmEvents(c)...)
	}
	events = append(events, diskEvents(c)...)
	events = append(events, imageEvents(c)...)
	events = append(events, networkEvents(c)...)
	if c.DeleteVM != "" {
		events = append(events, deleted("vm", vm.VMResource(c.DeleteVM)))
	}
	return events
}

func deleted(what string, resource vm.Resource) vm.Event {
	return vm.NewEvent(what+".deleted", resource, map[string]any{})
}

// vmEvents returns the event of the update of a VM: an edit of its configuration, or a change
// of its state.
func (e *Engine) vmEvents(c vm.Change) []vm.Event {
	v, from := c.VM.VM, c.VM.From
	if c.Operation != nil && e.isEdit(c.Operation.Kind) {
		return []vm.Event{vm.NewEvent("vm.updated", vm.VMResource(v.ID), map[string]any{"state": v.State})}
	}
	if from == v.State && c.Operation != nil {
		return nil
	}
	return []vm.Event{vm.NewEvent("vm.state", vm.VMResource(v.ID),
		map[string]any{"from": from, "to": v.State, "reason": v.Reason, "detail": v.ReasonDetail})}
}

func networkEvents(c vm.Change) []vm.Event {
	var events []vm.Event
	add := func(kind string, n *vm.Network) {
		if n != nil {
			data := map[string]any{"mode": n.Mode, "subnet": n.Subnet}
			events = append(events, vm.NewEvent(kind, vm.NetworkResource(n.Name), data))
		}
	}
	add("network.created", c.NewNetwork)
	add("network.updated", c.Network)
	if c.DeleteNetwork != "" {
		events = append(events, deleted("network", vm.NetworkResource(c.DeleteNetwork)))
	}
	return events
}

func imageEvents(c vm.Change) []vm.Event {
	var events []vm.Event
	if i := c.NewImage; i != nil {
		data := map[string]any{"state": i.State, "source": i.Source}
		events = append(events, vm.NewEvent("image.created", vm.ImageResource(i.Name), data))
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
		events = append(events, deleted("image", vm.ImageResource(c.DeleteImage)))
	}
	return events
}

func diskEvents(c vm.Change) []vm.Event {
	var events []vm.Event
	if d := c.NewDisk; d != nil {
		data := map[string]any{"size_mib": d.SizeMiB, "state": d.State}
		events = append(events, vm.NewEvent("disk.created", vm.DiskResource(d.ID), data))
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
		events = append(events, deleted("disk", vm.DiskResource(c.DeleteDisk)))
	}
	return events
}

// isEdit reports whether operations of a kind change the configuration of a VM and not its
// state.
func (e *Engine) isEdit(kind vm.Kind) bool {
	v := e.verbs[kind]
	return v != nil && v.edit
}
