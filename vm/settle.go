package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Repair is what a settling found and did.
type Repair struct {
	Changed bool
	Was, Is string // the states, before and after
	Detail  string // what was done, in words
}

// settled returns a VM in a settled state. An intent that nobody is acting on
// any more, because its outcome could not be recorded, is resolved first. The
// caller holds the VM's lock.
func (m *Manager) settled(ctx context.Context, id string) (VM, error) {
	v, err := m.store.VM(ctx, id)
	if err != nil || !v.State.Transitional() {
		return v, err
	}
	c, err := m.vmTruth(ctx, id)
	if err != nil {
		return v, err
	}
	if err := m.apply(ctx, c); err != nil {
		return v, err
	}
	return m.store.VM(ctx, id)
}

// vmTruth looks at a VM, ends a process that has done its work, and returns the
// change that makes the records true; an empty one if they are, or if there is
// no such VM. The caller holds the VM's lock.
func (m *Manager) vmTruth(ctx context.Context, id string) (Change, error) {
	v, err := m.store.VM(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return Change{}, nil
	}
	if err != nil {
		return Change{}, err
	}
	seen := m.driver.Observe(ctx, id)
	verdict := Settle(v.State, v.Reason, seen)
	detail := ""
	switch verdict.Reason {
	case ReasonCrashed, ReasonStartFailed:
		detail = seen.Log
	case ReasonIOError, ReasonDiskFull:
		detail = seen.Trouble
	}
	if RoomAgain(v, seen) {
		if err := m.driver.Resume(ctx, id); err != nil {
			return Change{}, fmt.Errorf("continue vm %s: %w", id, err)
		}
		verdict, detail = Verdict{State: Running, Reason: ReasonRequested}, ""
	}
	if verdict.End {
		if err := m.driver.Shutdown(ctx, id, StopOptions{Force: true}, func(string, string) {}); err != nil {
			return Change{}, fmt.Errorf("end the process of vm %s: %w", id, err)
		}
		seen = Observation{}
	}
	var c Change
	if !seen.Alive() {
		if err := m.network.Disconnect(ctx, id); err != nil {
			return Change{}, err
		}
		if c.Disks, err = m.unplugged(ctx, id); err != nil {
			return Change{}, err
		}
	}
	from := v.State
	moved, err := m.settleNICs(ctx, &v, seen)
	if err != nil {
		return Change{}, err
	}
	if verdict.State != v.State || verdict.Reason != v.Reason {
		moved = true
		v.State, v.Reason, v.ReasonDetail = verdict.State, verdict.Reason, detail
		if planRestart(&v, now()); !seen.Alive() && m.lostWithBoot(v) {
			v.RestartAt, v.ReasonDetail = time.Time{}, "the host was booted while it ran"
		}
	}
	if moved {
		c.VM = &VMUpdate{From: from, VM: v}
	}
	return c, nil
}

// unplugged returns the updates of the disks that were on their way onto or off
// a VM that has no process any more.
func (m *Manager) unplugged(ctx context.Context, vmID string) ([]DiskUpdate, error) {
	disks, err := m.store.Disks(ctx, DiskFilter{VMID: vmID}, Page{})
	if err != nil {
		return nil, err
	}
	var updates []DiskUpdate
	for _, d := range disks {
		if SettleDisk(d, Observation{}).Detach {
			updates = append(updates, release(d))
		}
	}
	return updates, nil
}

// diskTruth looks at a disk and returns the change that makes the records true.
// A disk that was never finished is removed, a detach that was asked for is
// asked for again. The caller holds the locks of the disk and of its VM.
func (m *Manager) diskTruth(ctx context.Context, id string) (Change, error) {
	d, err := m.store.Disk(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return Change{}, nil
	}
	if err != nil {
		return Change{}, err
	}
	var seen Observation
	if d.VMID != "" {
		seen = m.driver.Observe(ctx, d.VMID)
	}
	verdict := SettleDisk(d, seen)
	if verdict.Remove {
		if err := m.driver.DeleteDisk(ctx, id); err != nil {
			return Change{}, err
		}
		return Change{DeleteDisk: id}, nil
	}
	if verdict.Unplug && m.driver.DetachDisk(ctx, d) == nil {
		verdict.Detach = true
	} else if verdict.Detach && seen.Alive() {
		// Without the device QEMU may still hold the file, and nobody else could
		// use it: an attach or a detach was cut short.
		err := m.driver.DetachDisk(ctx, d)
		if errors.Is(err, ErrUnavailable) { // that is what is true: it goes on being asked for
			return detaching(d, err), nil
		}
		if err != nil {
			return Change{}, fmt.Errorf("take the file of disk %s back from vm %s: %w", id, d.VMID, err)
		}
	}
	if verdict.Detach {
		return Change{Disks: []DiskUpdate{release(d)}}, nil
	}
	return m.diskFileTruth(ctx, d, verdict.State)
}

// detaching returns the change that records a disk as one that its VM's QEMU
// has not let go of, and why.
func detaching(d Disk, why error) Change {
	was := d
	d.State, d.Reason = DiskDetaching, ProblemOf(why).Detail
	if d == was {
		return Change{}
	}
	return Change{Disks: []DiskUpdate{{From: was.State, Disk: d}}}
}

// diskFileTruth compares what is recorded of a disk with its file.
func (m *Manager) diskFileTruth(ctx context.Context, d Disk, state DiskState) (Change, error) {
	was := d
	d.State = state
	switch size, err := m.driver.DiskSize(ctx, d.ID); {
	case errors.Is(err, ErrNotFound):
		d.State, d.Reason = DiskError, "the disk's file is missing"
	case err != nil:
		return Change{}, err
	default:
		d.SizeMiB = size
		if d.State == DiskError {
			d.State, d.Reason = DiskAvailable, ""
			if d.VMID != "" {
				d.State = DiskAttached
			}
		}
	}
	if d == was {
		return Change{}, nil
	}
	return Change{Disks: []DiskUpdate{{From: was.State, Disk: d}}}, nil
}

// Settle makes what is recorded of a VM, a disk or an image true: it looks at the host and
// records what it finds, ends what is left of an operation nobody acts on any
// more, and finishes what can be finished safely. It fails with a [Fault] of
// code [CodeBusy] at once if an operation holds the resource: that will record.
func (m *Manager) Settle(ctx context.Context, resource string) (Repair, error) {
	on, err := m.diskHost(ctx, resource)
	if err != nil {
		return Repair{}, err
	}
	resources := []string{resource}
	if on != "" {
		resources = append(resources, VMResource(on))
	}
	h := &holder{what: "settling of " + resource, released: make(chan struct{})}
	if _, err := m.locks.acquire(ctx, h, claim{try: true}, resources...); err != nil {
		return Repair{}, err
	}
	defer m.locks.release(h)
	if now, err := m.diskHost(ctx, resource); err != nil || now != on {
		return Repair{}, errors.Join(err, &Fault{Code: CodeBusy, Detail: resource + " was just attached or detached"})
	}
	return m.settle(ctx, resource)
}

// diskHost returns the id of the VM that a disk is recorded on; empty for none,
// and for what is no disk.
func (m *Manager) diskHost(ctx context.Context, resource string) (string, error) {
	kind, id, _ := strings.Cut(resource, "/")
	if kind != "disks" {
		return "", nil
	}
	d, err := m.store.Disk(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return d.VMID, err
}

// settle does what [Manager.Settle] says, under the lock.
func (m *Manager) settle(ctx context.Context, resource string) (Repair, error) {
	kind, id, _ := strings.Cut(resource, "/")
	if kind == "networks" {
		return m.settleNetwork(ctx, resource, id)
	}
	open, err := m.store.Operations(ctx, OperationFilter{Resource: resource, Open: true}, Page{})
	if err != nil {
		return Repair{}, err
	}
	if err := m.removeLeftovers(ctx, id, open); err != nil {
		return Repair{}, err
	}
	truth, was := m.diskTruth, m.diskState
	switch kind {
	case "vms":
		truth, was = m.vmTruth, m.vmState
	case "images":
		truth, was = m.imageTruth, m.imageState
	}
	before, err := was(ctx, id)
	if err != nil {
		return Repair{}, err
	}
	c, err := truth(ctx, id)
	if err != nil {
		return Repair{}, err
	}
	changed := c.VM != nil || c.Disks != nil || c.DeleteDisk != "" || c.Image != nil || c.DeleteImage != ""
	if changed {
		if err := m.apply(ctx, c); err != nil {
			return Repair{}, err
		}
	}
	if kind == "vms" {
		drives, err := m.settleCDROMs(ctx, id)
		if err != nil {
			return Repair{}, err
		}
		changed = changed || drives
	}
	after, err := was(ctx, id)
	if err != nil {
		return Repair{}, err
	}
	for _, op := range open {
		if err := m.endInterrupted(ctx, op); err != nil {
			return Repair{}, err
		}
	}
	r := Repair{Changed: changed || len(open) > 0, Was: before, Is: after}
	if r.Changed {
		r.Detail = fmt.Sprintf("recorded %s in place of %s", after, before)
		m.log.Info("settled", "resource", resource, "was", before, "is", after, "operations_ended", len(open))
	}
	return r, nil
}

// vmState and diskState name the recorded state for a [Repair]; a thing that is
// not recorded is "absent".
func (m *Manager) vmState(ctx context.Context, id string) (string, error) {
	v, err := m.store.VM(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return "absent", nil
	}
	return string(v.State) + "/" + string(v.Reason), err
}

func (m *Manager) diskState(ctx context.Context, id string) (string, error) {
	d, err := m.store.Disk(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return "absent", nil
	}
	return string(d.State), err
}

// removeLeftovers removes the files of what open operations had not finished
// making, or had already forgotten: those without a record.
func (m *Manager) removeLeftovers(ctx context.Context, id string, open []Operation) error {
	for _, op := range open {
		switch op.Kind {
		case OrphanDelete:
			if err := m.finishOrphanDelete(ctx, op.Resource); err != nil {
				return err
			}
		case VMCreate, VMDelete:
			_, err := m.store.VM(ctx, id)
			if errors.Is(err, ErrNotFound) {
				err = m.driver.DeleteVM(ctx, id)
			}
			if err != nil {
				return err
			}
		case DiskDelete:
			_, err := m.store.Disk(ctx, id)
			if errors.Is(err, ErrNotFound) {
				err = m.driver.DeleteDisk(ctx, id)
			}
			if err != nil {
				return err
			}
		case ImageDelete:
			if err := m.settleImageDelete(ctx, id, op); err != nil {
				return err
			}
		case NICUpdate, ForwardAdd, ForwardRemove, CDROMAttach, CDROMEject, CloudInitSet:
			if err := m.retune(ctx, id, op); err != nil {
				return err
			}
		}
	}
	return nil
}

// endInterrupted records how an operation ended that nobody acts on any more:
// it has succeeded if what it was for is so, and was interrupted otherwise.
func (m *Manager) endInterrupted(ctx context.Context, op Operation) error {
	reached, err := m.reached(ctx, op)
	if err != nil {
		return err
	}
	op.FinishedAt = now()
	op.State, op.Progress = OpSucceeded, ptr(100)
	if !reached {
		op.State, op.Progress = OpFailed, nil
		op.Key = "" // the same request, repeated, is to be carried out
		op.Problem = &Problem{Code: CodeInterrupted, Detail: "the daemon ended in the middle of the operation", Hint: "repeat the request"}
	}
	op.Log = append(op.Log, LogLine{At: op.FinishedAt, Step: "settled", Message: "the daemon found the operation open and settled it"})
	return m.apply(ctx, Change{Operation: &op, Events: []Event{operationEvent("operation.ended", op)}})
}

// reached reports whether what op was for is so now.
func (m *Manager) reached(ctx context.Context, op Operation) (bool, error) {
	_, id, _ := strings.Cut(op.Resource, "/")
	switch op.Kind {
	case VMCreate, VMAdopt, VMDelete, VMStart, VMStop, VMPause, VMResume:
		v, err := m.store.VM(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return op.Kind == VMDelete, nil
		}
		want := map[Kind]State{VMCreate: v.State, VMAdopt: v.State, VMStart: Running, VMStop: Stopped, VMPause: Paused, VMResume: Running}[op.Kind]
		return v.State == want, err
	case NICAttach, NICDetach:
		v, err := m.store.VM(ctx, id)
		if err != nil {
			return false, ignoreNotFound(err)
		}
		i := slices.IndexFunc(v.NICs, func(n NIC) bool { return nicStep(n.Slot) == op.Step })
		if op.Kind == NICDetach {
			return i < 0, nil
		}
		return i >= 0 && v.NICs[i].State == NICAttached, nil
	case CloudInitSet:
		return op.Step == stepRecorded, nil
	case NICUpdate, CDROMAttach, CDROMEject: // recorded with the intent, and made so by who settled
		return true, nil
	case ImageCreate, ImageUpload, ImageDelete:
		i, err := m.store.Image(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return op.Kind == ImageDelete, nil
		}
		return op.Kind != ImageDelete && i.State == ImageAvailable, err
	case ForwardAdd, ForwardRemove:
		v, err := m.store.VM(ctx, id)
		there := slices.ContainsFunc(v.Forwards, func(f PortForward) bool { return f.ID == op.Step })
		return err == nil && there == (op.Kind == ForwardAdd), ignoreNotFound(err)
	case NetworkCreate, NetworkUpdate, NetworkDelete: // an update is recorded with the intent
		_, err := m.store.Network(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return op.Kind == NetworkDelete, nil
		}
		return op.Kind != NetworkDelete, err
	case DiskDelete, DiskAdopt, DiskAttach, DiskDetach:
		d, err := m.store.Disk(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return op.Kind == DiskDelete, nil
		}
		want := map[Kind]DiskState{DiskAdopt: DiskAvailable, DiskAttach: DiskAttached, DiskDetach: DiskAvailable}[op.Kind]
		return d.State == want, err
	}
	return false, nil // what is done in one go and leaves no trace to tell by
}

func ignoreNotFound(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Recover settles everything that was on its way when the daemon last ended:
// every open operation's resource and every VM recorded in a state that needs a
// process or an operation. Call it before anybody else uses the manager. What
// cannot be settled now, the observer settles later.
func (m *Manager) Recover(ctx context.Context) error {
	open, err := m.store.Operations(ctx, OperationFilter{Open: true}, Page{})
	if err != nil {
		return fmt.Errorf("read the open operations: %w", err)
	}
	vms, err := m.store.VMs(ctx, VMFilter{}, Page{})
	if err != nil {
		return fmt.Errorf("read the VMs: %w", err)
	}
	images, err := m.store.Images(ctx, ImageFilter{}, Page{})
	if err != nil {
		return fmt.Errorf("read the images: %w", err)
	}
	todo := map[string]bool{}
	for _, op := range open {
		todo[op.Resource] = true
	}
	for _, v := range vms {
		if v.State != Stopped {
			todo[VMResource(v.ID)] = true
		}
	}
	for _, i := range images {
		if i.State != ImageAvailable {
			todo[ImageResource(i.Name)] = true
		}
	}
	slots := make(chan struct{}, recoverParallel)
	var wg sync.WaitGroup
	for resource := range todo {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if _, err := m.Settle(ctx, resource); err != nil {
				m.log.Warn("cannot settle at start; the observer will", "resource", resource, "err", err)
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
