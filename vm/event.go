package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

// An Event says that something has happened. Events are recorded in the same
// transaction as what they tell of and numbered in that order.
type Event struct {
	Seq      int64 // unique, never used twice; set by the store
	At       time.Time
	Type     string // such as "vm.state"; see [EventTypes]
	Resource string // "vms/<id>", "disks/<id>", "images/<name>", "templates/<name>", "operations/<id>", "observer", "daemon"
	Data     json.RawMessage
}

// EventTypes lists every type of event.
var EventTypes = []string{
	"vm.created", "vm.updated", "vm.state", "vm.deleted",
	"disk.created", "disk.updated", "disk.state", "disk.deleted",
	"template.created", "template.deleted",
	"image.created", "image.updated", "image.state", "image.deleted",
	"network.created", "network.updated", "network.deleted",
	"vm.boot", "vm.address", "vm.guest",
	"operation.started", "operation.step", "operation.ended",
	"observer.issue", "observer.repaired",
	"daemon.started", "daemon.stopping",
}

// NewEvent returns an event of now; data must encode to a JSON object.
func NewEvent(kind, resource string, data any) Event {
	text, err := json.Marshal(data)
	if err != nil { // what is told is made of strings and numbers
		text, _ = json.Marshal(map[string]string{"error": fmt.Sprint(err)})
	}
	return Event{At: now(), Type: kind, Resource: resource, Data: text}
}

// apply records c and the events it makes, and wakes whoever waits for events.
func (m *Manager) apply(ctx context.Context, c Change) error {
	c.Events = append(eventsOf(c), c.Events...)
	if _, err := m.store.Apply(ctx, c); err != nil {
		return err
	}
	if len(c.Events) > 0 {
		m.feed.wake()
	}
	return nil
}

// Tell records events of the daemon's own.
func (m *Manager) Tell(ctx context.Context, events ...Event) error {
	return m.apply(ctx, Change{Events: events})
}

// NextEvent returns a channel that is closed when the next event is recorded.
// Ask for it before reading the events there are, and none is missed.
func (m *Manager) NextEvent() <-chan struct{} { return m.feed.next() }

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

func operationEvent(kind string, op Operation) Event {
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
	return NewEvent(kind, "operations/"+op.ID, data)
}

// eventsOf returns what there is to tell of the VMs, disks and templates in c.
func eventsOf(c Change) []Event {
	var events []Event
	add := func(kind, resource string, data map[string]any) {
		events = append(events, NewEvent(kind, resource, data))
	}
	if t := c.NewTemplate; t != nil {
		add("template.created", TemplateResource(t.Name), map[string]any{"cpu_count": t.CPUCount, "ram_amount": t.RAMMiB})
	}
	if c.DeleteTemplate != "" {
		add("template.deleted", TemplateResource(c.DeleteTemplate), map[string]any{})
	}
	if v := c.NewVM; v != nil {
		add("vm.created", VMResource(v.ID), map[string]any{"template": v.Template.Name, "state": v.State})
	}
	if u := c.VM; u != nil {
		v := u.VM
		switch {
		case c.Operation != nil && isEdit(c.Operation.Kind):
			add("vm.updated", VMResource(v.ID), map[string]any{"state": v.State})
		case u.From != v.State || c.Operation == nil:
			add("vm.state", VMResource(v.ID), map[string]any{"from": u.From, "to": v.State, "reason": v.Reason, "detail": v.ReasonDetail})
		}
	}
	events = append(events, diskEvents(c)...)
	events = append(events, imageEvents(c)...)
	events = append(events, networkEvents(c)...)
	if c.DeleteVM != "" {
		add("vm.deleted", VMResource(c.DeleteVM), map[string]any{})
	}
	return events
}

// isEdit reports whether an operation changes what a VM is and not what it does.
func isEdit(k Kind) bool {
	switch k {
	case VMEdit, NICAttach, NICDetach, NICUpdate, ForwardAdd, ForwardRemove, CDROMAttach, CDROMEject, CloudInitSet:
		return true
	}
	return false
}

func networkEvents(c Change) []Event {
	var events []Event
	add := func(kind string, n *Network) {
		if n != nil {
			events = append(events, NewEvent(kind, NetworkResource(n.Name), map[string]any{"mode": n.Mode, "subnet": n.Subnet}))
		}
	}
	add("network.created", c.NewNetwork)
	add("network.updated", c.Network)
	if c.DeleteNetwork != "" {
		events = append(events, NewEvent("network.deleted", NetworkResource(c.DeleteNetwork), map[string]any{}))
	}
	return events
}

func imageEvents(c Change) []Event {
	var events []Event
	if i := c.NewImage; i != nil {
		events = append(events, NewEvent("image.created", ImageResource(i.Name), map[string]any{"state": i.State, "source": i.Source}))
	}
	if u := c.Image; u != nil {
		kind := "image.state"
		if u.From == u.Image.State {
			kind = "image.updated"
		}
		events = append(events, NewEvent(kind, ImageResource(u.Image.Name),
			map[string]any{"from": u.From, "to": u.Image.State, "sha256": u.Image.SHA256, "size_bytes": u.Image.Bytes}))
	}
	if c.DeleteImage != "" {
		events = append(events, NewEvent("image.deleted", ImageResource(c.DeleteImage), map[string]any{}))
	}
	return events
}

func diskEvents(c Change) []Event {
	var events []Event
	if d := c.NewDisk; d != nil {
		events = append(events, NewEvent("disk.created", DiskResource(d.ID), map[string]any{"size_mib": d.SizeMiB, "state": d.State}))
	}
	for _, u := range c.Disks {
		kind := "disk.state"
		if u.From == u.Disk.State {
			kind = "disk.updated"
		}
		events = append(events, NewEvent(kind, DiskResource(u.Disk.ID),
			map[string]any{"from": u.From, "to": u.Disk.State, "vm_id": u.Disk.VMID, "size_mib": u.Disk.SizeMiB}))
	}
	if c.DeleteDisk != "" {
		events = append(events, NewEvent("disk.deleted", DiskResource(c.DeleteDisk), map[string]any{}))
	}
	return events
}
