package observer

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmand/manager"
	"vmand/store"
	"vmand/vm"
	"vmand/vm/vmtest"
)

// A daemon is an observer with the real manager, a real database and a fake driver.
type daemon struct {
	t        *testing.T
	store    *store.Store
	manager  *manager.Engine
	driver   *vmtest.Driver
	observer *Observer
}

// A thoroughHost returns surveys with the full observation of each VM.
type thoroughHost struct{ *vmtest.Driver }

func (h thoroughHost) Survey(ctx context.Context) (vm.Survey, error) {
	seen, err := h.Driver.Survey(ctx)
	for id := range seen.VMs {
		seen.VMs[id] = h.Observe(ctx, id)
	}
	return seen, err
}

func (h thoroughHost) SurveyProcesses(ctx context.Context) (vm.Survey, error) {
	seen, err := h.Driver.SurveyProcesses(ctx)
	for id := range seen.VMs {
		seen.VMs[id] = h.Observe(ctx, id)
	}
	return seen, err
}

// inDaemon runs f in a synctest bubble with a running observer.
func inDaemon(t *testing.T, f func(t *testing.T, d *daemon)) {
	path := filepath.Join(t.TempDir(), "vman.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(t.Context(), store.Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		d := &daemon{t: t, store: s, driver: &vmtest.Driver{}}
		d.manager = manager.New(s, d.driver, &vmtest.Network{}, manager.Options{}, discard)
		d.observer = New(Options{Interval: interval}, Deps{
			Host:      thoroughHost{d.driver},
			Records:   s,
			Settler:   d.manager,
			Restarter: d.manager.VMs,
			Networks:  d.manager.Networks,
			Log:       discard,
		})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			d.observer.Run(ctx)
			close(done)
		}()
		f(t, d)
		stop()
		<-done
		d.manager.Close(t.Context())
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// start creates and starts a VM with a restart policy.
func (d *daemon) start(id string, policy vm.RestartPolicy) {
	d.t.Helper()
	if _, err := d.store.Template(d.t.Context(), "small"); err != nil {
		if _, err := d.manager.Templates.Create(d.t.Context(), vm.Template{Name: "small", CPUCount: 1, RAMMiB: 128}); err != nil {
			d.t.Fatal(err)
		}
	}
	spec := vm.NewVM{ID: id, Template: "small", NICs: &[]vm.NewNIC{}, VMEdits: vm.VMEdits{Restart: &policy}}
	if _, err := d.manager.VMs.Create(d.t.Context(), spec); err != nil {
		d.t.Fatal(err)
	}
	_, op, err := d.manager.VMs.Do(d.t.Context(), id, vm.OpStart, vm.StopOptions{})
	if err == nil {
		op, err = d.manager.Operations.Wait(d.t.Context(), op.ID)
	}
	if err != nil || op.State != vm.OpSucceeded {
		d.t.Fatalf("start: %+v, %v", op, err)
	}
}

func (d *daemon) vm(id string) vm.VM {
	d.t.Helper()
	v, err := d.store.VM(d.t.Context(), id)
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

func (d *daemon) events(kind string) (resources []string) {
	d.t.Helper()
	events, err := d.store.Events(d.t.Context(), vm.EventFilter{Type: kind}, vm.Page{})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, e := range events {
		resources = append(resources, e.Resource.String())
	}
	return resources
}

func TestRestartBackOff(t *testing.T) {
	inDaemon(t, func(t *testing.T, d *daemon) {
		d.start("a", vm.RestartOnFailure)
		after(interval)
		for n, backoff := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
			d.driver.Set("a", "gone")
			crash := time.Now()
			d.observer.Nudge("a")
			after(backoff - time.Millisecond)
			if v := d.vm("a"); v.State != vm.Errored {
				t.Fatalf("crash %d: VM a is %s (%s) before the end of the back-off, want error", n, v.State, v.Reason)
			}
			after(200 * time.Millisecond)
			v := d.vm("a")
			if late := v.StartedAt.Sub(crash) - backoff; v.State != vm.Running || late < 0 || late > 200*time.Millisecond {
				t.Fatalf("crash %d: VM a is %s (%s), restarted %s late; want running, at most 200 ms late", n, v.State, v.Reason, late)
			}
			if v.Restarts != n+1 {
				t.Errorf("crash %d: %d restarts are recorded, want one per crash", n, v.Restarts)
			}
			after(time.Second)
		}
	})
}

func TestPassRepairsAForeignWrite(t *testing.T) {
	inDaemon(t, func(t *testing.T, d *daemon) {
		d.start("a", vm.RestartNever)
		after(interval)
		v := d.vm("a")
		v.State = vm.Stopped
		if _, err := d.store.Apply(t.Context(), vm.Change{VM: &vm.VMUpdate{From: vm.Running, VM: v}}); err != nil {
			t.Fatal(err)
		}
		after(interval)
		if v := d.vm("a"); v.State != vm.Running {
			t.Errorf("VM a is %s, want running", v.State)
		}
		expectIssues(t, d.observer, "vm_state_mismatch vms/a: recorded running/requested in place of stopped/requested")
		if i := d.observer.Status().Issues[0]; i.RepairedAt.IsZero() {
			t.Errorf("issue %+v, want a time of repair", i)
		}
		for _, kind := range []string{"observer.issue", "observer.repaired"} {
			if got := d.events(kind); !slices.Equal(got, []string{"vms/a"}) {
				t.Errorf("events %s of resources %q, want one of vms/a", kind, got)
			}
		}
	})
}

func TestGuestPausedByAFullDiskContinues(t *testing.T) {
	inDaemon(t, func(t *testing.T, d *daemon) {
		d.start("a", vm.RestartNever)
		d.driver.SetFull("a", 3)
		after(interval)
		if v := d.vm("a"); v.State != vm.Paused || v.Reason != vm.ReasonDiskFull {
			t.Fatalf("VM a is %s (%s), want paused (disk-full)", v.State, v.Reason)
		}
		after(2 * interval)
		expectIssues(t, d.observer)
		d.driver.SetFull("a", 300)
		after(interval)
		if v := d.vm("a"); v.State != vm.Running {
			t.Fatalf("VM a is %s (%s), want running", v.State, v.Reason)
		}
		i := d.observer.Status().Issues
		if len(i) != 1 || !strings.Contains(i[0].Details, "300 MiB") || i[0].RepairedAt.IsZero() {
			t.Errorf("issues %+v, want one repaired issue that names the free space", i)
		}
	})
}

func TestPassRecordsTheSizeOfADiskFile(t *testing.T) {
	inDaemon(t, func(t *testing.T, d *daemon) {
		after(interval / 2) // the first pass must not see the disk
		disk, err := d.manager.Disks.Create(t.Context(), vm.NewDisk{SizeMiB: 1024})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.driver.ResizeDisk(t.Context(), disk, 2048); err != nil {
			t.Fatal(err)
		}
		after(interval)
		got, err := d.store.Disk(t.Context(), disk.ID)
		if err != nil || got.SizeMiB != 2048 {
			t.Errorf("recorded %d MiB, %v; want 2048", got.SizeMiB, err)
		}
		expectIssues(t, d.observer, "disk_size_mismatch disks/"+disk.ID+": recorded 2048 MiB in place of 1024 MiB")
	})
}
