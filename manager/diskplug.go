package manager

import (
	"context"
	"errors"
	"fmt"

	"vmand/vm"
)

// A diskWork is what differs between the operations on one disk and the VM it is, or will
// be, attached to.
type diskWork interface {
	// intent and act are those of a [performer].
	intent(context.Context, *run) (vm.Change, error)
	act(context.Context, *run) (vm.Change, error)
	// vmOf returns the id of the VM to lock with the disk; empty for none.
	vmOf(vm.Disk) string
}

// A diskAction runs a diskWork with the disk and its VM locked.
type diskAction struct {
	diskWork
	s    *Disks
	id   string
	vmID string
}

func (a *diskAction) intent(ctx context.Context, r *run) (vm.Change, error) {
	d, err := a.s.store.Disk(ctx, a.id)
	if err != nil {
		return vm.Change{}, err
	}
	if a.vmOf(d) != a.vmID { // it moved before the lock was taken
		return vm.Change{}, &vm.Fault{
			Code: vm.CodeBusy, Detail: fmt.Sprintf("disk %s was just attached or detached", a.id), Hint: "try again",
		}
	}
	return a.diskWork.intent(ctx, r)
}

func (a *diskAction) truth(ctx context.Context) (vm.Change, error) { return a.s.truth(ctx, a.id) }

// work runs one operation on a disk and returns the disk afterwards. A disk that QEMU or the
// guest has not plugged or unplugged yet is returned in its transitional state, without an
// error.
func (s *Disks) work(ctx context.Context, v *verb, id string, w diskWork) (vm.Disk, vm.Operation, error) {
	return s.workOn(ctx, v.request(nil), id, w)
}

// workOn is work for the request q, which lacks its action and its resources.
func (s *Disks) workOn(ctx context.Context, q request, id string, w diskWork) (vm.Disk, vm.Operation, error) {
	d, err := s.store.Disk(ctx, id)
	if err != nil {
		return vm.Disk{}, vm.Operation{}, err
	}
	a := &diskAction{diskWork: w, s: s, id: id, vmID: w.vmOf(d)}
	q.action, q.on = a, []vm.Resource{vm.DiskResource(id)}
	if a.vmID != "" {
		q.on = append(q.on, vm.VMResource(a.vmID))
	}
	r, err := s.begin(ctx, q)
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

// Attach attaches a disk to a VM, plugging it in if the VM runs. If QEMU does not answer,
// the disk it returns is still attaching or detaching.
func (s *Disks) Attach(ctx context.Context, id, vmID, mountPoint string) (vm.Disk, vm.Operation, error) {
	return s.work(ctx, &diskAttach, id, &attachment{s: s, id: id, vmID: vmID, mountPoint: mountPoint})
}

// An attachment is one [Disks.Attach].
type attachment struct {
	s                    *Disks
	id, vmID, mountPoint string
	d                    vm.Disk
}

func (a *attachment) vmOf(vm.Disk) string { return a.vmID }

func (a *attachment) intent(ctx context.Context, _ *run) (vm.Change, error) {
	v, err := a.s.VMs.settled(ctx, a.vmID)
	if err != nil {
		return vm.Change{}, err
	}
	from, err := a.place(ctx, v)
	if err != nil {
		return vm.Change{}, err
	}
	a.d.State = vm.DiskAttaching
	if !v.Live() {
		a.d.State = vm.DiskAttached
	}
	return vm.Change{Disks: []vm.DiskUpdate{{From: from, Disk: a.d}}}, nil
}

// place sets a.d to the disk as it will be recorded on v, and returns its state now. To
// attach a disk that v is still detaching takes the detach back.
func (a *attachment) place(ctx context.Context, v vm.VM) (from vm.DiskState, err error) {
	if a.d, err = a.s.store.Disk(ctx, a.id); err != nil {
		return "", err
	}
	d := &a.d
	switch {
	case d.State == vm.DiskDetaching && d.VMID == v.ID:
		d.Reason = ""
		return d.State, nil
	case d.VMID != "":
		return "", &vm.Fault{
			Code:   vm.CodeState,
			Detail: fmt.Sprintf("disk %s is already attached to VM %s", d.ID, d.VMID),
			Hint:   "detach it first",
		}
	case d.State != vm.DiskAvailable:
		return "", d.NotAvailable()
	case v.State == vm.Errored:
		return "", &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("VM %s is in state error", v.ID), Hint: "stop it first"}
	}
	taken, err := a.s.store.Disks(ctx, vm.DiskFilter{VMID: v.ID}, vm.Page{})
	if err != nil {
		return "", err
	}
	if a.mountPoint == "" {
		a.mountPoint = d.MountPoint
	}
	d.VMID, d.Reason = v.ID, ""
	d.MountPoint, err = v.PlaceDisk(a.mountPoint, taken)
	return d.State, err
}

func (a *attachment) act(ctx context.Context, _ *run) (vm.Change, error) {
	if a.d.State == vm.DiskAttached { // the VM does not run: the record is all
		return vm.Change{}, nil
	}
	if err := a.s.driver.AttachDisk(ctx, a.d); err != nil {
		return vm.Change{}, err
	}
	a.d.State = vm.DiskAttached
	return vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskAttaching, Disk: a.d}}}, nil
}

// Detach detaches a disk from its VM, unplugging it if the VM runs. If the guest or QEMU
// has not released it, the disk it returns is still detaching. It fails with [vm.CodeInUse]
// if a guest agent reports that the disk is mounted, unless the options say otherwise.
func (s *Disks) Detach(ctx context.Context, id string, o vm.DetachOptions) (vm.Disk, vm.Operation, error) {
	d, err := s.store.Disk(ctx, id)
	if err != nil {
		return vm.Disk{}, vm.Operation{}, err
	}
	x := &detachment{s: s, id: id, guest: release{s: s, o: o, d: d}}
	if d.VMID != "" {
		if err := x.guest.prepare(ctx); err != nil {
			return vm.Disk{}, vm.Operation{}, err
		}
		defer x.guest.end()
	}
	return s.work(ctx, &diskDetach, id, x)
}

// A detachment is one [Disks.Detach].
type detachment struct {
	s     *Disks
	id    string
	guest release
	d     vm.Disk
}

func (x *detachment) vmOf(d vm.Disk) string { return d.VMID }

func (x *detachment) intent(ctx context.Context, _ *run) (_ vm.Change, err error) {
	if x.d, err = x.s.store.Disk(ctx, x.id); err != nil {
		return vm.Change{}, err
	}
	if x.d.VMID == "" {
		return vm.Change{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("disk %s is not attached", x.id)}
	}
	v, err := x.s.VMs.settled(ctx, x.d.VMID)
	if err != nil {
		return vm.Change{}, err
	}
	if !v.Live() && v.State != vm.Errored {
		return vm.Change{Disks: []vm.DiskUpdate{x.d.Released("")}}, nil
	}
	from := x.d.State
	x.d.State = vm.DiskDetaching
	return vm.Change{Disks: []vm.DiskUpdate{{From: from, Disk: x.d}}}, nil
}

func (x *detachment) act(ctx context.Context, r *run) (vm.Change, error) {
	if x.d.State != vm.DiskDetaching { // the VM does not run: the record is all
		return vm.Change{}, nil
	}
	if x.guest.done != "" {
		r.report("guest", x.guest.done)
	}
	if err := x.s.driver.DetachDisk(ctx, x.d); err != nil {
		return vm.Change{}, err
	}
	return vm.Change{Disks: []vm.DiskUpdate{x.d.Released(x.guest.doubt)}}, nil
}

// Resize grows a disk, attached or not, and returns it. It fails with [vm.CodeBusy] while an
// operation copies the disk, unless force cancels that operation.
func (s *Disks) Resize(ctx context.Context, id string, sizeMiB int64, match vm.Match, force bool) (vm.Disk, error) {
	if err := vm.CheckDiskSize(sizeMiB, "/size"); err != nil {
		return vm.Disk{}, err
	}
	q := diskResize.request(nil)
	q.claim.force = force
	d, _, err := s.workOn(ctx, q, id, &resizing{s: s, id: id, sizeMiB: sizeMiB, match: match})
	return d, err
}

// A resizing is one [Disks.Resize].
type resizing struct {
	s       *Disks
	id      string
	sizeMiB int64
	match   vm.Match
	d       vm.Disk
}

func (x *resizing) vmOf(d vm.Disk) string { return d.VMID }

func (x *resizing) intent(ctx context.Context, _ *run) (_ vm.Change, err error) {
	if x.d, err = x.s.store.Disk(ctx, x.id); err != nil {
		return vm.Change{}, err
	}
	if err := x.match.Check("disk "+x.id, x.d.Version()); err != nil {
		return vm.Change{}, err
	}
	if x.sizeMiB < x.d.SizeMiB {
		return vm.Change{}, vm.InvalidField("/size", "must be at least %g GiB, the present size: a disk cannot shrink",
			float64(x.d.SizeMiB)/vm.MiBPerGiB)
	}
	if x.d.State != vm.DiskAvailable && x.d.State != vm.DiskAttached {
		return vm.Change{}, &vm.Fault{
			Code: vm.CodeState, Detail: fmt.Sprintf("disk %s cannot be resized: it is in state %s", x.id, x.d.State),
		}
	}
	return vm.Change{}, nil
}

func (x *resizing) act(ctx context.Context, _ *run) (vm.Change, error) {
	if err := x.s.driver.ResizeDisk(ctx, x.d, x.sizeMiB); err != nil {
		return vm.Change{}, err
	}
	x.d.SizeMiB, x.d.ShortBytes = x.sizeMiB, 0
	return vm.Change{Disks: []vm.DiskUpdate{{From: x.d.State, Disk: x.d}}}, nil
}
