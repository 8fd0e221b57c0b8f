package manager_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmand/manager"
	"vmand/store"
	"vmand/vm"
	"vmand/vm/vmtest"
)

// A world is a manager with a real database and a fake host.
type world struct {
	*manager.Engine
	t      *testing.T
	store  *faultyStore
	driver *vmtest.Driver

	network *vmtest.Network
}

// A faultyStore is a real store that fails the changes for which fail returns an error.
type faultyStore struct {
	*store.Store
	fail func(vm.Change) error
}

func (s *faultyStore) Apply(ctx context.Context, c vm.Change) (vm.Applied, error) {
	if s.fail != nil {
		if err := s.fail(c); err != nil {
			return vm.Applied{}, err
		}
	}
	return s.Store.Apply(ctx, c)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "vman.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: &faultyStore{Store: s}, driver: &vmtest.Driver{}, network: &vmtest.Network{}}
	w.Engine = manager.New(w.store, w.driver, w.network, manager.Options{}, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		w.Close(t.Context())
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t)(w.Networks.Create(t.Context(), vm.Network{Name: vm.DefaultNetwork, Mode: vm.NetworkNAT}))
	must(t)(w.Templates.Create(t.Context(), vm.Template{Name: "small", CPUCount: 1, RAMMiB: 128}))
	return w
}

// must returns a function that fails the test if its last argument is an error.
func must(t *testing.T) func(...any) {
	return func(results ...any) {
		t.Helper()
		if err, _ := results[len(results)-1].(error); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) create(id string) {
	w.t.Helper()
	must(w.t)(w.VMs.Create(w.t.Context(), vm.NewVM{ID: id, Template: "small"}))
}

// do begins an operation and waits for its end.
func (w *world) do(id string, op vm.Op) vm.Operation {
	w.t.Helper()
	_, o, err := w.VMs.Do(w.t.Context(), id, op, vm.StopOptions{})
	if err != nil {
		w.t.Fatalf("%s %s: %v", op, id, err)
	}
	o, err = w.Operations.Wait(w.t.Context(), o.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

func (w *world) wantVM(id string, s vm.State, why vm.Reason) vm.VM {
	w.t.Helper()
	v, err := w.store.VM(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	if v.State != s || v.Reason != why {
		w.t.Fatalf("VM %s is %s/%s (%s); want %s/%s", id, v.State, v.Reason, v.ReasonDetail, s, why)
	}
	return v
}

func (w *world) wantDisk(id string, s vm.DiskState, vmID, mountPoint string) vm.Disk {
	w.t.Helper()
	d, err := w.store.Disk(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	if d.State != s || d.VMID != vmID || d.MountPoint != mountPoint {
		w.t.Fatalf("disk is %+v; want %s on %q at %q", d, s, vmID, mountPoint)
	}
	return d
}

func (w *world) disk(mountPoint string) vm.Disk {
	w.t.Helper()
	d, err := w.Disks.Create(w.t.Context(), vm.NewDisk{SizeMiB: 512, MountPoint: mountPoint})
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func wantCode(t *testing.T, err error, code vm.Code, words ...string) *vm.Fault {
	t.Helper()
	var f *vm.Fault
	if !errors.As(err, &f) || f.Code != code {
		t.Fatalf("got error %v; want one of code %s", err, code)
	}
	for _, word := range words {
		if !strings.Contains(f.Error(), word) {
			t.Fatalf("error %q does not contain %q", f.Error(), word)
		}
	}
	return f
}

// blockOn makes a method of the driver wait until the operation is cancelled or release is
// called. It closes reached when the method is called.
func (w *world) blockOn(method string) (reached <-chan struct{}, release func()) {
	in, out := make(chan struct{}), make(chan struct{})
	w.driver.Hook = func(ctx context.Context, m, id string) error {
		if m != method {
			return nil
		}
		select {
		case <-in:
		default:
			close(in)
		}
		select {
		case <-out:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	return in, func() { close(out) }
}

func TestVMLifecycle(t *testing.T) {
	w := newWorld(t)
	w.create("web-1")
	if v := w.wantVM("web-1", vm.Stopped, vm.ReasonCreated); v.Root.SizeMiB != vm.DefaultMiB || v.Template.RAMMiB != 128 || v.UUID == "" {
		t.Errorf("created VM %+v", v)
	}
	op := w.do("web-1", vm.OpStart)
	if op.State != vm.OpSucceeded || op.Kind != vm.VMStart || len(op.Log) == 0 {
		t.Errorf("recorded operation of the start %+v", op)
	}
	if v := w.wantVM("web-1", vm.Running, vm.ReasonRequested); v.Machine != "pc-q35-7.2" || v.Accel != vm.TCG || v.StartedAt.IsZero() || v.Desired != vm.DesiredRunning {
		t.Errorf("running VM %+v", v)
	}
	w.do("web-1", vm.OpPause)
	w.wantVM("web-1", vm.Paused, vm.ReasonRequested)
	w.do("web-1", vm.OpResume)
	w.do("web-1", vm.OpReset)
	w.do("web-1", vm.OpRestart)
	w.wantVM("web-1", vm.Running, vm.ReasonRequested)
	w.do("web-1", vm.OpStop)
	if v := w.wantVM("web-1", vm.Stopped, vm.ReasonRequested); v.Desired != vm.DesiredStopped {
		t.Errorf("stopped VM %+v", v)
	}
	must(t)(w.VMs.Delete(t.Context(), "web-1", nil, false))
	want := []string{"CreateVM web-1", "Start web-1", "Pause web-1", "Resume web-1", "Reset web-1", "Shutdown web-1", "Start web-1",
		"Shutdown web-1", "Destroy web-1", "DeleteVM web-1"}
	inBackground := func(call string) bool { return strings.HasPrefix(call, "SetClock ") }
	if got := slices.DeleteFunc(w.driver.Calls(), inBackground); !slices.Equal(got, want) {
		t.Errorf("calls of the driver %q; want %q", got, want)
	}
	_, err := w.store.VM(t.Context(), "web-1")
	wantCode(t, err, vm.CodeNotFound)
}

func TestInvalidVMsAreRefused(t *testing.T) {
	w := newWorld(t)
	w.create("taken")
	w.driver.AddVMFiles("orphan")
	tests := map[string]struct {
		n    vm.NewVM
		code vm.Code
		say  string
	}{
		"unknown template":       {vm.NewVM{ID: "a", Template: "huge"}, vm.CodeInvalid, `template huge not found`},
		"existing name":          {vm.NewVM{ID: "taken", Template: "small"}, vm.CodeExists, "already exists"},
		"files without a record": {vm.NewVM{ID: "orphan", Template: "small"}, vm.CodeExists, "not recorded"},
		"a path as name":         {vm.NewVM{ID: "../a", Template: "small"}, vm.CodeInvalid, "/name"},
		"oversized root disk":    {vm.NewVM{ID: "a", Template: "small", RootSizeMiB: vm.MaxDiskMiB + 1}, vm.CodeInvalid, "/root_disk_size"},
		"a negative root disk":   {vm.NewVM{ID: "a", Template: "small", RootSizeMiB: -1}, vm.CodeInvalid, "/root_disk_size"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := w.VMs.Create(t.Context(), tt.n)
			wantCode(t, err, tt.code, tt.say)
		})
	}
	for _, bad := range []vm.Template{{Name: "A", CPUCount: 1, RAMMiB: 1}, {Name: "a", RAMMiB: 1}, {Name: "a", CPUCount: 1}, {Name: "a", CPUCount: 257, RAMMiB: 1}} {
		_, err := w.Templates.Create(t.Context(), bad)
		wantCode(t, err, vm.CodeInvalid)
	}
	if has, _ := w.driver.HasVM(t.Context(), "orphan"); !has {
		t.Error("the unrecorded files were removed")
	}
}

func TestFailedCreationLeavesNoFiles(t *testing.T) {
	w := newWorld(t)
	w.driver.Hook = func(_ context.Context, m, _ string) error {
		if m == "CreateVM" {
			return &vm.Fault{Code: vm.CodeInsufficientStorage, Detail: "no room"}
		}
		return nil
	}
	_, err := w.VMs.Create(t.Context(), vm.NewVM{ID: "a", Template: "small"})
	if f := wantCode(t, err, vm.CodeInsufficientStorage); f.OperationID == "" {
		t.Error("the fault does not name its operation")
	}
	w.driver.Hook = nil
	w.store.fail = func(c vm.Change) error {
		if c.NewVM != nil {
			return &vm.Fault{Code: vm.CodeUnavailable, Detail: "the database is full"}
		}
		return nil
	}
	_, err = w.VMs.Create(t.Context(), vm.NewVM{ID: "a", Template: "small"})
	wantCode(t, err, vm.CodeUnavailable)
	if has, _ := w.driver.HasVM(t.Context(), "a"); has {
		t.Error("files remain")
	}
	w.store.fail = nil
	w.create("a")
}

func TestRefusalsNameTheReason(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	refuse := func(op vm.Op, words string) {
		t.Helper()
		_, _, err := w.VMs.Do(t.Context(), "a", op, vm.StopOptions{})
		wantCode(t, err, vm.CodeState, words)
	}
	for _, op := range []vm.Op{vm.OpStop, vm.OpRestart, vm.OpPause, vm.OpResume, vm.OpReset} {
		refuse(op, "not running")
	}
	w.do("a", vm.OpStart)
	refuse(vm.OpStart, "already running")
	refuse(vm.OpResume, "not paused")
	w.do("a", vm.OpPause)
	refuse(vm.OpPause, "already paused")
	refuse(vm.OpStart, "already running")
	_, _, err := w.VMs.Do(t.Context(), "b", vm.OpStart, vm.StopOptions{})
	wantCode(t, err, vm.CodeNotFound, `VM b not found`)
	if err := w.Templates.Delete(t.Context(), "small", nil); !errors.Is(err, vm.ErrState) || !strings.Contains(err.Error(), "in use by 1 VM") {
		t.Errorf("deleting a template in use: %v", err)
	}
}

func TestOutdatedVersionChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	old := w.wantVM("a", vm.Stopped, vm.ReasonCreated)
	w.do("a", vm.OpStart)
	stale := vm.Match{{Seq: old.Seq, Revision: old.Revision}}
	wantCode(t, w.VMs.Delete(t.Context(), "a", stale, false), vm.CodePrecondition)
	d := w.disk("")
	wantCode(t, w.Disks.Delete(t.Context(), d.ID, stale, false), vm.CodePrecondition)
	_, err := w.Disks.Resize(t.Context(), d.ID, 1024, stale, false)
	wantCode(t, err, vm.CodePrecondition)
	wantCode(t, w.Templates.Delete(t.Context(), "small", vm.Match{{Seq: 99}}), vm.CodePrecondition)
	v := w.wantVM("a", vm.Running, vm.ReasonRequested)
	must(t)(w.VMs.Delete(t.Context(), "a", vm.Match{{Seq: v.Seq, Revision: v.Revision}}, false))
	must(t)(w.Disks.Delete(t.Context(), d.ID, vm.Match{{Seq: d.Seq, Revision: d.Revision}}, false))
}

func TestFailedStartHasTheOutputOfQEMU(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.driver.Hook = func(_ context.Context, m, id string) error {
		if m == "Start" {
			w.driver.Set(id, vm.StatusPrelaunch)
			return &vm.Fault{Code: vm.CodeOperationFailed, Detail: "QEMU said no"}
		}
		return nil
	}
	op := w.do("a", vm.OpStart)
	if op.State != vm.OpFailed || op.Problem.Code != vm.CodeOperationFailed {
		t.Errorf("operation %+v", op)
	}
	w.wantVM("a", vm.Stopped, vm.ReasonStartFailed)
	if n := w.driver.Processes(); n != 0 {
		t.Errorf("%d processes remain", n)
	}
	w.driver.Hook = nil
	w.do("a", vm.OpStart)
	w.wantVM("a", vm.Running, vm.ReasonRequested)
}

func TestPanicInAnOperationReleasesTheLock(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.driver.Hook = func(_ context.Context, m, id string) error {
		if m == "Start" {
			panic("a defect")
		}
		return nil
	}
	op := w.do("a", vm.OpStart)
	if op.State != vm.OpFailed || op.Problem.Code != vm.CodeInternal || strings.Contains(op.Problem.Detail, "defect") {
		t.Errorf("operation %+v, %+v", op, op.Problem)
	}
	w.driver.Hook = nil
	w.do("a", vm.OpStart)
	w.wantVM("a", vm.Running, vm.ReasonRequested)
}

func TestSecondOperationFailsWithBusy(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	reached, release := w.blockOn("Start")
	_, first, err := w.VMs.Do(t.Context(), "a", vm.OpStart, vm.StopOptions{})
	must(t)(err)
	<-reached
	for _, op := range []vm.Op{vm.OpStart, vm.OpStop, vm.OpPause} {
		_, _, err := w.VMs.Do(t.Context(), "a", op, vm.StopOptions{})
		if f := wantCode(t, err, vm.CodeBusy, "vm.start"); f.OperationID != first.ID {
			t.Errorf("%s was refused because of operation %q; want %q", op, f.OperationID, first.ID)
		}
	}
	if _, err := w.Settle(t.Context(), vm.VMResource("a")); !errors.Is(err, vm.ErrBusy) {
		t.Errorf("settling a busy VM: %v", err)
	}
	release()
	if op, _ := w.Operations.Wait(t.Context(), first.ID); op.State != vm.OpSucceeded {
		t.Errorf("first operation %+v", op)
	}
}

func TestForcedStopCancelsAStart(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	reached, _ := w.blockOn("Start")
	_, first, err := w.VMs.Do(t.Context(), "a", vm.OpStart, vm.StopOptions{})
	must(t)(err)
	<-reached
	_, second, err := w.VMs.Do(t.Context(), "a", vm.OpStop, vm.StopOptions{Force: true})
	must(t)(err)
	if op, _ := w.Operations.Wait(t.Context(), first.ID); op.State != vm.OpCancelled || !strings.Contains(op.Problem.Detail, second.ID) {
		t.Errorf("start operation %+v, %+v", op, op.Problem)
	}
	if op, _ := w.Operations.Wait(t.Context(), second.ID); op.State != vm.OpSucceeded {
		t.Errorf("stop operation %+v, %+v", op, op.Problem)
	}
	w.wantVM("a", vm.Stopped, vm.ReasonRequested)
}

func TestDeletionWorksInEveryState(t *testing.T) {
	for _, method := range []string{"Start", "Shutdown", "Pause"} {
		t.Run("while in "+method, func(t *testing.T) {
			w := newWorld(t)
			w.create("a")
			op := map[string]vm.Op{"Start": vm.OpStart, "Shutdown": vm.OpStop, "Pause": vm.OpPause}[method]
			if op != vm.OpStart {
				w.do("a", vm.OpStart)
			}
			reached, _ := w.blockOn(method)
			_, first, err := w.VMs.Do(t.Context(), "a", op, vm.StopOptions{Timeout: time.Hour})
			must(t)(err)
			<-reached
			must(t)(w.VMs.Delete(t.Context(), "a", nil, false))
			if op, _ := w.Operations.Wait(t.Context(), first.ID); op.State != vm.OpCancelled {
				t.Errorf("first operation %+v", op)
			}
			if n := w.driver.Processes(); n != 0 {
				t.Errorf("%d processes remain", n)
			}
		})
	}
	for _, s := range []vm.State{vm.Stopped, vm.Running, vm.Paused, vm.Errored, vm.Starting, vm.Stopping} {
		t.Run("recorded as "+string(s), func(t *testing.T) {
			w := newWorld(t)
			w.create("a")
			v := w.wantVM("a", vm.Stopped, vm.ReasonCreated)
			v.State = s
			must(t)(w.store.Apply(t.Context(), vm.Change{VM: &vm.VMUpdate{From: vm.Stopped, VM: v}}))
			must(t)(w.VMs.Delete(t.Context(), "a", nil, false))
		})
	}
}

func TestAnOperationCanBeCancelled(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	reached, _ := w.blockOn("Shutdown")
	_, first, err := w.VMs.Do(t.Context(), "a", vm.OpStop, vm.StopOptions{Timeout: time.Hour})
	must(t)(err)
	<-reached
	op, err := w.Operations.Cancel(vm.WithCaller(t.Context(), vm.Caller{Name: "token:admin"}), first.ID)
	if err != nil || op.State != vm.OpCancelled || !strings.Contains(op.Problem.Detail, "token:admin") {
		t.Errorf("cancelled operation %+v, %+v, %v", op, op.Problem, err)
	}
	w.wantVM("a", vm.Running, vm.ReasonRequested)
	_, err = w.Operations.Cancel(t.Context(), first.ID)
	wantCode(t, err, vm.CodeNotCancellable, "is over")
	_, err = w.Operations.Cancel(t.Context(), "no such")
	wantCode(t, err, vm.CodeNotFound)
}

func TestDisconnectedClientDoesNotCancelTheOperation(t *testing.T) {
	w := newWorld(t)
	reached, release := w.blockOn("CreateVM")
	ctx, hangUp := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := w.VMs.Create(ctx, vm.NewVM{ID: "a", Template: "small"})
		failed <- err
	}()
	<-reached
	hangUp()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("the disconnected client got %v", err)
	}
	ops, err := w.store.Operations(t.Context(), vm.OperationFilter{Kind: vm.VMCreate}, vm.Page{})
	if err != nil || len(ops) != 1 {
		t.Fatalf("operations: %v, %v", ops, err)
	}
	release()
	if op, _ := w.Operations.Wait(t.Context(), ops[0].ID); op.State != vm.OpSucceeded {
		t.Errorf("operation %+v", op)
	}
	w.wantVM("a", vm.Stopped, vm.ReasonCreated)
}

func TestCloseInterruptsAndRecordsOperations(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	reached, _ := w.blockOn("Shutdown")
	_, first, err := w.VMs.Do(t.Context(), "a", vm.OpStop, vm.StopOptions{Timeout: time.Hour})
	must(t)(err)
	<-reached
	done, cancel := context.WithCancel(t.Context())
	cancel()
	w.Close(done)
	op, err := w.store.Operation(t.Context(), first.ID)
	if err != nil || op.State != vm.OpFailed || op.Problem.Code != vm.CodeInterrupted {
		t.Errorf("operation %+v, %+v, %v", op, op.Problem, err)
	}
	w.wantVM("a", vm.Running, vm.ReasonRequested)
	_, _, err = w.VMs.Do(t.Context(), "a", vm.OpStop, vm.StopOptions{})
	wantCode(t, err, vm.CodeUnavailable, "stopping")
}
