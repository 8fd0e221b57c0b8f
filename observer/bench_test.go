package observer

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/manager"
	"vmand/store"
	"vmand/vm"
	"vmand/vm/vmtest"
)

// BenchmarkPass measures a whole pass without findings over 1,000 recorded VMs, of which 50
// run, and 500 disks: with records in memory, and in a real database. cpu-ms/op counts all
// threads of the process.
func BenchmarkPass(b *testing.B) {
	w := newWorld()
	for n := range 1000 {
		id := fmt.Sprintf("vm-%04d", n)
		if n < 50 {
			w.run(id)
		} else {
			w.vms[id] = vm.VM{ID: id, State: vm.Stopped, Reason: vm.ReasonRequested}
			w.seen.VMFiles[id] = true
		}
		if n%2 == 0 {
			w.disks[id] = vm.Disk{ID: id, DiskFile: vm.DiskFile{SizeMiB: 1024}, State: vm.DiskAvailable}
			w.seen.DiskFiles[id] = 1024
		}
	}
	b.Run("memory", func(b *testing.B) { benchmarkPass(b, w, w) })
	b.Run("database", func(b *testing.B) { benchmarkPass(b, w, recordAll(b, w)) })
}

// BenchmarkGrowth measures light and whole passes over 10,000 VMs recorded in a real
// database, of which 50 run on a simulated host. cpu-ms/op counts all threads of the
// process; heap-MiB is the heap in use right after the passes, with garbage.
func BenchmarkGrowth(b *testing.B) {
	driver := &vmtest.Driver{}
	w := newWorld()
	for n := range 10_000 {
		id := fmt.Sprintf("vm-%05d", n)
		driver.AddVMFiles(id)
		if n < 50 {
			w.run(id)
			driver.Set(id, vm.StatusRunning)
		} else {
			w.vms[id] = vm.VM{ID: id, State: vm.Stopped, Reason: vm.ReasonRequested}
		}
	}
	records := recordAll(b, w)
	w = nil
	for name, whole := range map[string]bool{"light": false, "whole": true} {
		b.Run(name, func(b *testing.B) {
			log := slog.New(slog.DiscardHandler)
			engine := manager.New(records, driver, &vmtest.Network{}, manager.Options{}, log)
			defer engine.Close(b.Context())
			o := New(Options{Interval: interval}, Deps{driver, records, engine, engine.VMs, engine.Networks, log})
			o.pass(b.Context()) // the first is whole
			runtime.GC()
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				o.cycle.whole, o.cycle.light = whole, 0
				o.pass(b.Context())
			}
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			b.ReportMetric(float64(m.HeapInuse)/(1<<20), "heap-MiB")
			if s := o.Status(); s.Status != StatusOK || len(s.Issues) != 0 {
				b.Fatalf("status %q (%s) with %d issues, want ok and none", s.Status, s.Error, len(s.Issues))
			}
		})
	}
}

func benchmarkPass(b *testing.B, w *world, records Records) {
	o := New(Options{Interval: interval}, Deps{w, records, w, w, w, slog.New(slog.DiscardHandler)})
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		o.cycle.whole = true
		o.pass(b.Context())
	}
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
	if s := o.Status(); s.Status != StatusOK || len(s.Issues) != 0 {
		b.Fatalf("status %+v, want ok and no issues", s)
	}
}

// recordAll records the world's VMs and disks in a database.
func recordAll(b *testing.B, w *world) *store.Store {
	b.Helper()
	s, err := store.Open(b.Context(), store.Options{Path: filepath.Join(b.TempDir(), "vman.db")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	at := time.Now()
	template := vm.Template{Name: "small", CPUCount: 1, RAMMiB: 128, CreatedAt: at}
	if _, err := s.Apply(b.Context(), vm.Change{NewTemplate: &template}); err != nil {
		b.Fatal(err)
	}
	for id, v := range w.vms {
		v.UUID, v.Template, v.Desired = id, template, vm.DesiredStopped
		v.Root = vm.DiskFile{SizeMiB: 10240}
		v.CreatedAt, v.UpdatedAt = at, at
		if _, err := s.Apply(b.Context(), vm.Change{NewVM: &v}); err != nil {
			b.Fatal(err)
		}
	}
	for _, d := range w.disks {
		d.CreatedAt, d.UpdatedAt = at, at
		if _, err := s.Apply(b.Context(), vm.Change{NewDisk: &d}); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
