package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"vmand/vm"
)

// Deadlines of what is done to a disk.
const (
	diskFileTimeout = 5 * time.Minute
	plugTimeout     = 90 * time.Second
)

// Create makes a data disk, empty or of an image, and returns it when it is
// durable.
func (s *Disks) Create(ctx context.Context, n vm.NewDisk) (vm.Disk, error) {
	if err := n.Check(); err != nil {
		return vm.Disk{}, err
	}
	d := vm.Disk{ID: newDiskID(), DiskFile: vm.DiskFile{SizeMiB: n.SizeMiB}, MountPoint: n.MountPoint, State: vm.DiskCreating, CreatedAt: now()}
	c := s.making(&d, nil)
	if n.Image != "" {
		var held []vm.Image
		c.after = func() { s.Images.release(held) }
		c.intent = func(ctx context.Context, _ *run) (vm.Change, error) {
			i, err := s.Images.hold(ctx, n.Image, "/image")
			if err != nil {
				return vm.Change{}, err
			}
			held = append(held, i)
			d.DiskFile, err = vm.OverlayOf(i, n.SizeMiB, "/size", "/image")
			return vm.Change{NewDisk: &d}, err
		}
	}
	r, err := s.begin(ctx, c)
	if err != nil {
		return vm.Disk{}, err
	}
	if _, err := r.wait(ctx); err != nil {
		return vm.Disk{}, err
	}
	return s.store.Disk(ctx, d.ID)
}

// Copy begins to make a data disk that is a copy of another disk, n.FromDisk,
// and returns it as it is recorded meanwhile. Use [Operations.Wait] to learn how that
// ends: a disk that could not be made is gone again.
func (s *Disks) Copy(ctx context.Context, n vm.NewDisk) (vm.Disk, vm.Operation, error) {
	if err := n.Check(); err != nil {
		return vm.Disk{}, vm.Operation{}, err
	}
	resource, err := s.copied(ctx, n.FromDisk)
	if err != nil {
		return vm.Disk{}, vm.Operation{}, err
	}
	d := vm.Disk{ID: newDiskID(), MountPoint: n.MountPoint, State: vm.DiskCreating, CreatedAt: now()}
	var from vm.CopySource
	c := s.making(&d, &from)
	c.resources = append(c.resources, resource)
	c.intent = func(ctx context.Context, _ *run) (_ vm.Change, err error) {
		if from, err = s.copySource(ctx, resource); err != nil {
			return vm.Change{}, err
		}
		d.SizeMiB = cmp.Or(n.SizeMiB, from.File.SizeMiB)
		if d.SizeMiB < from.File.SizeMiB {
			return vm.Change{}, vm.InvalidField("/size", "must be at least %g GiB, the size of what is copied", float64(from.File.SizeMiB)/vm.MiBPerGiB)
		}
		d.Image = from.File.Image
		return vm.Change{NewDisk: &d}, nil
	}
	r, err := s.begin(ctx, c)
	if err != nil {
		return vm.Disk{}, vm.Operation{}, err
	}
	recorded := d
	if now, err := s.store.Disk(ctx, d.ID); err == nil { // else it has failed by now
		recorded = now
	}
	return recorded, r.snapshot(), nil
}

func newDiskID() string { return "disk-" + randomWord(10) }

// making returns the change that makes a disk, empty, an overlay or a copy.
func (s *Disks) making(d *vm.Disk, from *vm.CopySource) change {
	timeout := diskFileTimeout
	if from != nil {
		timeout = importTimeout
	}
	return change{
		kind: vm.DiskCreate, resources: []string{vm.DiskResource(d.ID)}, timeout: timeout, preemptible: from != nil,
		intent: func(context.Context, *run) (vm.Change, error) { return vm.Change{NewDisk: d}, nil },
		act: func(ctx context.Context, r *run) (vm.Change, error) {
			if from != nil {
				r.report("copy", "from "+from.Resource)
			}
			if err := s.driver.CreateDisk(ctx, d.ID, d.DiskFile, from, r.progress); err != nil {
				return vm.Change{}, err
			}
			made := *d
			made.State = vm.DiskAvailable
			return vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskCreating, Disk: made}}}, nil
		},
		truth: func(ctx context.Context) (vm.Change, error) { return s.truth(ctx, d.ID) },
	}
}

// Delete removes a disk that is not attached.
func (s *Disks) Delete(ctx context.Context, id string, match vm.Match) error {
	r, err := s.begin(ctx, change{
		kind: vm.DiskDelete, resources: []string{vm.DiskResource(id)}, timeout: diskFileTimeout,
		intent: func(ctx context.Context, _ *run) (vm.Change, error) {
			d, err := s.store.Disk(ctx, id)
			if err != nil {
				return vm.Change{}, err
			}
			if err := match.Check("disk "+id, d.Version()); err != nil {
				return vm.Change{}, err
			}
			if d.VMID != "" {
				return vm.Change{}, &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("disk %s is attached to VM %s", id, d.VMID), Hint: "detach it first"}
			}
			// The record goes before the file: a kill in between leaves a
			// file that the open operation accounts for.
			return vm.Change{DeleteDisk: id}, nil
		},
		act: func(ctx context.Context, r *run) (vm.Change, error) {
			return vm.Change{}, s.driver.DeleteDisk(ctx, id)
		},
		truth: func(context.Context) (vm.Change, error) { return vm.Change{}, nil },
	})
	if err != nil {
		return err
	}
	_, err = r.wait(ctx)
	return err
}

// locked runs one operation on a disk and on the VM it is, or is to be,
// attached to, while both are locked, and returns the disk as it is then. vmID
// says which VM that is, given the disk; it may be empty.
func (s *Disks) locked(ctx context.Context, id string, vmID func(vm.Disk) string, build func(vmID string) change) (vm.Disk, vm.Operation, error) {
	d, err := s.store.Disk(ctx, id)
	if err != nil {
		return vm.Disk{}, vm.Operation{}, err
	}
	on := vmID(d)
	c := build(on)
	c.resources = []string{vm.DiskResource(id)}
	if on != "" {
		c.resources = append(c.resources, vm.VMResource(on))
	}
	c.preemptible = true
	intent := c.intent
	c.intent = func(ctx context.Context, r *run) (vm.Change, error) {
		now, err := s.store.Disk(ctx, id)
		if err == nil && vmID(now) != on { // it moved before we had the lock
			err = &vm.Fault{Code: vm.CodeBusy, Detail: fmt.Sprintf("disk %s was just attached or detached", id), Hint: "try again"}
		}
		if err != nil {
			return vm.Change{}, err
		}
		return intent(ctx, r)
	}
	c.truth = func(ctx context.Context) (vm.Change, error) { return s.truth(ctx, id) }
	r, err := s.begin(ctx, c)
	if err != nil {
		return vm.Disk{}, vm.Operation{}, err
	}
	op, err := r.wait(ctx)
	if err != nil && !errors.Is(err, vm.ErrUnavailable) {
		return vm.Disk{}, op, err
	}
	d, rerr := s.store.Disk(context.WithoutCancel(ctx), id)
	if rerr != nil {
		return vm.Disk{}, op, rerr
	}
	if err != nil && !d.State.Transitional() {
		return vm.Disk{}, op, err
	}
	return d, op, nil
}

// Attach gives a disk to a VM, plugging it in if the VM runs. The disk it
// returns is still in state detaching or attaching if QEMU does not answer.
func (s *Disks) Attach(ctx context.Context, id, vmID, mountPoint string) (vm.Disk, vm.Operation, error) {
	return s.locked(ctx, id, func(vm.Disk) string { return vmID }, func(string) change {
		var d vm.Disk
		c := change{kind: vm.DiskAttach, timeout: plugTimeout}
		c.intent = func(ctx context.Context, _ *run) (_ vm.Change, err error) {
			v, err := s.VMs.settled(ctx, vmID)
			if err != nil {
				return vm.Change{}, err
			}
			var from vm.DiskState
			if d, from, err = s.toAttach(ctx, id, v, mountPoint); err != nil {
				return vm.Change{}, err
			}
			d.State = vm.DiskAttaching
			if !vm.Live(v) {
				d.State = vm.DiskAttached
			}
			return vm.Change{Disks: []vm.DiskUpdate{{From: from, Disk: d}}}, nil
		}
		c.act = func(ctx context.Context, r *run) (vm.Change, error) {
			if d.State == vm.DiskAttached {
				return vm.Change{}, nil
			}
			if err := s.driver.AttachDisk(ctx, d); err != nil {
				return vm.Change{}, err
			}
			d.State = vm.DiskAttached
			return vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskAttaching, Disk: d}}}, nil
		}
		return c
	})
}

// toAttach returns the disk as it is to be recorded on v, and its state now.
// Attaching a disk that its VM has not let go of yet takes the detach back.
func (s *Disks) toAttach(ctx context.Context, id string, v vm.VM, mountPoint string) (vm.Disk, vm.DiskState, error) {
	d, err := s.store.Disk(ctx, id)
	if err != nil {
		return d, "", err
	}
	from := d.State
	switch {
	case d.State == vm.DiskDetaching && d.VMID == v.ID:
		d.Reason = ""
		return d, from, nil
	case d.VMID != "":
		return d, from, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("disk %s is already attached to VM %s", id, d.VMID), Hint: "detach it first"}
	case d.State != vm.DiskAvailable:
		return d, from, vm.NotAvailable(d)
	case v.State == vm.Errored:
		return d, from, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("VM %s is in state error", v.ID), Hint: "stop it first"}
	}
	taken, err := s.store.Disks(ctx, vm.DiskFilter{VMID: v.ID}, vm.Page{})
	if err != nil {
		return d, from, err
	}
	if mountPoint == "" {
		mountPoint = d.MountPoint
	}
	d.VMID = v.ID
	d.MountPoint, err = vm.PlaceDisk(v.ID, mountPoint, taken)
	return d, from, err
}

// Detach takes a disk from its VM, unplugging it if the VM runs. The disk it
// returns is still in state detaching if the guest or QEMU has not let go.
func (s *Disks) Detach(ctx context.Context, id string) (vm.Disk, vm.Operation, error) {
	return s.locked(ctx, id, attachedTo, func(vmID string) change {
		var d vm.Disk
		c := change{kind: vm.DiskDetach, timeout: plugTimeout}
		c.intent = func(ctx context.Context, _ *run) (_ vm.Change, err error) {
			if d, err = s.store.Disk(ctx, id); err != nil {
				return vm.Change{}, err
			}
			if vmID == "" {
				return vm.Change{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("disk %s is not attached", id)}
			}
			v, err := s.VMs.settled(ctx, vmID)
			if err != nil {
				return vm.Change{}, err
			}
			if !vm.Live(v) && v.State != vm.Errored {
				return vm.Change{Disks: []vm.DiskUpdate{vm.Release(d)}}, nil
			}
			from := d.State
			d.State = vm.DiskDetaching
			return vm.Change{Disks: []vm.DiskUpdate{{From: from, Disk: d}}}, nil
		}
		c.act = func(ctx context.Context, r *run) (vm.Change, error) {
			if d.State != vm.DiskDetaching {
				return vm.Change{}, nil
			}
			if err := s.driver.DetachDisk(ctx, d); err != nil {
				return vm.Change{}, err
			}
			return vm.Change{Disks: []vm.DiskUpdate{vm.Release(d)}}, nil
		}
		return c
	})
}

// Resize grows a disk, attached or not, and returns it.
func (s *Disks) Resize(ctx context.Context, id string, sizeMiB int64, match vm.Match) (vm.Disk, error) {
	if err := vm.CheckDiskSize(sizeMiB, "/size"); err != nil {
		return vm.Disk{}, err
	}
	d, _, err := s.locked(ctx, id, attachedTo, func(string) change {
		var d vm.Disk
		c := change{kind: vm.DiskResize, timeout: diskFileTimeout}
		c.intent = func(ctx context.Context, _ *run) (_ vm.Change, err error) {
			if d, err = s.store.Disk(ctx, id); err != nil {
				return vm.Change{}, err
			}
			if err := match.Check("disk "+id, d.Version()); err != nil {
				return vm.Change{}, err
			}
			if sizeMiB < d.SizeMiB {
				return vm.Change{}, vm.InvalidField("/size", "must be at least %g GiB, the present size: a disk cannot shrink", float64(d.SizeMiB)/vm.MiBPerGiB)
			}
			if d.State != vm.DiskAvailable && d.State != vm.DiskAttached {
				return vm.Change{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("disk %s cannot be resized: it is in state %s", id, d.State)}
			}
			return vm.Change{}, nil
		}
		c.act = func(ctx context.Context, r *run) (vm.Change, error) {
			if err := s.driver.ResizeDisk(ctx, d, sizeMiB); err != nil {
				return vm.Change{}, err
			}
			d.SizeMiB = sizeMiB
			return vm.Change{Disks: []vm.DiskUpdate{{From: d.State, Disk: d}}}, nil
		}
		return c
	})
	return d, err
}

func attachedTo(d vm.Disk) string { return d.VMID }
