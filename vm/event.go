package vm

import (
	"encoding/json"
	"fmt"
	"time"
)

// An Event describes a change or an observation. Events are recorded in the same transaction
// as the change that they describe, and numbered in that order.
type Event struct {
	Seq      int64 // unique, never reused; set by the store
	At       time.Time
	Type     string // such as "vm.state"; see [EventTypes]
	Resource Resource
	Data     json.RawMessage
}

// EventTypes lists every type of event.
var EventTypes = []string{
	"vm.created", "vm.updated", "vm.state", "vm.deleted",
	"disk.created", "disk.updated", "disk.state", "disk.deleted",
	"template.created", "template.deleted",
	"image.created", "image.updated", "image.state", "image.deleted",
	"network.created", "network.updated", "network.deleted",
	"vm.boot", "vm.address", "vm.guest", "vm.clock",
	"operation.started", "operation.step", "operation.ended",
	"observer.issue", "observer.repaired",
	"daemon.started", "daemon.stopping",
}

// NewEvent returns an event; data must encode to a JSON object. Its time is set when
// it is recorded.
func NewEvent(kind string, resource Resource, data any) Event {
	text, err := json.Marshal(data)
	if err != nil { // a defect: data consists of strings and numbers
		text, _ = json.Marshal(map[string]string{"error": fmt.Sprint(err)})
	}
	return Event{Type: kind, Resource: resource, Data: text}
}
