package qemu

import (
	"path/filepath"
	"slices"
	"testing"

	"vmand/vm"
)

func TestADryRunPretendsAWholeLife(t *testing.T) {
	dir := tempDir(t)
	o := Options{StateDir: filepath.Join(dir, "state"), RuntimeDir: filepath.Join(dir, "run")}
	open := func() *DryRun {
		t.Helper()
		d, err := NewDryRun(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	d := open()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	code := func(err error, want vm.Code) {
		t.Helper()
		if codeOf(err) != want {
			t.Errorf("got %v, want code %s", err, want)
		}
	}
	spec := testSpec()
	code(d.Admit(ctx, spec), vm.CodeOperationFailed)
	must(d.CreateVM(ctx, spec.ID, spec.Root))
	code(d.CreateVM(ctx, spec.ID, spec.Root), vm.CodeExists)
	if has, err := d.HasVM(ctx, spec.ID); !has || err != nil {
		t.Errorf("it has no files: %v", err)
	}
	must(d.CreateDisk(ctx, "data", 16))
	code(d.CreateDisk(ctx, "data", 16), vm.CodeExists)
	disk := vm.Disk{ID: "data", VMID: spec.ID, MountPoint: "/dev/sdb"}
	code(d.AttachDisk(ctx, disk), vm.CodeState)
	must(d.DetachDisk(ctx, disk))
	must(d.ResizeDisk(ctx, disk, 32))
	code(d.ResizeDisk(ctx, disk, 16), vm.CodeInvalid)
	if size, err := d.DiskSize(ctx, "data"); size != 32 || err != nil {
		t.Errorf("it has %d MiB, %v", size, err)
	}

	must(d.Admit(ctx, spec))
	must(d.Start(ctx, spec, nil))
	code(d.Admit(ctx, spec), vm.CodeState)
	must(d.AttachDisk(ctx, disk))
	must(d.Pause(ctx, spec.ID))
	d = open() // a restart
	seen, err := d.Survey(ctx)
	must(err)
	if got := seen.VMs[spec.ID]; got.Status != vm.StatusPaused || !slices.Equal(got.Plugged, []string{"data"}) || !got.Alive() {
		t.Errorf("after a restart it is %+v", got)
	}
	if !seen.VMFiles[spec.ID] || !seen.DiskFiles["data"] {
		t.Errorf("after a restart there is %+v", seen)
	}
	must(d.Resume(ctx, spec.ID))
	must(d.Reset(ctx, spec.ID))
	must(d.DetachDisk(ctx, disk))
	if got := d.Observe(ctx, spec.ID); got.Status != vm.StatusRunning || len(got.Plugged) != 0 {
		t.Errorf("it is %+v", got)
	}

	for range 2 {
		must(d.Shutdown(ctx, spec.ID, vm.StopOptions{}, nil))
		must(d.DeleteVM(ctx, spec.ID))
		must(d.DeleteDisk(ctx, "data"))
	}
	if d.Observe(ctx, spec.ID).Alive() {
		t.Error("it pretends on")
	}
	_, err = d.DiskSize(ctx, "data")
	code(err, vm.CodeNotFound)
	if p, err := d.Platform(ctx); err != nil || p.Warning == "" || d.CheckTools(ctx).QEMU.Err != nil {
		t.Errorf("it is %+v, %v", p, err)
	}
}
