package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vmand/vm"
)

// VMs makes, changes, starts, stops and deletes VMs.
type VMs struct {
	*Engine
	// before holds when each active VM was last started, if that was before the host
	// was booted. AfterBoot sets it, before the engine is used.
	before map[string]time.Time
	// unasked says whether vmand may start VMs without a request.
	unasked unasked
}

// settled returns a VM in a settled state. If its state is transitional, because the outcome
// of an operation could not be recorded, settled settles it first. It must be called with the
// VM locked.
func (s *VMs) settled(ctx context.Context, id string) (vm.VM, error) {
	v, err := s.store.VM(ctx, id)
	if err != nil || !v.State.Transitional() {
		return v, err
	}
	c, err := s.truth(ctx, id)
	if err != nil {
		return v, err
	}
	if err := s.apply(ctx, c); err != nil {
		return v, err
	}
	return s.store.VM(ctx, id)
}

// truth implements [settler]: it also ends a finished QEMU, and continues a guest that was
// paused by a full file system and has room again.
func (s *VMs) truth(ctx context.Context, id string) (vm.Change, error) {
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return vm.Change{}, ignoreNotFound(err)
	}
	seen := s.driver.Observe(ctx, id)
	verdict, detail := vm.Settle(v.State, v.Reason, seen), ""
	switch verdict.Reason {
	case vm.ReasonCrashed, vm.ReasonStartFailed:
		detail = seen.Log
	case vm.ReasonIOError, vm.ReasonDiskFull, vm.ReasonInternalError:
		detail = seen.Trouble
	case vm.ReasonUnknown:
		if seen.Status != vm.StatusMute {
			detail = fmt.Sprintf("QEMU reports the run state %s", seen.Status)
		}
	}
	if v.HasRoomAgain(seen) {
		if err := s.driver.Control(ctx, id, vm.OpResume); err != nil {
			return vm.Change{}, fmt.Errorf("resume VM %s: %w", id, err)
		}
		verdict, detail = vm.Verdict{State: vm.Running, Reason: vm.ReasonRequested}, ""
	}
	if verdict.End {
		if err := s.driver.Shutdown(ctx, id, vm.StopOptions{Force: true}, func(string, string) {}); err != nil {
			return vm.Change{}, fmt.Errorf("end the process of VM %s: %w", id, err)
		}
		seen = vm.Observation{}
	}
	var c vm.Change
	if !seen.Alive() {
		if err := s.network.Disconnect(ctx, id); err != nil {
			return vm.Change{}, err
		}
		if c.Disks, err = s.Disks.unplugged(ctx, id); err != nil {
			return vm.Change{}, err
		}
	}
	from := v.State
	moved, err := s.NICs.settleOf(ctx, &v, seen)
	if err != nil {
		return vm.Change{}, err
	}
	if verdict.State != v.State || verdict.Reason != v.Reason {
		moved = true
		v.State, v.Reason, v.ReasonDetail = verdict.State, verdict.Reason, detail
		v.PlanRestart(now())
		if !seen.Alive() && s.lostWithBoot(v) {
			v.RestartAt, v.ReasonDetail = time.Time{}, "the host was booted while it ran"
		}
	}
	if moved {
		c.VM = &vm.VMUpdate{From: from, VM: v}
	}
	return c, nil
}

// stateName implements [settler].
func (s *VMs) stateName(ctx context.Context, id string) (string, error) {
	v, err := s.store.VM(ctx, id)
	if errors.Is(err, vm.ErrNotFound) {
		return "absent", nil
	}
	return string(v.State) + "/" + string(v.Reason), err
}

// settleDevices implements [deviceSettler] for CD-ROM drives: a drive holds nothing that
// could be lost.
func (s *VMs) settleDevices(ctx context.Context, id string) (bool, error) {
	return s.CDROMs.settleOf(ctx, id)
}

// lostWithBoot reports whether v, which has no process, was last started before the host
// was booted.
func (s *VMs) lostWithBoot(v vm.VM) bool {
	at, known := s.before[v.ID]
	return known && at.Equal(v.StartedAt)
}

// admit sets the machine type and the accelerator of v and checks that it can start.
func (s *VMs) admit(ctx context.Context, v *vm.VM) error {
	p, err := s.driver.Platform(ctx)
	if err != nil {
		return err
	}
	if v.Machine == "" {
		v.Machine = p.Machine
	}
	if field, clause := s.driver.Limits(ctx).Exceeded(v.Template); field != "" {
		return &vm.Fault{
			Code:   vm.CodeState,
			Detail: fmt.Sprintf("VM %s cannot start here: its %s %s", v.ID, field[1:], clause),
			Hint:   "create a VM from a smaller template",
		}
	}
	v.Accel, v.AccelReason = p.Accel, p.Warning
	for _, n := range v.NICs {
		if err := s.network.Check(n.Mode); err != nil {
			return err
		}
	}
	spec, err := s.spec(ctx, *v)
	if err != nil {
		return err
	}
	return s.driver.Admit(ctx, spec)
}

// spec returns the driver's description of v, without its ports.
func (s *VMs) spec(ctx context.Context, v vm.VM) (vm.Spec, error) {
	disks, err := s.store.Disks(ctx, vm.DiskFilter{VMID: v.ID}, vm.Page{})
	if err != nil {
		return vm.Spec{}, err
	}
	for _, d := range disks {
		if d.State == vm.DiskError { // a VM never starts silently without a disk
			return vm.Spec{}, &vm.Fault{
				Code:   vm.CodeState,
				Detail: fmt.Sprintf("disk %s of VM %s is in state error: %s", d.ID, v.ID, d.Reason),
				Hint:   "detach it first, or bring its file back",
			}
		}
	}
	disks = slices.DeleteFunc(disks, func(d vm.Disk) bool { return d.State != vm.DiskAttached })
	slices.SortFunc(disks, func(a, b vm.Disk) int {
		i, _ := vm.Slot(a.MountPoint)
		j, _ := vm.Slot(b.MountPoint)
		return i - j
	})
	ignition := false
	if v.HasSeed() {
		seed, err := s.store.Seed(ctx, v.ID)
		if err != nil && !errors.Is(err, vm.ErrNotFound) {
			return vm.Spec{}, err
		}
		ignition = seed.Format == vm.DataIgnition
	}
	return vm.Spec{
		ID: v.ID, UUID: v.UUID,
		CPUCount: v.Template.CPUCount, RAMMiB: v.Template.RAMMiB,
		Machine: v.Machine, Accel: v.Accel, Boot: v.BootDevice,
		Root: v.Root, Disks: disks, CDROMs: v.CDROMs, Ignition: ignition,
	}, nil
}
