package qemu

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/qemu/qmp"
	"vmand/vm"
)

// BenchmarkStart measures Start, and the same command line without the driver until
// QEMU has answered on its monitor and runs the guest. The ratio is the cost of the
// driver.
func BenchmarkStart(b *testing.B) {
	h := newHost(b)
	s := h.create("bench", guestDeaf)
	ctx := context.Background()
	var driver, raw time.Duration
	for b.Loop() {
		begin := time.Now()
		if _, err := h.Start(ctx, s, nil); err != nil {
			b.Fatal(err)
		}
		driver += time.Since(begin)
		if err := h.Shutdown(ctx, s.ID, vm.StopOptions{Force: true}, nil); err != nil {
			b.Fatal(err)
		}
		raw += h.startByHand(s)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(driver.Seconds()*1000/float64(b.N), "driver-ms")
	b.ReportMetric(raw.Seconds()*1000/float64(b.N), "raw-ms")
	b.ReportMetric(float64(driver)/float64(raw), "ratio")
}

// startByHand starts QEMU without the driver and returns how long it took to answer.
func (h *testHost) startByHand(s vm.Spec) time.Duration {
	h.t.Helper()
	if err := h.prepareRun(s); err != nil {
		h.t.Fatal(err)
	}
	log, err := os.Create(h.dir + "/raw.log")
	if err != nil {
		h.t.Fatal(err)
	}
	files := []*os.File{nil, log, log}
	for _, suffix := range []string{qmpSuffix, operatorSuffix} {
		f, err := listen(h.layout.inRun(s.ID, suffix))
		if err != nil {
			h.t.Fatal(err)
		}
		files = append(files, f)
	}
	base, err := os.Open(s.Root.Base)
	if err != nil {
		h.t.Fatal(err)
	}
	console, err := openSerialLog(h.state, s.ID)
	if err != nil {
		h.t.Fatal(err)
	}
	defer console.Close()
	files = append(files, base, console)
	args, err := commandLine(capabilities{}, s, h.layout, bootFDs{qmp: 3, operator: 4, base: 6, serialLog: 7})
	if err != nil {
		h.t.Fatal(err)
	}
	path, err := host.LookPath(h.opts.Binary)
	if err != nil {
		h.t.Fatal(err)
	}
	begin := time.Now()
	pidfile, err := lockPidfile(h.layout.pidfile(s.ID), h.account) // QEMU cannot create it
	if err != nil {
		h.t.Fatal(err)
	}
	pidfile.Close()
	program := h.program(append([]string{path}, args...)...)
	program.Files = files
	p, err := program.Start()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range files[2:] {
		f.Close()
	}
	conn, err := qmp.Dial(h.t.Context(), h.layout.inRun(s.ID, qmpSuffix))
	if err == nil {
		err = conn.Execute(h.t.Context(), "cont", nil, nil)
	}
	took := time.Since(begin)
	p.Kill()
	if err != nil {
		h.t.Fatal(err)
	}
	conn.Close()
	h.layout.removeRun(s.ID, runSuffixes...)
	return took
}

// BenchmarkSurvey measures the CPU time of a survey of 50 running VMs.
func BenchmarkSurvey(b *testing.B) {
	const vms = 50
	h := newHost(b)
	for i := range vms {
		h.start(fmt.Sprintf("bench-%d", i), guestDeaf)
	}
	var before, after unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &before)
	for b.Loop() {
		seen, err := h.Survey(context.Background())
		if err != nil || len(seen.VMs) != vms {
			b.Fatalf("the survey sees %d VMs: %v", len(seen.VMs), err)
		}
	}
	unix.Getrusage(unix.RUSAGE_SELF, &after)
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/1e6/float64(b.N), "cpu-ms/op")
}

// BenchmarkSurveyDisks measures a survey of 1,000 disks that have not changed for a
// while.
func BenchmarkSurveyDisks(b *testing.B) {
	const disks = 1000
	h := newHost(b)
	must(b, h.CreateDisk(b.Context(), "first", vm.DiskFile{SizeMiB: 16}, nil, nil))
	image, err := h.state.ReadFile(dataDisk("first"))
	must(b, err)
	for i := range disks - 1 {
		must(b, h.state.WriteFile(dataDisk(fmt.Sprintf("d%d", i)), image, 0o600))
	}
	then := time.Now().Add(-time.Hour)
	seen, err := h.files.disks()
	must(b, err)
	for id := range seen {
		must(b, os.Chtimes(h.layout.inState(dataDisk(id)), then, then))
	}
	for b.Loop() {
		seen, err := h.Survey(context.Background())
		if err != nil || len(seen.DiskFiles) != disks || seen.DiskFiles["d7"] != 16 {
			b.Fatalf("the survey sees %d disks: %v", len(seen.DiskFiles), err)
		}
	}
}

// BenchmarkDisk measures the operations on a data disk of a running VM.
func BenchmarkDisk(b *testing.B) {
	h := newHost(b)
	h.start("bench", guestDeaf)
	ctx := context.Background()
	disk := vm.Disk{ID: "data", VMID: "bench", MountPoint: "/dev/sdb"}
	var took [4]time.Duration
	for b.Loop() {
		for i, step := range []func() error{
			func() error { return h.CreateDisk(ctx, disk.ID, vm.DiskFile{SizeMiB: 1024}, nil, nil) },
			func() error { return h.AttachDisk(ctx, disk) },
			func() error { return h.DetachDisk(ctx, disk) },
			func() error { return h.DeleteDisk(ctx, disk.ID) },
		} {
			begin := time.Now()
			if err := step(); err != nil {
				b.Fatal(err)
			}
			took[i] += time.Since(begin)
		}
	}
	for i, name := range []string{"create-ms", "attach-ms", "detach-ms", "delete-ms"} {
		b.ReportMetric(took[i].Seconds()*1000/float64(b.N), name)
	}
}
