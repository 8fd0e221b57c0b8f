package api

import (
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

// startAgent starts a VM whose guest runs a guest agent, and waits until the agent answers.
func startAgent(t *testing.T, id string) *harness.Daemon {
	t.Helper()
	d := harness.StartDaemon(t, harness.BootDisk("agent"))
	d.Call("POST", "/templates", map[string]any{"name": "agent", "cpu_count": 1, "ram_amount": 192}).Want(201)
	d.CreateVMWith(id, map[string]any{"template_name": "agent"})
	d.Call("POST", "/vms/"+id+"/actions/start?wait_for=agent", nil, harness.Wait).Want(200)
	return d
}

// detach detaches a disk and returns it with the log of the operation.
func detach(d *harness.Daemon, disk string, body any) (openapi.Disk, string) {
	d.T.Helper()
	got := harness.As[openapi.Disk](d.Call("POST", "/disks/"+disk+"/detach", body).Want(200))
	all := harness.Get[[]openapi.Operation](d, "/operations?kind=disk.detach")
	var log strings.Builder
	for _, line := range all[len(all)-1].Log {
		log.WriteString(line.Step + ": " + line.Message + "\n")
	}
	return got, log.String()
}

func TestADiskThatTheGuestHasMountedLosesNothing(t *testing.T) {
	d := startAgent(t, "web")
	disk := d.CreateDisk(0.25).ID
	d.AttachDisk(disk, "web")
	// The device node can exist before the kernel has probed the disk.
	d.Exec("web", "until mke2fs /dev/sda >/dev/null 2>&1; do sleep 0.1; done; mkdir /data")
	mount := "until mount -t ext4 /dev/sda /data 2>/dev/null; do sleep 0.1; done; "
	sum := d.Exec("web", mount+"dd if=/dev/urandom of=/data/file bs=1M count=20 2>/dev/null; md5sum </data/file")

	d.Call("POST", "/disks/"+disk+"/detach", nil).Problem(409, "in-use", "/data", "VM web")
	if got := d.Exec("web", "md5sum </data/file"); got != sum {
		t.Errorf("after the refused detach, the sum is %s, want %s", got, sum)
	}
	got, log := detach(d, disk, map[string]any{"sync": true})
	if got.State != "available" || got.StateReason != nil || !strings.Contains(log, "flushed and frozen") {
		t.Errorf("detached with sync, the disk is %+v; the log is %s", got, log)
	}
	d.Exec("web", "umount -l /data; true") // the guest thawed, and its agent still answers

	d.AttachDisk(disk, "web")
	if got := d.Exec("web", "DEV=; until DEV=$(ls /sys/bus/scsi/devices/0:0:0:1/block 2>/dev/null) && "+
		"mount -t ext4 /dev/$DEV /data 2>/dev/null; do sleep 0.1; done; md5sum </data/file"); got != sum {
		t.Errorf("attached again, the sum is %s, want %s", got, sum)
	}
	got, log = detach(d, disk, map[string]any{"force": true})
	if got.State != "available" || !strings.Contains(harness.Deref(got.StateReason), "/data") ||
		!strings.Contains(log, "force") {
		t.Errorf("detached with force, the disk is %+v; the log is %s", got, log)
	}
	d.Exec("web", "umount -l /data; true")

	d.AttachDisk(disk, "web")
	got, log = detach(d, disk, nil)
	if got.StateReason != nil || !strings.Contains(log, "no mount") {
		t.Errorf("detached unmounted, the disk is %+v; the log is %s", got, log)
	}

	// Without an agent nobody can tell.
	d.Exec("web", "(sleep 1; kill $(cat /run/qemu-ga.pid)) </dev/null >/dev/null 2>&1 &")
	d.AttachDisk(disk, "web")
	d.WaitAgent("web", "silent")
	d.Call("POST", "/disks/"+disk+"/detach", nil).Problem(503, "agent-unavailable")
	d.Call("POST", "/disks/"+disk+"/detach", map[string]any{"force": true}).Want(200)
	d.Call("POST", "/disks/"+disk+"/detach", map[string]any{"sync": "yes"}).Problem(400, "invalid-request")
	d.ForceStop("web")
}

func TestAgentCallsKeepTheirDeadlinesAndOutliveTheDaemon(t *testing.T) {
	d := startAgent(t, "web")
	exec := func(seconds int, command string) harness.Answer {
		body := map[string]any{"command": []string{"/bin/sh", "-c", command}, "timeout_seconds": seconds}
		return d.Call("POST", "/vms/web/exec", body)
	}
	r := harness.As[openapi.ExecResult](exec(30, "kill -9 $$").Want(200))
	if !r.Exited || r.ExitCode != nil || r.Signal == nil || *r.Signal != 9 {
		t.Errorf("the result of a killed program is %+v, want signal 9", r)
	}

	d.Kill()
	d.Start()
	if got := d.Exec("web", "echo here"); got != "here" { // without waiting for anything
		t.Errorf("after a restart of the daemon, the guest answers %q", got)
	}

	d.Exec("web", "(sleep 1; kill -STOP $(cat /run/qemu-ga.pid); sleep 20; kill -CONT $(cat /run/qemu-ga.pid)) "+
		"</dev/null >/dev/null 2>&1 &")
	for exec(1, "true").Status == 200 { // until the agent has stopped
	}
	begin := time.Now()
	exec(3, "true").Problem(503, "agent-unavailable")
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("an exec of 3 s took %s with a silent agent", took)
	}
	d.WaitAgent("web", "connected")
	d.ForceStop("web")
}
