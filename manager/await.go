package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vmand/vm"
)

const probeTimeout = time.Second

// Await waits until the condition holds for a VM that was started and returns
// the VM. It fails with ctx's error when that ends before, with [CodeState] when the VM
// ends before, with [CodeInvalid] when it could never be known, and with
// [CodeGuestRefused] when cloud-init has failed or cannot be asked.
func (s *VMs) Await(ctx context.Context, id string, c vm.Condition) (vm.VM, error) {
	for {
		news := s.NextEvent()
		v, err := s.store.VM(context.WithoutCancel(ctx), id)
		if err != nil {
			return v, err
		}
		if v.State != vm.Running && v.State != vm.Starting && v.State != vm.Paused {
			return v, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("VM %s ended while it was waited for: it is %s (%s)", id, v.State, v.Reason)}
		}
		if err := s.CanAwait(context.WithoutCancel(ctx), id, c); err != nil {
			return v, err
		}
		holds, err := s.holds(ctx, v, c)
		if err != nil {
			return v, err
		}
		if holds {
			return s.store.VM(context.WithoutCancel(ctx), id)
		}
		var again <-chan time.Time
		if pause := c.Interval(); pause != 0 {
			again = time.After(pause)
		}
		select {
		case <-news:
		case <-again:
		case <-ctx.Done():
			return v, context.Cause(ctx)
		}
	}
}

// CanAwait reports whether the condition can ever be known to hold for a VM, as a
// [Fault] of code [CodeInvalid] if not.
func (s *VMs) CanAwait(ctx context.Context, id string, c vm.Condition) error {
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return err
	}
	if c.IP && !slices.ContainsFunc(v.NICs, func(n vm.NIC) bool { return n.Mode != vm.NetworkUser }) {
		return vm.InvalidField("wait_for", "VM %s has no NIC whose address can be seen from the host: wait for a forwarded port instead", v.ID)
	}
	return nil
}

func (s *VMs) holds(ctx context.Context, v vm.VM, c vm.Condition) (bool, error) {
	if c.IP {
		return !v.Boot.DHCP.IsZero() || len(v.Learned) > 0, nil
	}
	if c.Agent {
		a := s.driver.Agent(v.ID)
		if a.State != vm.AgentConnected || a.LastSeenAt.Before(v.Boot.Spawned) {
			return false, nil
		}
		s.Guests.Mark(v.ID, vm.BootAgent, a.LastSeenAt)
		s.Guests.saveMarks() // so that whoever has waited for it sees it
		return true, nil
	}
	if c.CloudInit {
		done, err := s.CloudInits.done(ctx, v.ID)
		if done || err != nil {
			s.Guests.saveMarks()
		}
		return done, err
	}
	probe, stop := context.WithTimeout(ctx, probeTimeout)
	defer stop()
	err := s.network.Probe(probe, v, c.Port)
	if errors.Is(err, vm.ErrInvalid) {
		return false, err
	}
	if err == nil {
		s.Guests.Mark(v.ID, vm.BootTCP, now())
		s.Guests.saveMarks()
	}
	return err == nil, nil
}

// Mark notes when something was seen in a VM's present run. It does not wait for
// that to be recorded.
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
	if !s.marking && !s.closing {
		s.marking = true
		s.wg.Go(s.saveMarks)
	}
}

// saveMarks records what was noted, and returns when all that was noted before is
// recorded, also by somebody else. What is known already changes nothing.
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
			continue // it is gone
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
		s.log.Warn("cannot record what was seen of guests", "vms", len(c.Learned), "err", err)
	}
}
