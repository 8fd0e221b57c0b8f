package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"vmand/vm"
)

// settled returns a VM in a settled state. An intent that nobody is acting on
// any more, because its outcome could not be recorded, is resolved first. The
// caller holds the VM's lock.
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

// truth looks at a VM, ends a process that has done its work, and returns the
// change that makes the records true; an empty one if they are, or if there is
// no such VM. The caller holds the VM's lock.
func (s *VMs) truth(ctx context.Context, id string) (vm.Change, error) {
	v, err := s.store.VM(ctx, id)
	if errors.Is(err, vm.ErrNotFound) {
		return vm.Change{}, nil
	}
	if err != nil {
		return vm.Change{}, err
	}
	seen := s.driver.Observe(ctx, id)
	verdict := vm.Settle(v.State, v.Reason, seen)
	detail := ""
	switch verdict.Reason {
	case vm.ReasonCrashed, vm.ReasonStartFailed:
		detail = seen.Log
	case vm.ReasonIOError, vm.ReasonDiskFull:
		detail = seen.Trouble
	}
	if vm.RoomAgain(v, seen) {
		if err := s.driver.Resume(ctx, id); err != nil {
			return vm.Change{}, fmt.Errorf("continue vm %s: %w", id, err)
		}
		verdict, detail = vm.Verdict{State: vm.Running, Reason: vm.ReasonRequested}, ""
	}
	if verdict.End {
		if err := s.driver.Shutdown(ctx, id, vm.StopOptions{Force: true}, func(string, string) {}); err != nil {
			return vm.Change{}, fmt.Errorf("end the process of vm %s: %w", id, err)
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
		if vm.PlanRestart(&v, now()); !seen.Alive() && s.lostWithBoot(v) {
			v.RestartAt, v.ReasonDetail = time.Time{}, "the host was booted while it ran"
		}
	}
	if moved {
		c.VM = &vm.VMUpdate{From: from, VM: v}
	}
	return c, nil
}

// unplugged returns the updates of the disks that were on their way onto or off
// a VM that has no process any more.
func (s *Disks) unplugged(ctx context.Context, vmID string) ([]vm.DiskUpdate, error) {
	disks, err := s.store.Disks(ctx, vm.DiskFilter{VMID: vmID}, vm.Page{})
	if err != nil {
		return nil, err
	}
	var updates []vm.DiskUpdate
	for _, d := range disks {
		if vm.SettleDisk(d, vm.Observation{}).Detach {
			updates = append(updates, vm.Release(d))
		}
	}
	return updates, nil
}

// truth looks at a disk and returns the change that makes the records true.
// A disk that was never finished is removed, a detach that was asked for is
// asked for again. The caller holds the locks of the disk and of its VM.
func (s *Disks) truth(ctx context.Context, id string) (vm.Change, error) {
	d, err := s.store.Disk(ctx, id)
	if errors.Is(err, vm.ErrNotFound) {
		return vm.Change{}, nil
	}
	if err != nil {
		return vm.Change{}, err
	}
	var seen vm.Observation
	if d.VMID != "" {
		seen = s.driver.Observe(ctx, d.VMID)
	}
	verdict := vm.SettleDisk(d, seen)
	if verdict.Remove {
		if err := s.driver.DeleteDisk(ctx, id); err != nil {
			return vm.Change{}, err
		}
		return vm.Change{DeleteDisk: id}, nil
	}
	if verdict.Unplug && s.driver.DetachDisk(ctx, d) == nil {
		verdict.Detach = true
	} else if verdict.Detach && seen.Alive() {
		// Without the device QEMU may still hold the file, and nobody else could
		// use it: an attach or a detach was cut short.
		err := s.driver.DetachDisk(ctx, d)
		if errors.Is(err, vm.ErrUnavailable) { // that is what is true: it goes on being asked for
			return detaching(d, err), nil
		}
		if err != nil {
			return vm.Change{}, fmt.Errorf("take the file of disk %s back from vm %s: %w", id, d.VMID, err)
		}
	}
	if verdict.Detach {
		return vm.Change{Disks: []vm.DiskUpdate{vm.Release(d)}}, nil
	}
	return s.fileTruth(ctx, d, verdict.State)
}

// detaching returns the change that records a disk as one that its VM's QEMU
// has not let go of, and why.
func detaching(d vm.Disk, why error) vm.Change {
	was := d
	d.State, d.Reason = vm.DiskDetaching, vm.ProblemOf(why).Detail
	if d == was {
		return vm.Change{}
	}
	return vm.Change{Disks: []vm.DiskUpdate{{From: was.State, Disk: d}}}
}

// fileTruth compares what is recorded of a disk with its file.
func (s *Disks) fileTruth(ctx context.Context, d vm.Disk, state vm.DiskState) (vm.Change, error) {
	was := d
	d.State = state
	switch size, err := s.driver.DiskSize(ctx, d.ID); {
	case errors.Is(err, vm.ErrNotFound):
		d.State, d.Reason = vm.DiskError, "the disk's file is missing"
	case err != nil:
		return vm.Change{}, err
	default:
		d.SizeMiB = size
		if d.State == vm.DiskError {
			d.State, d.Reason = vm.DiskAvailable, ""
			if d.VMID != "" {
				d.State = vm.DiskAttached
			}
		}
	}
	if d == was {
		return vm.Change{}, nil
	}
	return vm.Change{Disks: []vm.DiskUpdate{{From: was.State, Disk: d}}}, nil
}

// Settle makes what is recorded of a VM, a disk or an image true: it looks at the host and
// records what it finds, ends what is left of an operation nobody acts on any
// more, and finishes what can be finished safely. It fails with a [Fault] of
// code [CodeBusy] at once if an operation holds the resource: that will record.
func (e *Engine) Settle(ctx context.Context, resource string) (vm.Repair, error) {
	on, err := e.Disks.hostOf(ctx, resource)
	if err != nil {
		return vm.Repair{}, err
	}
	resources := []string{resource}
	if on != "" {
		resources = append(resources, vm.VMResource(on))
	}
	h := &holder{what: "settling of " + resource, released: make(chan struct{})}
	if _, err := e.locks.acquire(ctx, h, claim{try: true}, resources...); err != nil {
		return vm.Repair{}, err
	}
	defer e.locks.release(h)
	if now, err := e.Disks.hostOf(ctx, resource); err != nil || now != on {
		return vm.Repair{}, errors.Join(err, &vm.Fault{Code: vm.CodeBusy, Detail: resource + " was just attached or detached"})
	}
	return e.settle(ctx, resource)
}

// hostOf returns the id of the VM that a disk is recorded on; empty for none,
// and for what is no disk.
func (s *Disks) hostOf(ctx context.Context, resource string) (string, error) {
	kind, id, _ := strings.Cut(resource, "/")
	if kind != "disks" {
		return "", nil
	}
	d, err := s.store.Disk(ctx, id)
	if errors.Is(err, vm.ErrNotFound) {
		return "", nil
	}
	return d.VMID, err
}

// settle does what [Engine.Settle] says, under the lock.
func (e *Engine) settle(ctx context.Context, resource string) (vm.Repair, error) {
	kind, id, _ := strings.Cut(resource, "/")
	if kind == "networks" {
		return e.Networks.settleOf(ctx, resource, id)
	}
	open, err := e.store.Operations(ctx, vm.OperationFilter{Resource: resource, Open: true}, vm.Page{})
	if err != nil {
		return vm.Repair{}, err
	}
	if err := e.removeLeftovers(ctx, id, open); err != nil {
		return vm.Repair{}, err
	}
	truth, was := e.Disks.truth, e.Disks.stateName
	switch kind {
	case "vms":
		truth, was = e.VMs.truth, e.VMs.stateName
	case "images":
		truth, was = e.Images.truth, e.Images.stateName
	}
	before, err := was(ctx, id)
	if err != nil {
		return vm.Repair{}, err
	}
	c, err := truth(ctx, id)
	if err != nil {
		return vm.Repair{}, err
	}
	changed := c.VM != nil || c.Disks != nil || c.DeleteDisk != "" || c.Image != nil || c.DeleteImage != ""
	if changed {
		if err := e.apply(ctx, c); err != nil {
			return vm.Repair{}, err
		}
	}
	if kind == "vms" {
		drives, err := e.CDROMs.settleOf(ctx, id)
		if err != nil {
			return vm.Repair{}, err
		}
		changed = changed || drives
	}
	after, err := was(ctx, id)
	if err != nil {
		return vm.Repair{}, err
	}
	for _, op := range open {
		if err := e.endInterrupted(ctx, op); err != nil {
			return vm.Repair{}, err
		}
	}
	r := vm.Repair{Changed: changed || len(open) > 0, Was: before, Is: after}
	if r.Changed {
		r.Detail = fmt.Sprintf("recorded %s in place of %s", after, before)
		e.log.Info("settled", "resource", resource, "was", before, "is", after, "operations_ended", len(open))
	}
	return r, nil
}

// stateName and diskState name the recorded state for a [Repair]; a thing that is
// not recorded is "absent".
func (s *VMs) stateName(ctx context.Context, id string) (string, error) {
	v, err := s.store.VM(ctx, id)
	if errors.Is(err, vm.ErrNotFound) {
		return "absent", nil
	}
	return string(v.State) + "/" + string(v.Reason), err
}

func (s *Disks) stateName(ctx context.Context, id string) (string, error) {
	d, err := s.store.Disk(ctx, id)
	if errors.Is(err, vm.ErrNotFound) {
		return "absent", nil
	}
	return string(d.State), err
}

// removeLeftovers removes the files of what open operations had not finished
// making, or had already forgotten: those without a record.
func (e *Engine) removeLeftovers(ctx context.Context, id string, open []vm.Operation) error {
	for _, op := range open {
		switch op.Kind {
		case vm.OrphanDelete:
			if err := e.Orphans.finishDelete(ctx, op.Resource); err != nil {
				return err
			}
		case vm.VMCreate, vm.VMDelete:
			_, err := e.store.VM(ctx, id)
			if errors.Is(err, vm.ErrNotFound) {
				err = e.driver.DeleteVM(ctx, id)
			}
			if err != nil {
				return err
			}
		case vm.DiskDelete:
			_, err := e.store.Disk(ctx, id)
			if errors.Is(err, vm.ErrNotFound) {
				err = e.driver.DeleteDisk(ctx, id)
			}
			if err != nil {
				return err
			}
		case vm.ImageDelete:
			if err := e.Images.settleDelete(ctx, id, op); err != nil {
				return err
			}
		case vm.NICUpdate, vm.ForwardAdd, vm.ForwardRemove, vm.CDROMAttach, vm.CDROMEject, vm.CloudInitSet:
			if err := e.VMs.settleLiveEdit(ctx, id, op); err != nil {
				return err
			}
		}
	}
	return nil
}

// endInterrupted records how an operation ended that nobody acts on any more:
// it has succeeded if what it was for is so, and was interrupted otherwise.
func (e *Engine) endInterrupted(ctx context.Context, op vm.Operation) error {
	reached, err := e.reached(ctx, op)
	if err != nil {
		return err
	}
	op.FinishedAt = now()
	op.State, op.Progress = vm.OpSucceeded, ptr(100)
	if !reached {
		op.State, op.Progress = vm.OpFailed, nil
		op.Key = "" // the same request, repeated, is to be carried out
		op.Problem = &vm.Problem{Code: vm.CodeInterrupted, Detail: "the daemon ended in the middle of the operation", Hint: "repeat the request"}
	}
	op.Log = append(op.Log, vm.LogLine{At: op.FinishedAt, Step: "settled", Message: "the daemon found the operation open and settled it"})
	return e.apply(ctx, vm.Change{Operation: &op, Events: []vm.Event{operationEvent("operation.ended", op)}})
}

// reached reports whether what op was for is so now.
func (e *Engine) reached(ctx context.Context, op vm.Operation) (bool, error) {
	_, id, _ := strings.Cut(op.Resource, "/")
	switch op.Kind {
	case vm.VMCreate, vm.VMAdopt, vm.VMDelete, vm.VMStart, vm.VMStop, vm.VMPause, vm.VMResume:
		v, err := e.store.VM(ctx, id)
		if errors.Is(err, vm.ErrNotFound) {
			return op.Kind == vm.VMDelete, nil
		}
		want := map[vm.Kind]vm.State{vm.VMCreate: v.State, vm.VMAdopt: v.State, vm.VMStart: vm.Running, vm.VMStop: vm.Stopped, vm.VMPause: vm.Paused, vm.VMResume: vm.Running}[op.Kind]
		return v.State == want, err
	case vm.NICAttach, vm.NICDetach:
		v, err := e.store.VM(ctx, id)
		if err != nil {
			return false, ignoreNotFound(err)
		}
		i := slices.IndexFunc(v.NICs, func(n vm.NIC) bool { return nicStep(n.Slot) == op.Step })
		if op.Kind == vm.NICDetach {
			return i < 0, nil
		}
		return i >= 0 && v.NICs[i].State == vm.NICAttached, nil
	case vm.CloudInitSet:
		return op.Step == stepRecorded, nil
	case vm.NICUpdate, vm.CDROMAttach, vm.CDROMEject: // recorded with the intent, and made so by who settled
		return true, nil
	case vm.ImageCreate, vm.ImageUpload, vm.ImageDelete:
		i, err := e.store.Image(ctx, id)
		if errors.Is(err, vm.ErrNotFound) {
			return op.Kind == vm.ImageDelete, nil
		}
		return op.Kind != vm.ImageDelete && i.State == vm.ImageAvailable, err
	case vm.ForwardAdd, vm.ForwardRemove:
		v, err := e.store.VM(ctx, id)
		there := slices.ContainsFunc(v.Forwards, func(f vm.PortForward) bool { return f.ID == op.Step })
		return err == nil && there == (op.Kind == vm.ForwardAdd), ignoreNotFound(err)
	case vm.NetworkCreate, vm.NetworkUpdate, vm.NetworkDelete: // an update is recorded with the intent
		_, err := e.store.Network(ctx, id)
		if errors.Is(err, vm.ErrNotFound) {
			return op.Kind == vm.NetworkDelete, nil
		}
		return op.Kind != vm.NetworkDelete, err
	case vm.DiskDelete, vm.DiskAdopt, vm.DiskAttach, vm.DiskDetach:
		d, err := e.store.Disk(ctx, id)
		if errors.Is(err, vm.ErrNotFound) {
			return op.Kind == vm.DiskDelete, nil
		}
		want := map[vm.Kind]vm.DiskState{vm.DiskAdopt: vm.DiskAvailable, vm.DiskAttach: vm.DiskAttached, vm.DiskDetach: vm.DiskAvailable}[op.Kind]
		return d.State == want, err
	}
	return false, nil // what is done in one go and leaves no trace to tell by
}

func ignoreNotFound(err error) error {
	if errors.Is(err, vm.ErrNotFound) {
		return nil
	}
	return err
}

// Recover settles everything that was on its way when the daemon last ended:
// every open operation's resource and every VM recorded in a state that needs a
// process or an operation. Call it before anybody else uses the manager. What
// cannot be settled now, the observer settles later.
func (e *Engine) Recover(ctx context.Context) error {
	open, err := e.store.Operations(ctx, vm.OperationFilter{Open: true}, vm.Page{})
	if err != nil {
		return fmt.Errorf("read the open operations: %w", err)
	}
	vms, err := e.store.VMs(ctx, vm.VMFilter{}, vm.Page{})
	if err != nil {
		return fmt.Errorf("read the VMs: %w", err)
	}
	images, err := e.store.Images(ctx, vm.ImageFilter{}, vm.Page{})
	if err != nil {
		return fmt.Errorf("read the images: %w", err)
	}
	todo := map[string]bool{}
	for _, op := range open {
		todo[op.Resource] = true
	}
	for _, v := range vms {
		if v.State != vm.Stopped {
			todo[vm.VMResource(v.ID)] = true
		}
	}
	for _, i := range images {
		if i.State != vm.ImageAvailable {
			todo[vm.ImageResource(i.Name)] = true
		}
	}
	slots := make(chan struct{}, recoverParallel)
	var wg sync.WaitGroup
	for resource := range todo {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if _, err := e.Settle(ctx, resource); err != nil {
				e.log.Warn("cannot settle at start; the observer will", "resource", resource, "err", err)
			}
		})
	}
	wg.Wait()
	return nil
}

// recoverParallel bounds how many resources are settled at once: each waits for a
// few answers of a QEMU, which take long on a host that is busy, and does little
// itself; one that is mute costs its deadline.
const recoverParallel = 64
