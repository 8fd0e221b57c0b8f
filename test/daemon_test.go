package test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A daemon is one vmand with directories of its own. Its VMs end with the test.
type daemon struct {
	t       testing.TB
	state   string // VMAN_STATE_DIR
	runtime string // VMAN_RUNTIME_DIR
	env     []string
	args    []string
	binary  string              // another vmand than the one under test
	host    *namespace          // where it runs; nil: where the test does
	user    *syscall.Credential // who it runs as; nil: who the test does
	client  *http.Client
	cmd     *exec.Cmd
	log     string // the file its stderr goes to
	exited  chan error
}

// bootDisk makes every root disk an overlay of the guest's named variant.
func bootDisk(variant string) string {
	return "VMAN_DEFAULT_BOOT_DISK=" + filepath.Join(guests, "disk-"+variant+".qcow2")
}

// newDaemon returns a daemon that is not started. Its directories can be
// traversed by the user QEMU runs as, unlike those of t.TempDir.
func newDaemon(t testing.TB, env ...string) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmand")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, state: filepath.Join(dir, "s"), runtime: filepath.Join(dir, "r"), log: filepath.Join(dir, "log")}
	d.env = append([]string{"VMAN_STATE_DIR=" + d.state, "VMAN_RUNTIME_DIR=" + d.runtime, "VMAN_LISTEN=", "VMAN_QEMU_ACCEL=tcg",
		"VMAN_OBSERVER_INTERVAL=1s", "VMAN_NETWORK_MODE=user"}, env...) // no test touches the host's own network
	d.client = &http.Client{Transport: &checked{t: t, next: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.runtime, "vmand.sock"))
		},
	}}}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := os.ReadFile(d.log)
			t.Logf("vmand said:\n%s", tail(out, 8000))
		}
		d.kill()
		d.client.CloseIdleConnections()
		d.endVMs()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return d
}

// startDaemon returns a daemon that answers.
func startDaemon(t testing.TB, env ...string) *daemon {
	t.Helper()
	d := newDaemon(t, env...)
	d.start()
	return d
}

// launch runs the binary without waiting for it to answer.
func (d *daemon) launch() {
	d.t.Helper()
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(cmp.Or(d.binary, binary), d.args...)
	d.cmd.Env = append(os.Environ(), d.env...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: d.user} // as a service
	start := d.cmd.Start
	if d.host != nil {
		start = func() error { return d.host.start(d.cmd) }
	}
	if err := start(); err != nil {
		d.t.Fatal(err)
	}
	d.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(d.cmd, d.exited)
}

func (d *daemon) start() {
	d.t.Helper()
	d.launch()
	deadline := time.After(20 * time.Second)
	for {
		if resp, err := d.client.Get("http://vmand/health"); err == nil {
			resp.Body.Close()
			return
		}
		select {
		case err := <-d.exited:
			d.exited <- err
			d.t.Fatalf("vmand ended while it started: %v\n%s", err, d.said())
		case <-deadline:
			d.t.Fatalf("vmand does not answer\n%s", d.said())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// kill ends the daemon as a power cut would.
func (d *daemon) kill() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	<-d.exited
	d.cmd = nil
}

// stop ends the daemon in order, which is also what writes its coverage.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	select {
	case err := <-d.exited:
		if err != nil {
			d.t.Fatalf("vmand ended with %v\n%s", err, d.said())
		}
	case <-time.After(30 * time.Second):
		d.t.Fatalf("vmand does not end\n%s", d.said())
	}
	d.cmd = nil
}

// fails launches the daemon and returns what it says when it refuses to run.
func (d *daemon) fails() string {
	d.t.Helper()
	d.launch()
	select {
	case err := <-d.exited:
		d.cmd = nil
		if err == nil {
			d.t.Fatalf("vmand ended without an error\n%s", d.said())
		}
	case <-time.After(20 * time.Second):
		d.t.Fatalf("vmand runs, and should refuse\n%s", d.said())
	}
	return d.said()
}

func (d *daemon) said() string {
	out, err := os.ReadFile(d.log)
	if err != nil {
		d.t.Fatal(err)
	}
	return string(out)
}

// pid returns the process that holds the lock of the VM's pidfile, 0 for none:
// QEMU holds it as long as it lives.
func (d *daemon) pid(id string) int {
	d.t.Helper()
	f, err := os.Open(filepath.Join(d.runtime, id+".pid"))
	if os.IsNotExist(err) {
		return 0
	}
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil {
		d.t.Fatal(err)
	}
	if lock.Type == unix.F_UNLCK {
		return 0
	}
	return int(lock.Pid)
}

// qemus returns the pids of all QEMUs whose command line names the daemon's
// directories, whatever the daemon knows of them.
func (d *daemon) qemus() []int {
	d.t.Helper()
	return processes(d.t, d.runtime)
}

func processes(t testing.TB, argument string) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range dirs {
		line, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(line, []byte("qemu-system")) && !bytes.Contains(line, []byte("/qemu-system")) || !bytes.Contains(line, []byte(argument)) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func (d *daemon) endVMs() {
	for _, pid := range d.qemus() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	eventually(d.t, 10*time.Second, "the VMs to end", func() error {
		if left := d.qemus(); len(left) != 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}

// eventually waits until check returns nil.
func eventually(t testing.TB, patience time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }
