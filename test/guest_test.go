package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmand/openapi"
)

// TestTheMainJob is what the README shows, and what it leaves behind.
func TestTheMainJob(t *testing.T) {
	d := startDaemon(t, bootDisk("normal"))
	d.template()
	if v := d.create("web-1"); v.State != "stopped" || v.DesiredState != "stopped" || v.LocalIP == nil || *v.LocalIP != "10.0.2.15" || v.ReachableFromHost {
		t.Errorf("created: %+v", v)
	}
	disk := d.newDisk(1)
	if disk.State != "available" || disk.VMID != nil || disk.MountPoint != nil {
		t.Errorf("created: %+v", disk)
	}

	a := d.call("POST", "/vms/web-1/actions/start", nil).want(202)
	if v := as[openapi.VM](a); v.State != "starting" {
		t.Errorf("accepted: %+v", v)
	}
	v := d.waitVM("web-1", "running", "requested", 30*time.Second)
	if v.Accel == nil || *v.Accel != "tcg" || v.MachineType == nil || !strings.HasPrefix(*v.MachineType, "pc-q35-") || v.StartedAt == nil {
		t.Errorf("running: %+v", v)
	}
	if op := d.operation(a); op.State != "succeeded" || op.Kind != "vm.start" || op.Resource != "vms/web-1" || len(op.Log) == 0 {
		t.Errorf("the start was recorded as %+v", op)
	}
	g := d.guest("web-1")
	ready := g.says(`VMT: ready boots=1 cpus=1 mem_kb=(\d+) uuid=(\S*)`)
	if ready[2] != v.UUID {
		t.Errorf("the guest's UUID is %s; want %s", ready[2], v.UUID)
	}

	disk = d.attach(disk.ID, "web-1")
	if disk.State != "attached" || *disk.VMID != "web-1" || *disk.MountPoint != "/dev/sdb" {
		t.Errorf("attached: %+v", disk)
	}
	seen := g.says(`VMT: disk-add name=(sd\w+) bytes=(\d+) ro=0 serial=(\S+) by-id=(\S+) scsi=\d+:\d+:\d+:(\d+)`)
	if seen[2] != fmt.Sprint(1<<30) || seen[3] != disk.ID || "/dev/disk/by-id/"+seen[4] != *disk.GuestDevice || seen[5] != "1" {
		t.Errorf("the guest sees %q; want disk %+v at LUN 1", seen, disk)
	}
	d.call("PATCH", "/disks/"+disk.ID, map[string]any{"size": 1.5}).want(200)
	g.says(fmt.Sprintf(`VMT: disk-resize name=%s bytes=%d`, seen[1], 3<<29))
	d.call("POST", "/disks/"+disk.ID+"/detach", nil).want(200)
	g.says("VMT: disk-remove name=" + seen[1])

	stop := d.call("POST", "/vms/web-1/actions/stop", map[string]any{"timeout_seconds": 60}, wait).want(200)
	if v := as[openapi.VM](stop); v.State != "stopped" || *v.StateReason != "requested" || stop.header.Get("Preference-Applied") != "wait" {
		t.Errorf("stopped: %+v, %v", v, stop.header)
	}
	g.says("VMT: power-button")
	g.says("VMT: poweroff")
	if pids := d.qemus(); len(pids) != 0 {
		t.Errorf("QEMUs are left: %v", pids)
	}
	d.call("DELETE", "/vms/web-1", nil).want(204)
	d.call("DELETE", "/disks/"+disk.ID, nil).want(204)
	d.call("DELETE", "/templates/small", nil).want(204)
	d.nothingLeft()
}

// nothingLeft fails the test if there is a trace of any VM or disk.
func (d *daemon) nothingLeft() {
	d.t.Helper()
	for _, list := range []string{"/vms", "/disks", "/templates"} {
		if a := d.call("GET", list, nil).want(200); strings.TrimSpace(string(a.body)) != "[]" {
			d.t.Errorf("%s: %s", list, a.body)
		}
	}
	for _, dir := range []string{filepath.Join(d.state, "vms"), filepath.Join(d.state, "disks")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			d.t.Error(err)
		}
		for _, e := range entries {
			d.t.Errorf("%s is left in %s", e.Name(), dir)
		}
	}
	entries, err := os.ReadDir(d.runtime)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "vmand.sock" && e.Name() != "vmand.lock" {
			d.t.Errorf("%s is left in the runtime directory", e.Name())
		}
	}
}

func TestADeafGuestIsForcedAfterItsTime(t *testing.T) {
	d := startDaemon(t, bootDisk("deaf"))
	d.template()
	d.create("deaf")
	d.do("deaf", "start")
	g := d.guest("deaf")
	g.says("VMT: ready")
	a := d.call("POST", "/vms/deaf/actions/stop", map[string]any{"timeout_seconds": 2}).want(202)
	d.waitVM("deaf", "stopped", "requested", 30*time.Second)
	g.says("VMT: power-button")
	g.never("VMT: poweroff")
	op := d.operation(a)
	var steps []string
	for _, line := range op.Log {
		steps = append(steps, line.Step)
	}
	acpi, quit := slices.Index(steps, "acpi"), slices.Index(steps, "quit")
	if op.State != "succeeded" || acpi < 0 || quit < acpi {
		t.Errorf("the ladder is %q of %+v; want acpi, later quit", steps, op)
	}
	if took := op.FinishedAt.Sub(op.StartedAt.Time); took < 2*time.Second {
		t.Errorf("the guest had %s of its 2 s", took)
	}
}

func TestAGuestThatPowersItselfOffIsStopped(t *testing.T) {
	d := startDaemon(t, bootDisk("poweroff"))
	d.template()
	d.create("tired")
	d.do("tired", "start")
	v := d.waitVM("tired", "stopped", "guest-shutdown", 90*time.Second)
	if v.DesiredState != "running" {
		t.Errorf("desired is %s: nobody asked for a stop", v.DesiredState)
	}
	eventually(t, 5*time.Second, "QEMU to end", func() error {
		if pids := d.qemus(); len(pids) != 0 {
			return fmt.Errorf("left: %v", pids)
		}
		return nil
	})
	d.do("tired", "start")
}

func TestAGuestThatRebootsItselfGoesOnRunning(t *testing.T) {
	d := startDaemon(t, bootDisk("reboot"))
	d.template()
	d.create("restless")
	d.do("restless", "start")
	pid := d.pid("restless")
	g := d.guest("restless")
	g.says("VMT: reboot")
	g.says("VMT: ready boots=2")
	if v := d.vm("restless"); v.State != "running" || d.pid("restless") != pid {
		t.Errorf("after the reboot: %+v, process %d; it was %d", v, d.pid("restless"), pid)
	}
}

func TestAPanickedGuestIsPausedAndCanBeReset(t *testing.T) {
	d := startDaemon(t, bootDisk("panic"))
	d.template()
	d.create("sick")
	disk := d.newDisk(0.25)
	d.do("sick", "start")
	d.attach(disk.ID, "sick")
	d.waitVM("sick", "paused", "guest-panicked", 90*time.Second)
	// No guest is needed to let go of a disk.
	if got := as[openapi.Disk](d.call("POST", "/disks/"+disk.ID+"/detach", nil).want(200)); got.State != "available" {
		t.Errorf("detached: %+v", got)
	}
	g := d.guest("sick")
	g.says("VMT: panic")
	if v := d.do("sick", "reset"); v.State != "running" {
		t.Errorf("after the reset: %+v", v)
	}
	g.says("VMT: ready boots=2")
	d.call("POST", "/vms/sick/actions/stop", map[string]any{"force": true}, wait).want(200)
}

func TestADiskComesAndGoesWithoutTheGuest(t *testing.T) {
	d := startDaemon(t, bootDisk("normal"))
	d.template()
	d.create("a")
	disk := d.newDisk(0.5)
	detach := func(when string) {
		t.Helper()
		if got := as[openapi.Disk](d.call("POST", "/disks/"+disk.ID+"/detach", nil).want(200)); got.State != "available" || got.VMID != nil {
			t.Errorf("detached %s: %+v", when, got)
		}
	}
	d.attach(disk.ID, "a")
	detach("from a stopped VM")
	d.attach(disk.ID, "a")
	d.do("a", "start")
	detach("while it boots")
	d.attach(disk.ID, "a")
	g := d.guest("a")
	g.says("VMT: ready")
	if v := d.do("a", "pause"); v.State != "paused" || *v.StateReason != "requested" {
		t.Errorf("paused: %+v", v)
	}
	detach("while paused")
	d.attach(disk.ID, "a")
	d.do("a", "resume")
	d.do("a", "restart")
	g.says("VMT: disk-add .*serial=" + disk.ID)
	g.says("VMT: ready boots=2")
	detach("after a restart")
	g.says("VMT: disk-remove")
}

func TestAKilledQEMUIsACrashWithItsLastWords(t *testing.T) {
	d := startDaemon(t)
	d.template()
	d.create("a")
	d.do("a", "start")
	file := filepath.Join(d.state, "vms", "a", "qemu.log")
	log, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(log, "famous last words")
	log.Close()
	if err := syscall.Kill(d.pid("a"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v := d.waitVM("a", "error", "crashed", 10*time.Second)
	if v.StateReasonDetail == nil || !strings.Contains(*v.StateReasonDetail, "famous last words") {
		t.Errorf("the reason's detail is %v", v.StateReasonDetail)
	}
	d.do("a", "start")
	d.call("POST", "/vms/a/actions/stop", map[string]any{"force": true}, wait).want(200)
}

func TestAHungQEMUCanBeStoppedAndDeleted(t *testing.T) {
	d := startDaemon(t)
	d.template()
	for _, id := range []string{"a", "b"} {
		d.create(id)
		d.do(id, "start")
		if err := syscall.Kill(d.pid(id), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	// The API answers as ever.
	if vms := as[[]openapi.VM](d.call("GET", "/vms?state=running", nil).want(200)); len(vms) != 2 {
		t.Errorf("listed: %+v", vms)
	}
	v := as[openapi.VM](d.call("POST", "/vms/a/actions/stop", map[string]any{"force": true}, wait).want(200))
	if v.State != "stopped" {
		t.Errorf("stopped: %+v", v)
	}
	d.call("DELETE", "/vms/b", nil).want(204)
	if pids := d.qemus(); len(pids) != 0 {
		t.Errorf("left: %v", pids)
	}
}

func TestDeletingWhileStarting(t *testing.T) {
	d := startDaemon(t)
	d.template()
	for i := range 5 {
		id := fmt.Sprintf("vm-%d", i)
		d.create(id)
		d.call("POST", "/vms/"+id+"/actions/start", nil).want(202)
		d.call("DELETE", "/vms/"+id, nil).want(204)
	}
	if pids := d.qemus(); len(pids) != 0 {
		t.Errorf("left: %v", pids)
	}
	d.call("DELETE", "/templates/small", nil).want(204)
	d.nothingLeft()
}

func TestARebootedHostShowsNoVMRunning(t *testing.T) {
	d := startDaemon(t)
	d.template()
	d.create("a")
	d.do("a", "start")
	d.kill()
	d.endVMs()
	if err := os.RemoveAll(d.runtime); err != nil { // /run is empty after a boot
		t.Fatal(err)
	}
	d.start()
	d.waitVM("a", "error", "crashed", 10*time.Second)
	d.do("a", "start")
}

// TestWhoQEMURunsAs looks at the process from outside.
func TestWhoQEMURunsAs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test is about what root starts; run the tests as root")
	}
	d := startDaemon(t, bootDisk("normal"))
	d.template()
	d.create("a")
	disk := d.newDisk(0.25)
	d.attach(disk.ID, "a")
	d.do("a", "start")
	pid := d.pid("a")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`(?m)^Uid:\t([1-9]\d+)\t`, `(?m)^Gid:\t([1-9]\d+)\t`, `(?m)^CapEff:\t0+$`, `(?m)^CapPrm:\t0+$`, `(?m)^CapAmb:\t0+$`,
		`(?m)^NoNewPrivs:\t1$`, `(?m)^Seccomp:\t2$`} {
		if !regexp.MustCompile(line).Match(status) {
			t.Errorf("/proc/%d/status does not match %s:\n%s", pid, line, status)
		}
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue
		}
		switch {
		case strings.HasPrefix(to, "socket:"), strings.HasPrefix(to, "anon_inode:"), to == "/dev/null", to == "/dev/urandom", to == "/dev/random",
			strings.HasPrefix(to, filepath.Join(d.state, "vms", "a")), strings.HasPrefix(to, filepath.Join(d.runtime, "a.")),
			to == filepath.Join(d.state, "disks", disk.ID+".qcow2"), to == filepath.Join(guests, "disk-normal.qcow2"):
		default:
			t.Errorf("QEMU has %s open", to)
		}
	}
}

func TestEightVMsAtOnce(t *testing.T) {
	d := startDaemon(t, bootDisk("normal"))
	d.template()
	for i := range 8 {
		d.create(fmt.Sprintf("vm-%d", i))
	}
	answers := make(chan error, 8)
	for i := range 8 {
		go func() {
			a, err := d.try("POST", fmt.Sprintf("/vms/vm-%d/actions/start", i), nil, wait)
			if err == nil && a.status != http.StatusOK {
				err = fmt.Errorf("vm-%d: %d %s", i, a.status, a.body)
			}
			answers <- err
		}()
	}
	for range 8 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if pids := d.qemus(); len(pids) != 8 {
		t.Errorf("%d QEMUs", len(pids))
	}
	for i := range 8 {
		d.guest(fmt.Sprintf("vm-%d", i)).says("VMT: boot n=1")
	}
}
