package manager_test

import (
	"context"
	"errors"
	"testing"

	"vmand/vm"
)

// A copying begins an operation that reads a source.
type copying struct {
	method string // of the driver, in which the copy blocks
	begin  func(w *world) vm.Operation
}

// copyings are the operations that read the VM "a" or the disk src.
func copyings(src string) map[string]copying {
	return map[string]copying{
		"an image of it": {"ImageOfDisk", func(w *world) vm.Operation {
			_, op, err := w.Images.Create(w.t.Context(), vm.NewImage{Name: "copy", FromDisk: src})
			must(w.t)(err)
			return op
		}},
		"a copy of it": {"CreateDisk", func(w *world) vm.Operation {
			_, op, err := w.Disks.Copy(w.t.Context(), vm.NewDisk{FromDisk: src})
			must(w.t)(err)
			return op
		}},
	}
}

// wantBusyWith fails the test unless err says that a resource is busy with op, which goes on.
func (w *world) wantBusyWith(err error, op vm.Operation) {
	w.t.Helper()
	if f := wantCode(w.t, err, vm.CodeBusy, "needs it"); f.OperationID != op.ID {
		w.t.Errorf("the fault names operation %q, want %q", f.OperationID, op.ID)
	}
	if now, err := w.Operations.Wait(cancelled(), op.ID); err != nil || now.State != vm.OpRunning {
		w.t.Errorf("the operation is %+v, %v; want it running", now, err)
	}
}

// cancelled returns a context that is done.
func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// wantCancelled waits for the end of op and fails the test unless it was cancelled.
func (w *world) wantCancelled(op vm.Operation) {
	w.t.Helper()
	op, err := w.Operations.Wait(w.t.Context(), op.ID)
	if err != nil || op.State != vm.OpCancelled {
		w.t.Errorf("the operation is %+v, %v; want it cancelled", op, err)
	}
}

func TestAVMThatIsBeingCopiedCannotBeDeletedWithoutForce(t *testing.T) {
	for name, c := range copyings("a") {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create("a")
			reached, release := w.blockOn(c.method)
			defer release()
			op := c.begin(w)
			<-reached
			w.wantBusyWith(w.VMs.Delete(t.Context(), "a", nil, false), op)
			for _, stop := range []vm.StopOptions{{}, {Force: true}} {
				_, _, err := w.VMs.Do(t.Context(), "a", vm.OpStop, stop)
				w.wantBusyWith(err, op)
			}
			_, _, err := w.VMs.Do(t.Context(), "a", vm.OpStart, vm.StopOptions{})
			w.wantBusyWith(err, op)
			must(t)(w.VMs.Delete(t.Context(), "a", nil, true))
			w.wantCancelled(op)
			if _, err := w.store.VM(t.Context(), "a"); !errors.Is(err, vm.ErrNotFound) {
				t.Errorf("the VM exists after its deletion: %v", err)
			}
		})
	}
}

func TestADiskThatIsBeingCopiedCannotBeDeletedOrResizedWithoutForce(t *testing.T) {
	for name := range copyings("") {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create("a")
			src := w.disk("")
			c := copyings(src.ID)[name]
			reached, release := w.blockOn(c.method)
			defer release()
			op := c.begin(w)
			<-reached
			w.wantBusyWith(w.Disks.Delete(t.Context(), src.ID, nil, false), op)
			_, err := w.Disks.Resize(t.Context(), src.ID, 1024, nil, false)
			w.wantBusyWith(err, op)
			_, _, err = w.Disks.Attach(t.Context(), src.ID, "a", "")
			w.wantBusyWith(err, op)
			d, err := w.Disks.Resize(t.Context(), src.ID, 1024, nil, true)
			must(t)(err)
			if d.SizeMiB != 1024 {
				t.Errorf("the disk has %d MiB after the resize, want 1024", d.SizeMiB)
			}
			w.wantCancelled(op)
			must(t)(w.Disks.Delete(t.Context(), src.ID, nil, true)) // nothing reads it
		})
	}
}

func TestAnImageThatIsBeingCopiedCannotBeDeletedWithoutForce(t *testing.T) {
	w := newWorld(t)
	w.fetch("raw", "raw")
	reached, release := w.blockOn("CreateVM")
	defer release()
	ended := make(chan error, 1)
	go func() {
		_, err := w.VMs.Create(context.Background(), vm.NewVM{ID: "b", Template: "small", Image: "raw", FullClone: true})
		ended <- err
	}()
	<-reached
	open, err := w.store.Operations(t.Context(), vm.OperationFilter{Open: true}, vm.Page{})
	must(t)(err)
	w.wantBusyWith(w.Images.Delete(t.Context(), "raw", nil, false), open[0])
	_, _, err = w.VMs.Do(t.Context(), "b", vm.OpStop, vm.StopOptions{Force: true})
	wantCode(t, err, vm.CodeNotFound) // and the copy goes on
	must(t)(w.Images.Delete(t.Context(), "raw", nil, true))
	wantCode(t, <-ended, vm.CodeCancelled)
	for _, r := range []string{"raw", "b"} {
		if has, _ := w.driver.HasVM(t.Context(), r); has {
			t.Errorf("VM %s has files", r)
		}
	}
	if _, err := w.store.Image(t.Context(), "raw"); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("the image exists after its deletion: %v", err)
	}
}

func TestAForcedDeletionIsRefusedWhileTheReaderCannotBeCancelled(t *testing.T) {
	w := newWorld(t)
	w.fetch("raw", "raw")
	reached, release := w.blockOn("CreateDisk")
	ended := make(chan error, 1)
	go func() {
		_, err := w.Disks.Create(context.Background(), vm.NewDisk{Image: "raw"})
		ended <- err
	}()
	<-reached
	f := wantCode(t, w.Images.Delete(t.Context(), "raw", nil, true), vm.CodeBusy, "disk.create")
	if f.OperationID == "" {
		t.Error("the fault names no operation")
	}
	release()
	must(t)(<-ended)
	wantCode(t, w.Images.Delete(t.Context(), "raw", nil, true), vm.CodeInUse)
}
