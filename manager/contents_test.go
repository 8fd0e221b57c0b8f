package manager_test

import (
	"context"
	"slices"
	"testing"

	"vmand/vm"
)

func TestHeldContentIsNotRemoved(t *testing.T) {
	w := newWorld(t)
	w.fetch("x", "c")
	reached, release := w.blockOn("CreateVM")
	made := make(chan error, 1)
	go func() {
		_, err := w.VMs.Create(context.WithoutCancel(t.Context()), vm.NewVM{ID: "a", Template: "small", Image: "x"})
		made <- err
	}()
	<-reached
	wantCode(t, w.Images.Delete(t.Context(), "x", nil, false), vm.CodeBusy, "vm.create")
	release()
	must(t)(<-made)
	wantCode(t, w.Images.Delete(t.Context(), "x", nil, false), vm.CodeInUse, "1 VM")
}

func TestFailedEjectKeepsTheContent(t *testing.T) {
	w := newWorld(t)
	iso := w.fetch("iso", "iso")
	w.create("a")
	must(t)(w.CDROMs.Attach(t.Context(), "a", vm.NewCDROM{Image: "iso"}))
	w.do("a", vm.OpStart)
	var meanwhile error
	w.driver.Hook = func(_ context.Context, m, _ string) error {
		if m != "SetCDROMs" {
			return nil
		}
		meanwhile = w.Images.Delete(t.Context(), "iso", nil, false)
		return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "QEMU is mute"}
	}
	wantCode(t, w.CDROMs.Eject(t.Context(), "a", "cd-1", nil), vm.CodeQEMUUnresponsive)
	wantCode(t, meanwhile, vm.CodeBusy)
	if d := w.vm("a").CDROMs; len(d) != 1 || !slices.Contains(w.driver.Contents(), iso.SHA256) {
		t.Errorf("the VM has the drives %+v, the host the contents %q", d, w.driver.Contents())
	}
	w.driver.Hook = nil
	must(t)(w.CDROMs.Eject(t.Context(), "a", "cd-1", nil))
	must(t)(w.Images.Delete(t.Context(), "iso", nil, false))

	base := func(image string) vm.DiskFile {
		return vm.DiskFile{SizeMiB: 16, Base: vm.ContentBase(w.fetch(image, image).SHA256), BaseFormat: "raw"}
	}
	must(t)(w.driver.CreateDisk(t.Context(), "data", base("x"), nil, nil))
	must(t)(w.driver.CreateVM(t.Context(), "web", base("y"), nil, nil))
	for resource, image := range map[string]string{"disks/data": "x", "vms/web": "y"} {
		w.store.fail = func(c vm.Change) error { // before the record is written
			if c.NewDisk != nil || c.NewVM != nil {
				meanwhile = w.Images.Delete(t.Context(), image, nil, false)
			}
			return nil
		}
		meanwhile = nil
		must(t)(w.Orphans.Adopt(t.Context(), vm.ParseResource(resource), "small"))
		wantCode(t, meanwhile, vm.CodeBusy)
	}
}

func TestOrphansOfImages(t *testing.T) {
	w := newWorld(t)
	i := w.fetch("x", "c")
	resource := vm.ImageResource(i.SHA256)
	_, err := w.Orphans.Delete(t.Context(), resource)
	wantCode(t, err, vm.CodeState, "no orphan")
	must(t)(w.store.Apply(t.Context(), vm.Change{DeleteImage: "x"}))
	_, err = w.Orphans.Adopt(t.Context(), resource, "")
	wantCode(t, err, vm.CodeNotFound)
	// The disks based on it are orphans, too, and would become unreadable.
	base := vm.DiskFile{SizeMiB: 16, Base: vm.ContentBase(i.SHA256), BaseFormat: "raw"}
	must(t)(w.driver.CreateDisk(t.Context(), "data", base, nil, nil))
	_, err = w.Orphans.Delete(t.Context(), resource)
	wantCode(t, err, vm.CodeInUse, "disks/data")
	must(t)(w.Orphans.Delete(t.Context(), vm.DiskResource("data")))
	if err := w.driver.CreateVM(t.Context(), "web", base, nil, nil); err != nil {
		t.Fatal(err)
	}
	_, err = w.Orphans.Delete(t.Context(), resource)
	wantCode(t, err, vm.CodeInUse, "vms/web")
	must(t)(w.Orphans.Delete(t.Context(), vm.VMResource("web")))
	must(t)(w.Orphans.Delete(t.Context(), resource))
	if got := w.driver.Contents(); len(got) != 0 {
		t.Errorf("the contents %q remain, want none", got)
	}
	_, err = w.Orphans.Delete(t.Context(), resource)
	wantCode(t, err, vm.CodeNotFound)
}
