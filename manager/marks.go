package manager

import (
	"context"
	"time"

	"vmand/vm"
)

// Mark notes when something was first seen in a VM's present run. It does not wait until
// that is recorded.
func (s *Guests) Mark(id string, mark vm.BootMark, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.marks == nil {
		s.marks = map[string]vm.Boot{}
	}
	b := s.marks[id]
	if t := b.At(mark); t.IsZero() {
		*t = at.UTC().Truncate(time.Millisecond)
	}
	s.marks[id] = b
	if !s.marking {
		s.marking = true
		s.background(s.saveMarks)
	}
}

// saveMarks records the marks noted so far. It returns when all of them are recorded, also
// those that another goroutine records. A mark that is recorded already changes nothing.
func (s *Guests) saveMarks() {
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	marks := s.marks
	s.marks, s.marking = nil, false
	s.mu.Unlock()
	ctx, stop := context.WithTimeout(context.Background(), recordPatience)
	defer stop()
	var c vm.Change
	for id, b := range marks {
		v, err := s.store.VM(ctx, id)
		if err != nil {
			continue // the VM was deleted
		}
		fresh := map[string]any{}
		for _, mark := range vm.BootMarks {
			if at := *b.At(mark); !at.IsZero() && v.Boot.At(mark).IsZero() {
				fresh[string(mark)] = at
			}
		}
		if len(fresh) > 0 {
			c.Learned = append(c.Learned, vm.Learned{VMID: id, Boot: b})
			c.Events = append(c.Events, vm.NewEvent("vm.boot", vm.VMResource(id), fresh))
		}
	}
	if len(c.Learned) == 0 {
		return
	}
	if err := s.apply(ctx, c); err != nil {
		s.log.Warn("cannot record boot times of guests", "count", len(c.Learned), "err", err)
	}
}
