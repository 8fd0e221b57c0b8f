package api

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
	"vmand/test/harness"
	"vmand/test/need"
)

// TestMainScenario follows the README, and checks that nothing is left at the end.
func TestMainScenario(t *testing.T) {
	d := harness.StartDaemon(t, harness.BootDisk("normal"))
	d.CreateTemplate()
	v := d.CreateVM("web-1")
	if v.State != "stopped" || v.DesiredState != "stopped" ||
		harness.Deref(v.LocalIP) != "10.0.2.15" || v.ReachableFromHost {
		t.Errorf("the new VM is %+v, want stopped with the address 10.0.2.15", v)
	}
	disk := d.CreateDisk(1)
	if disk.State != "available" || disk.VMID != nil || disk.MountPoint != nil {
		t.Errorf("the new disk is %+v, want available", disk)
	}

	a := d.Call("POST", "/vms/web-1/actions/start", nil).Want(202)
	if v := harness.As[openapi.VM](a); v.State != "starting" {
		t.Errorf("after the request to start, the VM is %+v, want starting", v)
	}
	v = d.WaitVM("web-1", "running", "requested", 30*time.Second)
	machine := harness.Deref(v.MachineType)
	if string(harness.Deref(v.Accel)) != need.Accel() || !strings.HasPrefix(machine, "pc-q35-") || v.StartedAt == nil {
		t.Errorf("the running VM is %+v, want a q35 machine with TCG", v)
	}
	op := d.Operation(a)
	if op.State != "succeeded" || op.Kind != "vm.start" || op.Resource != "vms/web-1" || len(op.Log) == 0 {
		t.Errorf("the operation is %+v, want a vm.start that succeeded, with steps", op)
	}
	g := d.Serial("web-1")
	ready := g.Expect(`VMT: ready boots=1 cpus=1 mem_kb=(\d+) uuid=(\S+)\s`)
	if ready[2] != v.UUID {
		t.Errorf("the UUID in the guest is %s, want %s", ready[2], v.UUID)
	}

	disk = d.AttachDisk(disk.ID, "web-1")
	if disk.State != "attached" || *disk.VMID != "web-1" || *disk.MountPoint != "/dev/sdb" {
		t.Errorf("the attached disk is %+v, want /dev/sdb of VM web-1", disk)
	}
	seen := g.Expect(`VMT: disk-add name=(sd\w+) bytes=(\d+) ro=0 serial=(\S+) by-id=(\S+) scsi=\d+:\d+:\d+:(\d+)`)
	device := "/dev/disk/by-id/" + seen[4]
	if seen[2] != fmt.Sprint(1<<30) || seen[3] != disk.ID || device != *disk.GuestDevice || seen[5] != "1" {
		t.Errorf("the guest printed %q, want disk %+v at LUN 1", seen, disk)
	}
	d.Call("PATCH", "/disks/"+disk.ID, map[string]any{"size": 1.5}).Want(200)
	g.Expect(fmt.Sprintf(`VMT: disk-resize name=%s bytes=%d`, seen[1], 3<<29))
	d.Call("POST", "/disks/"+disk.ID+"/detach", nil).Want(200)
	g.Expect("VMT: disk-remove name=" + seen[1])

	stop := d.Call("POST", "/vms/web-1/actions/stop", map[string]any{"timeout_seconds": 60}, harness.Wait).Want(200)
	v = harness.As[openapi.VM](stop)
	if v.State != "stopped" || *v.StateReason != "requested" || stop.Header.Get("Preference-Applied") != "wait" {
		t.Errorf("the answer to the stop is %+v with the header %v, want stopped, waited for", v, stop.Header)
	}
	g.Expect("VMT: power-button")
	g.Expect("VMT: poweroff")
	if pids := d.QEMUs(); len(pids) != 0 {
		t.Errorf("QEMUs %v still run", pids)
	}
	d.Call("DELETE", "/vms/web-1", nil).Want(204)
	d.Call("DELETE", "/disks/"+disk.ID, nil).Want(204)
	d.Call("DELETE", "/templates/small", nil).Want(204)
	d.AssertEmpty()
}

func TestDeafGuestIsForcedAfterTheTimeout(t *testing.T) {
	d := harness.StartDaemon(t, harness.BootDisk("deaf"))
	d.CreateTemplate()
	d.CreateVM("deaf")
	d.Action("deaf", "start")
	g := d.Serial("deaf")
	g.Expect("VMT: ready")
	a := d.Call("POST", "/vms/deaf/actions/stop", map[string]any{"timeout_seconds": 2}).Want(202)
	d.WaitVM("deaf", "stopped", "requested", 30*time.Second)
	g.Expect("VMT: power-button")
	g.Never("VMT: poweroff")
	op := d.Operation(a)
	var steps []string
	for _, line := range op.Log {
		steps = append(steps, line.Step)
	}
	acpi, quit := slices.Index(steps, "acpi"), slices.Index(steps, "quit")
	if op.State != "succeeded" || acpi < 0 || quit < acpi {
		t.Errorf("the steps are %q of %+v, want acpi and later quit", steps, op)
	}
	if took := op.FinishedAt.Sub(op.StartedAt.Time); took < 2*time.Second {
		t.Errorf("the guest had %s to power off, want 2 s", took)
	}
}

func TestGuestPowerOffIsRecorded(t *testing.T) {
	d := harness.StartDaemon(t, harness.BootDisk("poweroff"))
	d.CreateTemplate()
	d.CreateVM("tired")
	d.Action("tired", "start")
	v := d.WaitVM("tired", "stopped", "guest-shutdown", 90*time.Second)
	if v.DesiredState != "running" {
		t.Errorf("the desired state is %s, want running: no stop was requested", v.DesiredState)
	}
	harness.Eventually(t, 5*time.Second, "QEMU to end", func() error {
		if pids := d.QEMUs(); len(pids) != 0 {
			return fmt.Errorf("QEMUs %v run", pids)
		}
		return nil
	})
	d.Action("tired", "start")
}

func TestGuestRebootKeepsTheVMRunning(t *testing.T) {
	d := harness.StartDaemon(t, harness.BootDisk("reboot"))
	d.CreateTemplate()
	d.CreateVM("restless")
	d.Action("restless", "start")
	pid := d.VMPID("restless")
	g := d.Serial("restless")
	g.Expect("VMT: reboot")
	g.Expect("VMT: ready boots=2")
	if v := d.VM("restless"); v.State != "running" || d.VMPID("restless") != pid {
		t.Errorf("after the reboot, the VM is %s with process %d, want running with process %d",
			v.State, d.VMPID("restless"), pid)
	}
}

func TestPanickedGuestIsPausedAndCanBeReset(t *testing.T) {
	d := harness.StartDaemon(t, harness.BootDisk("panic"))
	d.CreateTemplate()
	d.CreateVM("sick")
	disk := d.CreateDisk(0.25)
	d.Action("sick", "start")
	d.AttachDisk(disk.ID, "sick")
	d.WaitVM("sick", "paused", "guest-panicked", 90*time.Second)
	// Detaching a disk does not need the guest.
	got := harness.As[openapi.Disk](d.Call("POST", "/disks/"+disk.ID+"/detach", nil).Want(200))
	if got.State != "available" {
		t.Errorf("the detached disk is %+v, want available", got)
	}
	g := d.Serial("sick")
	g.Expect("VMT: panic")
	if v := d.Action("sick", "reset"); v.State != "running" {
		t.Errorf("after the reset, the VM is %+v, want running", v)
	}
	g.Expect("VMT: ready boots=2")
	d.ForceStop("sick")
}

func TestDiskHotplugWithoutTheGuest(t *testing.T) {
	d := harness.StartDaemon(t, harness.BootDisk("normal"))
	d.CreateTemplate()
	d.CreateVM("a")
	disk := d.CreateDisk(0.5)
	detach := func(when string) {
		t.Helper()
		got := harness.As[openapi.Disk](d.Call("POST", "/disks/"+disk.ID+"/detach", nil).Want(200))
		if got.State != "available" || got.VMID != nil {
			t.Errorf("detached %s, the disk is %+v, want available", when, got)
		}
	}
	d.AttachDisk(disk.ID, "a")
	detach("from a stopped VM")
	d.AttachDisk(disk.ID, "a")
	d.Action("a", "start")
	detach("while it boots")
	d.AttachDisk(disk.ID, "a")
	g := d.Serial("a")
	g.Expect("VMT: ready")
	if v := d.Action("a", "pause"); v.State != "paused" || *v.StateReason != "requested" {
		t.Errorf("the VM is %+v, want paused on request", v)
	}
	detach("while paused")
	d.AttachDisk(disk.ID, "a")
	d.Action("a", "resume")
	d.Action("a", "restart")
	g.Expect("VMT: disk-add .*serial=" + disk.ID)
	g.Expect("VMT: ready boots=2")
	detach("after a restart")
	g.Expect("VMT: disk-remove")
}

func TestKilledQEMUIsRecordedAsACrash(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	d.CreateVM("a")
	d.Action("a", "start")
	file := filepath.Join(d.StateDir, "vms", "a", "qemu.log")
	log, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(log, "famous last words")
	log.Close()
	if err := syscall.Kill(d.VMPID("a"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v := d.WaitVM("a", "error", "crashed", 10*time.Second)
	if v.StateReasonDetail == nil || !strings.Contains(*v.StateReasonDetail, "famous last words") {
		t.Errorf("the detail is %q, want the last line of the log", harness.Deref(v.StateReasonDetail))
	}
	d.Action("a", "start")
	d.ForceStop("a")
}

func TestHungQEMUCanBeStoppedAndDeleted(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	for _, id := range []string{"a", "b"} {
		d.CreateVM(id)
		d.Action(id, "start")
		if err := syscall.Kill(d.VMPID(id), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	// A hung QEMU does not delay a list.
	if vms := harness.Get[[]openapi.VM](d, "/vms?state=running"); len(vms) != 2 {
		t.Errorf("the list is %+v, want two VMs", vms)
	}
	d.ForceStop("a")
	if v := d.VM("a"); v.State != "stopped" {
		t.Errorf("after the stop, the VM is %+v, want stopped", v)
	}
	d.Call("DELETE", "/vms/b", nil).Want(204)
	if pids := d.QEMUs(); len(pids) != 0 {
		t.Errorf("QEMUs %v still run", pids)
	}
}

func TestDeletingWhileStarting(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	for i := range 5 {
		id := fmt.Sprintf("vm-%d", i)
		d.CreateVM(id)
		d.Call("POST", "/vms/"+id+"/actions/start", nil).Want(202)
		d.Call("DELETE", "/vms/"+id, nil).Want(204)
	}
	if pids := d.QEMUs(); len(pids) != 0 {
		t.Errorf("QEMUs %v still run", pids)
	}
	d.Call("DELETE", "/templates/small", nil).Want(204)
	d.AssertEmpty()
}

func TestARebootedHostShowsNoVMRunning(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	d.CreateVM("a")
	d.Action("a", "start")
	d.Kill()
	d.KillVMs()
	if err := os.RemoveAll(d.RuntimeDir); err != nil { // a boot of the host empties /run
		t.Fatal(err)
	}
	d.Start()
	d.WaitVM("a", "error", "crashed", 10*time.Second)
	d.Action("a", "start")
}

// TestUserOfQEMU checks the user, the capabilities and the open files of QEMU.
func TestUserOfQEMU(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs a vmand of root: run the tests as root")
	}
	d := harness.StartDaemon(t, harness.BootDisk("normal"))
	d.CreateTemplate()
	d.CreateVM("a")
	disk := d.CreateDisk(0.25)
	d.AttachDisk(disk.ID, "a")
	d.Action("a", "start")
	pid := d.VMPID("a")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`(?m)^Uid:\t([1-9]\d+)\t`,
		`(?m)^Gid:\t([1-9]\d+)\t`,
		`(?m)^CapEff:\t0+$`,
		`(?m)^CapPrm:\t0+$`,
		`(?m)^CapAmb:\t0+$`,
		`(?m)^NoNewPrivs:\t1$`,
		`(?m)^Seccomp:\t2$`,
	} {
		if !regexp.MustCompile(line).Match(status) {
			t.Errorf("/proc/%d/status does not match %s:\n%s", pid, line, status)
		}
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{
		"socket:", "anon_inode:",
		"/dev/null", "/dev/urandom", "/dev/random",
		filepath.Join(d.StateDir, "vms", "a"),
		filepath.Join(d.StateDir, "disks", disk.ID+".qcow2"),
		filepath.Join(d.RuntimeDir, "a."),
		harness.GuestFile("disk-normal.qcow2"),
	}
	if need.Accel() == "kvm" {
		allowed = append(allowed, "/dev/kvm")
	}
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue
		}
		if !slices.ContainsFunc(allowed, func(prefix string) bool { return strings.HasPrefix(to, prefix) }) {
			t.Errorf("QEMU has %s open", to)
		}
	}
}

func TestEightVMsAtOnce(t *testing.T) {
	d := harness.StartDaemon(t, harness.BootDisk("normal"))
	d.CreateTemplate()
	for i := range 8 {
		d.CreateVM(fmt.Sprintf("vm-%d", i))
	}
	answers := make(chan error, 8)
	for i := range 8 {
		go func() {
			a, err := d.Try("POST", fmt.Sprintf("/vms/vm-%d/actions/start", i), nil, harness.Wait)
			if err == nil && a.Status != http.StatusOK {
				err = fmt.Errorf("start VM vm-%d: %d %s", i, a.Status, a.Body)
			}
			answers <- err
		}()
	}
	for range 8 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if pids := d.QEMUs(); len(pids) != 8 {
		t.Errorf("%d QEMUs run, want 8", len(pids))
	}
	for i := range 8 {
		d.Serial(fmt.Sprintf("vm-%d", i)).Expect("VMT: boot n=1")
	}
}
