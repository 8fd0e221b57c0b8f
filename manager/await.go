package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vmand/vm"
)

// probeTimeout bounds one attempt to connect to a port of a guest.
const probeTimeout = time.Second

// Await waits until the condition holds for a VM that runs, starts or restarts, and returns
// the VM. It fails with ctx's error when that ends first, with [vm.CodeState] when the VM does
// not run or ends first, with [vm.CodeNotFound] when it is deleted, with [vm.CodeInvalid] when
// the condition can never be known, and with [vm.CodeGuestRefused] when cloud-init has failed
// or cannot be asked.
func (s *VMs) Await(ctx context.Context, id string, c vm.Condition) (vm.VM, error) {
	read := context.WithoutCancel(ctx)
	for waited := false; ; waited = true {
		news := s.NextEvent()
		v, runs, err := s.RunsOrWill(read, id)
		switch {
		case waited && errors.Is(err, vm.ErrNotFound):
			detail := fmt.Sprintf("VM %s was deleted while a request waited for it", id)
			return v, &vm.Fault{Code: vm.CodeNotFound, Detail: detail}
		case err != nil:
			return v, err
		case !runs:
			return v, endedFault(v, waited)
		}
		if err := s.CanAwait(read, id, c); err != nil {
			return v, err
		}
		holds := false
		if v.Live() { // the guest of the last run does not count
			holds, err = s.holds(ctx, v, c)
		}
		if err != nil {
			return v, err
		}
		if holds {
			return s.store.VM(read, id)
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

// RunsOrWill returns a VM and reports whether it runs, is paused, starts or restarts. Of a VM that
// stops only its operation says whether it starts again: a shutdown of the host does not change the
// desired state.
func (s *VMs) RunsOrWill(ctx context.Context, id string) (vm.VM, bool, error) {
	for {
		v, err := s.store.VM(ctx, id)
		if err != nil || v.State != vm.Stopping {
			return v, err == nil && (v.Live() || v.State == vm.Starting), err
		}
		f := vm.OperationFilter{Resource: vm.VMResource(id), Kind: vm.VMRestart, Open: true}
		restarts, err := s.store.Operations(ctx, f, vm.Page{Limit: 1})
		if err != nil || len(restarts) > 0 {
			return v, err == nil, err
		}
		// A restart that ended since the first read has changed the VM.
		again, err := s.store.VM(ctx, id)
		if err != nil || again.Version() == v.Version() {
			return v, false, err
		}
	}
}

// endedFault is the fault of a request that waits for v, which does not run. waited reports
// whether it ran before.
func endedFault(v vm.VM, waited bool) *vm.Fault {
	if waited {
		return &vm.Fault{
			Code:   vm.CodeState,
			Detail: fmt.Sprintf("VM %s ended while a request waited for it: it is %s (%s)", v.ID, v.State, v.Reason),
		}
	}
	f := &vm.Fault{
		Code:   vm.CodeState,
		Detail: fmt.Sprintf("VM %s is not running: it is %s (%s)", v.ID, v.State, v.Reason),
	}
	if v.State != vm.Stopping {
		f.Hint = "start it first"
	}
	return f
}

// CanAwait fails with [vm.CodeInvalid] if it can never be known whether the condition
// holds for a VM.
func (s *VMs) CanAwait(ctx context.Context, id string, c vm.Condition) error {
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return err
	}
	if c.IP && !slices.ContainsFunc(v.NICs, func(n vm.NIC) bool { return n.Mode != vm.NetworkUser }) {
		return vm.InvalidField("wait_for",
			"VM %s has no NIC with an address that the host can see: wait for a forwarded port instead", v.ID)
	}
	return nil
}

// holds reports whether the condition holds now. It records its observations before it
// returns.
func (s *VMs) holds(ctx context.Context, v vm.VM, c vm.Condition) (bool, error) {
	switch {
	case c.IP:
		return !v.Boot.DHCP.IsZero() || len(v.Learned) > 0, nil
	case c.Agent:
		a := s.driver.Agent(v.ID)
		if a.State != vm.AgentConnected || a.LastSeenAt.Before(v.Boot.Spawned) {
			return false, nil
		}
		s.Guests.Mark(v.ID, vm.BootAgent, a.LastSeenAt)
		s.Guests.saveMarks()
		return true, nil
	case c.CloudInit:
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
