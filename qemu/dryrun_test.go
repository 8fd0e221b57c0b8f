package qemu

import (
	"path/filepath"
	"slices"
	"testing"

	"vmand/vm"
)

// newDryRun returns a dry run; a second call for the same directory is a restart.
func newDryRun(t *testing.T, dir string) *DryRun {
	t.Helper()
	d, err := NewDryRun(Options{StateDir: filepath.Join(dir, "state"), RuntimeDir: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// errOf returns the error of a Start.
func errOf(_ vm.Boot, err error) error { return err }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustFail(t testing.TB, err error, want vm.Code) {
	t.Helper()
	if codeOf(err) != want {
		t.Errorf("got %v, want code %s", err, want)
	}
}

func TestADryRunKeepsFiles(t *testing.T) {
	d, ctx, spec := newDryRun(t, tempDir(t)), t.Context(), testSpec()
	mustFail(t, d.Admit(ctx, spec), vm.CodeOperationFailed)
	must(t, d.CreateVM(ctx, spec.ID, spec.Root, nil, nil))
	mustFail(t, d.CreateVM(ctx, spec.ID, spec.Root, nil, nil), vm.CodeExists)
	if known, root, err := d.AdoptVM(ctx, spec.ID); known != "" || root != spec.Root || err != nil {
		t.Errorf("AdoptVM returns %q, %+v, %v", known, root, err)
	}
	if has, err := d.HasVM(ctx, spec.ID); !has || err != nil {
		t.Errorf("HasVM finds no files: %v", err)
	}
	must(t, d.CreateDisk(ctx, "data", vm.DiskFile{SizeMiB: 16}, nil, nil))
	mustFail(t, d.CreateDisk(ctx, "data", vm.DiskFile{SizeMiB: 16}, nil, nil), vm.CodeExists)
	must(t, d.ResizeDisk(ctx, vm.Disk{ID: "data"}, 32))
	mustFail(t, d.ResizeDisk(ctx, vm.Disk{ID: "data"}, 16), vm.CodeInvalid)
	if size, err := d.DiskSize(ctx, "data"); size != 32 || err != nil {
		t.Errorf("the disk has %d MiB, %v", size, err)
	}
	for range 2 {
		must(t, d.DeleteVM(ctx, spec.ID))
		must(t, d.DeleteDisk(ctx, "data"))
	}
	_, err := d.DiskSize(ctx, "data")
	mustFail(t, err, vm.CodeNotFound)
	_, _, err = d.AdoptVM(ctx, spec.ID)
	mustFail(t, err, vm.CodeNotFound)
	if has, err := d.HasVM(ctx, spec.ID); has || err != nil {
		t.Errorf("HasVM still finds files: %v", err)
	}
}

func TestADryRunPretendsToRun(t *testing.T) {
	dir := tempDir(t)
	d, ctx, spec := newDryRun(t, dir), t.Context(), testSpec()
	disk := vm.Disk{ID: "data", VMID: spec.ID, MountPoint: "/dev/sdb"}
	must(t, d.CreateVM(ctx, spec.ID, spec.Root, nil, nil))
	must(t, d.CreateDisk(ctx, "data", vm.DiskFile{SizeMiB: 16}, nil, nil))
	mustFail(t, d.AttachDisk(ctx, disk), vm.CodeState)
	must(t, d.DetachDisk(ctx, disk))
	mustFail(t, d.AttachNIC(ctx, spec.ID, userPort(2)), vm.CodeState)
	mustFail(t, d.SetLink(ctx, spec.ID, 0, true), vm.CodeState)
	must(t, d.DetachNIC(ctx, spec.ID, 2))
	must(t, d.Admit(ctx, spec))
	spec.Ports = []vm.Port{userPort(3)}
	must(t, errOf(d.Start(ctx, spec, nil)))
	mustFail(t, d.Admit(ctx, spec), vm.CodeState)
	must(t, d.AttachDisk(ctx, disk))
	for range 2 {
		must(t, d.AttachNIC(ctx, spec.ID, userPort(2)))
	}
	must(t, d.SetLink(ctx, spec.ID, 2, false))
	must(t, d.SetForwards(ctx, spec.ID, 2, nil, nil))
	must(t, d.WriteSeed(ctx, spec.ID, map[string][]byte{"meta-data": []byte("instance-id: 1\n")}))
	must(t, d.SetCDROMs(ctx, spec.ID, []vm.CDROM{{ID: "cd-2"}, {ID: "cd-1"}}))
	must(t, d.Control(ctx, spec.ID, vm.OpPause))

	d = newDryRun(t, dir)
	seen, err := d.Survey(ctx)
	must(t, err)
	if got := seen.VMs[spec.ID]; got.Status != vm.StatusPaused || !slices.Equal(got.Plugged, []string{"data"}) ||
		!slices.Equal(got.NICs, []int{2, 3}) || !slices.Equal(got.CDROMs, []string{"cd-1", "cd-2"}) || !got.Alive() {
		t.Errorf("after a restart the VM is %+v", got)
	}
	if !seen.VMFiles[spec.ID] || seen.DiskFiles["data"] != 16 || seen.Storage.SizeMiB == 0 {
		t.Errorf("after a restart the survey is %+v", seen)
	}
	must(t, d.Control(ctx, spec.ID, vm.OpResume))
	must(t, d.Control(ctx, spec.ID, vm.OpReset))
	must(t, d.DetachDisk(ctx, disk))
	must(t, d.DetachNIC(ctx, spec.ID, 3))
	if got := d.Observe(ctx, spec.ID); got.Status != vm.StatusRunning || len(got.Plugged) != 0 || !slices.Equal(got.NICs, []int{2}) {
		t.Errorf("it is %+v", got)
	}
	for range 2 {
		must(t, d.Shutdown(ctx, spec.ID, vm.StopOptions{}, nil))
	}
	if f, err := d.Flight(ctx, spec.ID); f.Now.PID != 0 || len(f.Crashes) != 0 || err != nil {
		t.Errorf("Flight returns %+v, %v", f, err)
	}
	if d.Observe(ctx, spec.ID).Alive() {
		t.Error("the VM still runs")
	}
}

func TestADryRunMakesAnEmptyImageOfADisk(t *testing.T) {
	d, ctx := newDryRun(t, tempDir(t)), t.Context()
	file := vm.DiskFile{SizeMiB: 16}
	must(t, d.CreateDisk(ctx, "data", file, nil, nil))
	c, err := d.ImageOfDisk(ctx, vm.CopySource{Resource: vm.DiskResource("data"), File: file}, vm.Import{})
	if err != nil || c.Layout != vm.FormatQcow2 || c.VirtualMiB != 16 {
		t.Errorf("it is %+v, %v", c, err)
	}
	file.Base, file.BaseFormat = vm.ContentBase(c.SHA256), string(c.Layout)
	must(t, d.CreateDisk(ctx, "overlay", file, nil, nil))
	must(t, d.ResizeDisk(ctx, vm.Disk{ID: "overlay", DiskFile: file}, 32))
	file.SizeMiB = 32
	if got, err := d.AdoptDisk(ctx, "overlay"); got != file || err != nil {
		t.Errorf("AdoptDisk returns %+v, %v", got, err)
	}
}

func TestDryRunIsReported(t *testing.T) {
	d := newDryRun(t, tempDir(t))
	if p, err := d.Platform(t.Context()); err != nil || p.Warning == "" || d.CheckTools(t.Context()).QEMU.Err != nil {
		t.Errorf("it is %+v, %v", p, err)
	}
}
