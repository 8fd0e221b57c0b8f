package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// Deadlines of what is done to a disk.
const (
	diskFileTimeout = 5 * time.Minute
	plugTimeout     = 90 * time.Second
)

// A NewDisk is what is asked of a data disk to make.
type NewDisk struct {
	SizeMiB    int64  // 0: that of what it is made of
	MountPoint string // where it is to be attached, later; may be empty
	Image      string // that it is an overlay of; empty for none
	FromDisk   string // the id of a data disk that is not attached, or of a stopped VM, to copy; empty for none
}

func (n NewDisk) check() error {
	if n.Image != "" && n.FromDisk != "" {
		return invalidField("/from_disk", "give either image or from_disk")
	}
	if n.SizeMiB != 0 || n.Image == "" && n.FromDisk == "" {
		if err := checkSize(n.SizeMiB, "/size"); err != nil {
			return err
		}
	}
	if _, ok := Slot(n.MountPoint); n.MountPoint != "" && !ok {
		return invalidField("/mount_point", "must be /dev/sdb to /dev/sdz, or the same with vd or xvd")
	}
	return nil
}

// CreateDisk makes a data disk, empty or of an image, and returns it when it is
// durable.
func (m *Manager) CreateDisk(ctx context.Context, n NewDisk) (Disk, error) {
	if err := n.check(); err != nil {
		return Disk{}, err
	}
	d := Disk{ID: newDiskID(), DiskFile: DiskFile{SizeMiB: n.SizeMiB}, MountPoint: n.MountPoint, State: DiskCreating, CreatedAt: now()}
	c := m.making(&d, nil)
	if n.Image != "" {
		var held []Image
		c.after = func() { m.letGo(held) }
		c.intent = func(ctx context.Context, _ *run) (Change, error) {
			i, err := m.holdImage(ctx, n.Image, "/image")
			if err != nil {
				return Change{}, err
			}
			held = append(held, i)
			d.DiskFile, err = overlayOf(i, n.SizeMiB, "/size", "/image")
			return Change{NewDisk: &d}, err
		}
	}
	r, err := m.begin(ctx, c)
	if err != nil {
		return Disk{}, err
	}
	if _, err := r.wait(ctx); err != nil {
		return Disk{}, err
	}
	return m.store.Disk(ctx, d.ID)
}

// CopyDisk begins to make a data disk that is a copy of another disk, n.FromDisk,
// and returns it as it is recorded meanwhile. Use [Manager.Wait] to learn how that
// ends: a disk that could not be made is gone again.
func (m *Manager) CopyDisk(ctx context.Context, n NewDisk) (Disk, Operation, error) {
	if err := n.check(); err != nil {
		return Disk{}, Operation{}, err
	}
	resource, err := m.copied(ctx, n.FromDisk)
	if err != nil {
		return Disk{}, Operation{}, err
	}
	d := Disk{ID: newDiskID(), MountPoint: n.MountPoint, State: DiskCreating, CreatedAt: now()}
	var from CopySource
	c := m.making(&d, &from)
	c.resources = append(c.resources, resource)
	c.intent = func(ctx context.Context, _ *run) (_ Change, err error) {
		if from, err = m.copySource(ctx, resource); err != nil {
			return Change{}, err
		}
		d.SizeMiB = cmp.Or(n.SizeMiB, from.File.SizeMiB)
		if d.SizeMiB < from.File.SizeMiB {
			return Change{}, invalidField("/size", "must be at least %g GiB, the size of what is copied", float64(from.File.SizeMiB)/gibInMi)
		}
		d.Image = from.File.Image
		return Change{NewDisk: &d}, nil
	}
	r, err := m.begin(ctx, c)
	if err != nil {
		return Disk{}, Operation{}, err
	}
	recorded := d
	if now, err := m.store.Disk(ctx, d.ID); err == nil { // else it has failed by now
		recorded = now
	}
	return recorded, r.snapshot(), nil
}

func newDiskID() string { return "disk-" + randomWord(10) }

// making returns the change that makes a disk, empty, an overlay or a copy.
func (m *Manager) making(d *Disk, from *CopySource) change {
	timeout := diskFileTimeout
	if from != nil {
		timeout = importTimeout
	}
	return change{
		kind: DiskCreate, resources: []string{DiskResource(d.ID)}, timeout: timeout, preemptible: from != nil,
		intent: func(context.Context, *run) (Change, error) { return Change{NewDisk: d}, nil },
		act: func(ctx context.Context, r *run) (Change, error) {
			if from != nil {
				r.report("copy", "from "+from.Resource)
			}
			if err := m.driver.CreateDisk(ctx, d.ID, d.DiskFile, from, r.progress); err != nil {
				return Change{}, err
			}
			made := *d
			made.State = DiskAvailable
			return Change{Disks: []DiskUpdate{{From: DiskCreating, Disk: made}}}, nil
		},
		truth: func(ctx context.Context) (Change, error) { return m.diskTruth(ctx, d.ID) },
	}
}

// DeleteDisk removes a disk that is not attached.
func (m *Manager) DeleteDisk(ctx context.Context, id string, match Match) error {
	r, err := m.begin(ctx, change{
		kind: DiskDelete, resources: []string{DiskResource(id)}, timeout: diskFileTimeout,
		intent: func(ctx context.Context, _ *run) (Change, error) {
			d, err := m.store.Disk(ctx, id)
			if err != nil {
				return Change{}, err
			}
			if err := match.check("disk "+id, Version{d.Seq, d.Revision}); err != nil {
				return Change{}, err
			}
			if d.VMID != "" {
				return Change{}, &Fault{Code: CodeInUse, Detail: fmt.Sprintf("disk %s is attached to VM %s", id, d.VMID), Hint: "detach it first"}
			}
			// The record goes before the file: a kill in between leaves a
			// file that the open operation accounts for.
			return Change{DeleteDisk: id}, nil
		},
		act: func(ctx context.Context, r *run) (Change, error) {
			return Change{}, m.driver.DeleteDisk(ctx, id)
		},
		truth: func(context.Context) (Change, error) { return Change{}, nil },
	})
	if err != nil {
		return err
	}
	_, err = r.wait(ctx)
	return err
}

// lockedDisk runs one operation on a disk and on the VM it is, or is to be,
// attached to, while both are locked, and returns the disk as it is then. vmID
// says which VM that is, given the disk; it may be empty.
func (m *Manager) lockedDisk(ctx context.Context, id string, vmID func(Disk) string, build func(vmID string) change) (Disk, Operation, error) {
	d, err := m.store.Disk(ctx, id)
	if err != nil {
		return Disk{}, Operation{}, err
	}
	on := vmID(d)
	c := build(on)
	c.resources = []string{DiskResource(id)}
	if on != "" {
		c.resources = append(c.resources, VMResource(on))
	}
	c.preemptible = true
	intent := c.intent
	c.intent = func(ctx context.Context, r *run) (Change, error) {
		now, err := m.store.Disk(ctx, id)
		if err == nil && vmID(now) != on { // it moved before we had the lock
			err = &Fault{Code: CodeBusy, Detail: fmt.Sprintf("disk %s was just attached or detached", id), Hint: "try again"}
		}
		if err != nil {
			return Change{}, err
		}
		return intent(ctx, r)
	}
	c.truth = func(ctx context.Context) (Change, error) { return m.diskTruth(ctx, id) }
	r, err := m.begin(ctx, c)
	if err != nil {
		return Disk{}, Operation{}, err
	}
	op, err := r.wait(ctx)
	if err != nil && !errors.Is(err, ErrUnavailable) {
		return Disk{}, op, err
	}
	d, rerr := m.store.Disk(context.WithoutCancel(ctx), id)
	if rerr != nil {
		return Disk{}, op, rerr
	}
	if err != nil && !d.State.Transitional() {
		return Disk{}, op, err
	}
	return d, op, nil
}

// AttachDisk gives a disk to a VM, plugging it in if the VM runs. The disk it
// returns is still in state detaching or attaching if QEMU does not answer.
func (m *Manager) AttachDisk(ctx context.Context, id, vmID, mountPoint string) (Disk, Operation, error) {
	return m.lockedDisk(ctx, id, func(Disk) string { return vmID }, func(string) change {
		var d Disk
		c := change{kind: DiskAttach, timeout: plugTimeout}
		c.intent = func(ctx context.Context, _ *run) (_ Change, err error) {
			v, err := m.settled(ctx, vmID)
			if err != nil {
				return Change{}, err
			}
			var from DiskState
			if d, from, err = m.toAttach(ctx, id, v, mountPoint); err != nil {
				return Change{}, err
			}
			d.State = DiskAttaching
			if !live(v) {
				d.State = DiskAttached
			}
			return Change{Disks: []DiskUpdate{{From: from, Disk: d}}}, nil
		}
		c.act = func(ctx context.Context, r *run) (Change, error) {
			if d.State == DiskAttached {
				return Change{}, nil
			}
			if err := m.driver.AttachDisk(ctx, d); err != nil {
				return Change{}, err
			}
			d.State = DiskAttached
			return Change{Disks: []DiskUpdate{{From: DiskAttaching, Disk: d}}}, nil
		}
		return c
	})
}

// toAttach returns the disk as it is to be recorded on v, and its state now.
// Attaching a disk that its VM has not let go of yet takes the detach back.
func (m *Manager) toAttach(ctx context.Context, id string, v VM, mountPoint string) (Disk, DiskState, error) {
	d, err := m.store.Disk(ctx, id)
	if err != nil {
		return d, "", err
	}
	from := d.State
	switch {
	case d.State == DiskDetaching && d.VMID == v.ID:
		d.Reason = ""
		return d, from, nil
	case d.VMID != "":
		return d, from, &Fault{Code: CodeState, Detail: fmt.Sprintf("disk %s is already attached to VM %s", id, d.VMID), Hint: "detach it first"}
	case d.State != DiskAvailable:
		return d, from, notAvailable(d)
	case v.State == Errored:
		return d, from, &Fault{Code: CodeState, Detail: fmt.Sprintf("VM %s is in state error", v.ID), Hint: "stop it first"}
	}
	taken, err := m.store.Disks(ctx, DiskFilter{VMID: v.ID}, Page{})
	if err != nil {
		return d, from, err
	}
	if mountPoint == "" {
		mountPoint = d.MountPoint
	}
	d.VMID = v.ID
	d.MountPoint, err = placeDisk(v.ID, mountPoint, taken)
	return d, from, err
}

// DetachDisk takes a disk from its VM, unplugging it if the VM runs. The disk it
// returns is still in state detaching if the guest or QEMU has not let go.
func (m *Manager) DetachDisk(ctx context.Context, id string) (Disk, Operation, error) {
	return m.lockedDisk(ctx, id, attachedTo, func(vmID string) change {
		var d Disk
		c := change{kind: DiskDetach, timeout: plugTimeout}
		c.intent = func(ctx context.Context, _ *run) (_ Change, err error) {
			if d, err = m.store.Disk(ctx, id); err != nil {
				return Change{}, err
			}
			if vmID == "" {
				return Change{}, &Fault{Code: CodeState, Detail: fmt.Sprintf("disk %s is not attached", id)}
			}
			v, err := m.settled(ctx, vmID)
			if err != nil {
				return Change{}, err
			}
			if !live(v) && v.State != Errored {
				return Change{Disks: []DiskUpdate{release(d)}}, nil
			}
			from := d.State
			d.State = DiskDetaching
			return Change{Disks: []DiskUpdate{{From: from, Disk: d}}}, nil
		}
		c.act = func(ctx context.Context, r *run) (Change, error) {
			if d.State != DiskDetaching {
				return Change{}, nil
			}
			if err := m.driver.DetachDisk(ctx, d); err != nil {
				return Change{}, err
			}
			return Change{Disks: []DiskUpdate{release(d)}}, nil
		}
		return c
	})
}

// ResizeDisk grows a disk, attached or not, and returns it.
func (m *Manager) ResizeDisk(ctx context.Context, id string, sizeMiB int64, match Match) (Disk, error) {
	if err := checkSize(sizeMiB, "/size"); err != nil {
		return Disk{}, err
	}
	d, _, err := m.lockedDisk(ctx, id, attachedTo, func(string) change {
		var d Disk
		c := change{kind: DiskResize, timeout: diskFileTimeout}
		c.intent = func(ctx context.Context, _ *run) (_ Change, err error) {
			if d, err = m.store.Disk(ctx, id); err != nil {
				return Change{}, err
			}
			if err := match.check("disk "+id, Version{d.Seq, d.Revision}); err != nil {
				return Change{}, err
			}
			if sizeMiB < d.SizeMiB {
				return Change{}, invalidField("/size", "must be at least %g GiB, the present size: a disk cannot shrink", float64(d.SizeMiB)/gibInMi)
			}
			if d.State != DiskAvailable && d.State != DiskAttached {
				return Change{}, &Fault{Code: CodeState, Detail: fmt.Sprintf("disk %s cannot be resized: it is in state %s", id, d.State)}
			}
			return Change{}, nil
		}
		c.act = func(ctx context.Context, r *run) (Change, error) {
			if err := m.driver.ResizeDisk(ctx, d, sizeMiB); err != nil {
				return Change{}, err
			}
			d.SizeMiB = sizeMiB
			return Change{Disks: []DiskUpdate{{From: d.State, Disk: d}}}, nil
		}
		return c
	})
	return d, err
}

func notAvailable(d Disk) *Fault {
	return &Fault{Code: CodeState, Detail: fmt.Sprintf("disk %s is not available: it is in state %s", d.ID, d.State)}
}

func attachedTo(d Disk) string { return d.VMID }

// live reports whether v has a QEMU to plug disks into.
func live(v VM) bool { return v.State == Running || v.State == Paused }

// release returns the update that gives a disk free.
func release(d Disk) DiskUpdate {
	from := d.State
	d.State, d.VMID, d.MountPoint, d.Reason = DiskAvailable, "", "", ""
	return DiskUpdate{From: from, Disk: d}
}
