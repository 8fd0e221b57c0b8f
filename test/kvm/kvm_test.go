//go:build kvm

package kvm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

const device = "/dev/kvm"

// run runs a command that changes the host.
func run(t *testing.T, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", command, err, out)
	}
}

// load loads the module of KVM, as udev would some time after the start of vmand.
func load(t *testing.T) { run(t, "modprobe", "kvm_amd", "nested=1") }

// allow gives the device to the group kvm, as the rule of udev does.
func allow(t *testing.T) {
	run(t, "chgrp", "kvm", device)
	run(t, "chmod", "660", device)
}

// auto starts a daemon that chooses the accelerator, without VMs.
func auto(t *testing.T, env ...string) *harness.Daemon {
	d := harness.StartDaemon(t, append([]string{"VMAN_QEMU_ACCEL=auto", harness.BootDisk("normal")}, env...)...)
	d.CreateTemplate()
	return d
}

// start creates and starts a VM and fails the test unless it has an accelerator and a
// reason. A VM under TCG is paused, because its guest would use all CPU time.
func start(d *harness.Daemon, id, accel, reason string) {
	d.T.Helper()
	d.CreateVM(id)
	d.Action(id, "start")
	expect(d, id, accel, reason)
	d.Action(id, "pause")
}

func expect(d *harness.Daemon, id, accel, reason string) {
	d.T.Helper()
	v := d.VM(id)
	why := harness.Deref(v.AccelReason)
	if got := string(harness.Deref(v.Accel)); got != accel || !strings.Contains(why, reason) || (why == "") != (reason == "") {
		d.T.Fatalf("VM %s has the accelerator %s (%s), want %s (%s)", id, got, why, accel, reason)
	}
}

// health waits until /health reports a status and a detail of the accelerator.
func health(d *harness.Daemon, degraded bool, detail string) {
	d.T.Helper()
	harness.Eventually(d.T, time.Minute, "the health of the accelerator", func() error {
		h := harness.As[openapi.Health](d.Call("GET", "/health", nil))
		got := h.Checks.Accel
		if (string(got.Status) == "degraded") != degraded || !strings.Contains(harness.Deref(got.Detail), detail) {
			return fmt.Errorf("%s, %s", got.Status, harness.Deref(got.Detail))
		}
		return nil
	})
}

// slow waits until the observer reports VMs in emulation where KVM works.
func slow(d *harness.Daemon, ids ...string) {
	d.T.Helper()
	harness.Eventually(d.T, time.Minute, "the issues slow_accelerator", func() error {
		var got []string
		for _, i := range harness.Get[openapi.ObserverStatus](d, "/observer/status").LastIssues {
			if string(i.IssueType) == "slow_accelerator" {
				got = append(got, i.ResourceID)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(ids) {
			return errors.New(fmt.Sprint(got))
		}
		return nil
	})
}

// TestKVMThatComesAndGoes loads the module late, gives permission later, restarts the daemon
// and removes the module. After each change the next start is right.
func TestKVMThatComesAndGoes(t *testing.T) {
	run(t, "modprobe", "-r", "kvm_amd")
	t.Cleanup(func() { load(t); allow(t) })
	d := auto(t)
	health(d, true, "modprobe kvm_amd")
	start(d, "before", "tcg", "modprobe kvm_amd")

	load(t)
	run(t, "chmod", "600", device)
	start(d, "denied", "tcg", "chgrp kvm")
	health(d, true, "chgrp kvm")
	d.Kill()
	d.Start()
	health(d, true, "chgrp kvm")

	allow(t)
	start(d, "allowed", "kvm", "")
	health(d, false, "kvm")
	slow(d, "before", "denied")
	d.ForceStop("before")
	d.Action("before", "start")
	expect(d, "before", "kvm", "")
	slow(d, "denied")
	d.Kill()
	d.Start()
	health(d, false, "kvm")

	for _, id := range []string{"before", "denied", "allowed"} {
		d.ForceStop(id)
	}
	run(t, "modprobe", "-r", "kvm_amd")
	start(d, "after", "tcg", "does not exist")
	load(t)
	allow(t)
	d.ForceStop("after")
	d.Action("after", "start")
	expect(d, "after", "kvm", "")
}

// TestSlowHost probes with a QEMU that takes five seconds to start, as on a host that boots.
func TestSlowHost(t *testing.T) {
	real, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "qemu")
	script := "#!/bin/sh\ncase \"$*\" in *'-m 16M'*) sleep 5;; esac\nexec " + real + " \"$@\"\n"
	if err := os.WriteFile(binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(binary), filepath.Dir(filepath.Dir(binary))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := auto(t, "VMAN_QEMU_BINARY="+binary)
	start(d, "slow", "kvm", "")
	health(d, false, "kvm")
}

// TestTwoDaemons shares KVM between daemons.
func TestTwoDaemons(t *testing.T) {
	a, b := auto(t), auto(t)
	start(a, "vm", "kvm", "")
	start(b, "vm", "kvm", "")
}

// TestQEMUUsesKVM looks at the process of a VM: it has the device open and its group.
func TestQEMUUsesKVM(t *testing.T) {
	d := auto(t)
	start(d, "vm", "kvm", "")
	pid := d.VMPID("vm")
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	uses := false
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		uses = uses || to == device
	}
	if !uses {
		t.Errorf("QEMU does not have %s open", device)
	}
}
