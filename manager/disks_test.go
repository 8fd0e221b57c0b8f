package manager_test

import (
	"context"
	"slices"
	"testing"

	"vmand/vm"
)

func TestDiskLifecycle(t *testing.T) {
	for _, running := range []bool{true, false} {
		name := map[bool]string{true: "on a running VM", false: "on a stopped VM"}[running]
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create("a")
			if running {
				w.do("a", vm.OpStart)
			}
			d := w.disk("")
			got, op, err := w.Disks.Attach(t.Context(), d.ID, "a", "")
			if err != nil || got.State != vm.DiskAttached || got.MountPoint != "/dev/sdb" || op.State != vm.OpSucceeded {
				t.Fatalf("attached as %+v, %+v, %v", got, op, err)
			}
			if want := "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_" + d.ID; got.GuestDevice() != want {
				t.Errorf("guest device %s; want %s", got.GuestDevice(), want)
			}
			_, _, err = w.Disks.Attach(t.Context(), d.ID, "a", "")
			wantCode(t, err, vm.CodeState, "already attached")
			wantCode(t, w.Disks.Delete(t.Context(), d.ID, nil, false), vm.CodeInUse, "attached")
			if got, err = w.Disks.Resize(t.Context(), d.ID, 2048, nil, false); err != nil || got.SizeMiB != 2048 {
				t.Errorf("resized to %+v, %v", got, err)
			}
			_, err = w.Disks.Resize(t.Context(), d.ID, 1024, nil, false)
			wantCode(t, err, vm.CodeInvalid, "shrink")
			if got, _, err = w.Disks.Detach(t.Context(), d.ID, vm.DetachOptions{}); err != nil || got.State != vm.DiskAvailable || got.MountPoint != "" || got.VMID != "" {
				t.Errorf("detached as %+v, %v", got, err)
			}
			_, _, err = w.Disks.Detach(t.Context(), d.ID, vm.DetachOptions{})
			wantCode(t, err, vm.CodeState, "not attached")
			must(t)(w.Disks.Delete(t.Context(), d.ID, nil, false))
			wantCode(t, w.Disks.Delete(t.Context(), d.ID, nil, false), vm.CodeNotFound)
		})
	}
}

func TestEachSlotIsAssignedOnce(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	attach := func(recorded, requested string) (vm.Disk, error) {
		d, _, err := w.Disks.Attach(t.Context(), w.disk(recorded).ID, "a", requested)
		return d, err
	}
	if d, err := attach("/dev/vdc", ""); err != nil || d.MountPoint != "/dev/vdc" {
		t.Errorf("attached at the mount point of its creation: %+v, %v", d, err)
	}
	_, err := attach("", "/dev/sdc")
	wantCode(t, err, vm.CodeInUse, "/dev/sdc", "in use")
	_, err = attach("", "/dev/sda")
	wantCode(t, err, vm.CodeInvalid, "/mount_point")
	for i := range vm.MaxDisks - 1 {
		if d, err := attach("", ""); err != nil {
			t.Fatalf("disk %d: %+v, %v", i, d, err)
		}
	}
	_, err = attach("", "")
	wantCode(t, err, vm.CodeLimitReached, "24")
	_, err = w.Disks.Create(t.Context(), vm.NewDisk{SizeMiB: 0})
	wantCode(t, err, vm.CodeInvalid, "/size")
	_, err = w.Disks.Create(t.Context(), vm.NewDisk{SizeMiB: 1, MountPoint: "/dev/hda"})
	wantCode(t, err, vm.CodeInvalid, "/mount_point")
	_, _, err = w.Disks.Attach(t.Context(), w.disk("").ID, "nobody", "")
	wantCode(t, err, vm.CodeNotFound)
}

func TestDeletingAVMDetachesItsDisks(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	d := w.disk("")
	must(t)(w.Disks.Attach(t.Context(), d.ID, "a", ""))
	must(t)(w.VMs.Delete(t.Context(), "a", nil, false))
	w.wantDisk(d.ID, vm.DiskAvailable, "", "")
}

func TestUnreleasedDiskStaysDetaching(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	d := w.disk("")
	must(t)(w.Disks.Attach(t.Context(), d.ID, "a", "/dev/vdq"))
	stuck := func(_ context.Context, m, _ string) error {
		if m == "DetachDisk" {
			return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "the guest has not released the device"}
		}
		return nil
	}
	w.driver.Hook = stuck
	got, op, err := w.Disks.Detach(t.Context(), d.ID, vm.DetachOptions{})
	if err != nil || got.State != vm.DiskDetaching || op.State != vm.OpFailed {
		t.Fatalf("detached as %+v, %+v, %v", got, op, err)
	}
	// Attaching the disk again cancels the detach.
	got, _, err = w.Disks.Attach(t.Context(), d.ID, "a", "")
	if err != nil || got.State != vm.DiskAttached || got.MountPoint != "/dev/vdq" {
		t.Fatalf("attached again: %+v, %v", got, err)
	}
	must(t)(w.Disks.Detach(t.Context(), d.ID, vm.DetachOptions{}))
	if r, err := w.Settle(t.Context(), vm.DiskResource(d.ID)); err != nil || r.Changed {
		t.Errorf("settled while the guest holds the disk: %+v, %v", r, err)
	}
	w.driver.Hook = nil
	if r, err := w.Settle(t.Context(), vm.DiskResource(d.ID)); err != nil || !r.Changed || r.Is != "available" {
		t.Errorf("settled after the release: %+v, %v", r, err)
	}
	w.wantDisk(d.ID, vm.DiskAvailable, "", "")
	// A power-off also finishes a detach.
	must(t)(w.Disks.Attach(t.Context(), d.ID, "a", ""))
	w.driver.Hook = stuck
	must(t)(w.Disks.Detach(t.Context(), d.ID, vm.DetachOptions{}))
	w.do("a", vm.OpStop)
	w.wantDisk(d.ID, vm.DiskAvailable, "", "")
}

func TestLostDiskFileIsReported(t *testing.T) {
	w := newWorld(t)
	d := w.disk("")
	w.driver.LoseDisk(d.ID)
	if r, err := w.Settle(t.Context(), vm.DiskResource(d.ID)); err != nil || !r.Changed {
		t.Errorf("settled: %+v, %v", r, err)
	}
	if got := w.wantDisk(d.ID, vm.DiskError, "", ""); got.Reason == "" {
		t.Error("the disk has no reason")
	}
	must(t)(w.driver.CreateDisk(t.Context(), d.ID, vm.DiskFile{SizeMiB: 512}, nil, nil))
	must(t)(w.Settle(t.Context(), vm.DiskResource(d.ID)))
	w.wantDisk(d.ID, vm.DiskAvailable, "", "")
}

func TestFailedAttachDetachesTheDisk(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	d := w.disk("")
	w.driver.Hook = func(_ context.Context, m, _ string) error {
		if m == "AttachDisk" {
			return &vm.Fault{Code: vm.CodeOperationFailed, Detail: "QEMU said no"}
		}
		return nil
	}
	_, _, err := w.Disks.Attach(t.Context(), d.ID, "a", "")
	wantCode(t, err, vm.CodeOperationFailed)
	w.wantDisk(d.ID, vm.DiskAvailable, "", "")
}

func TestStartFailsWithoutAnAttachedDisk(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	d := w.disk("")
	if _, _, err := w.Disks.Attach(t.Context(), d.ID, "a", ""); err != nil {
		t.Fatal(err)
	}
	w.driver.LoseDisk(d.ID)
	_, err := w.Settle(t.Context(), vm.DiskResource(d.ID))
	must(t)(err)
	w.wantDisk(d.ID, vm.DiskError, "a", "/dev/sdb")
	_, _, err = w.VMs.Do(t.Context(), "a", vm.OpStart, vm.StopOptions{})
	wantCode(t, err, vm.CodeState, d.ID, "missing")
	if _, _, err = w.Disks.Detach(t.Context(), d.ID, vm.DetachOptions{}); err != nil {
		t.Fatal(err)
	}
	w.do("a", vm.OpStart)
}

func TestInterruptedAttachLeavesNothingInQEMU(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	d := w.disk("")
	d.State, d.VMID, d.MountPoint = vm.DiskAttaching, "a", "/dev/sdb" // as after a kill before the device is added
	id := w.open(vm.DiskAttach, vm.DiskResource(d.ID).String(), vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskAvailable, Disk: d}}})
	refuse := true
	w.driver.Hook = func(_ context.Context, method, _ string) error {
		if method == "DetachDisk" && refuse {
			return &vm.Fault{Code: vm.CodeUnavailable, Detail: "not yet"}
		}
		return nil
	}
	must(t)(w.Settle(t.Context(), vm.DiskResource(d.ID)))
	if got := w.wantDisk(d.ID, vm.DiskDetaching, "a", "/dev/sdb"); got.Reason != "not yet" {
		t.Errorf("the reason of the disk is %q, want none while QEMU may hold its file", got.Reason)
	}
	if op, err := w.store.Operation(t.Context(), id); err != nil || op.State != vm.OpFailed {
		t.Errorf("the interrupted operation is %s, %v", op.State, err)
	}
	refuse = false
	must(t)(w.Settle(t.Context(), vm.DiskResource(d.ID)))
	w.wantDisk(d.ID, vm.DiskAvailable, "", "")
	if calls := w.driver.Calls(); !slices.Contains(calls, "DetachDisk "+d.ID) {
		t.Errorf("calls of the driver %v, want also the detach", calls)
	}
}
