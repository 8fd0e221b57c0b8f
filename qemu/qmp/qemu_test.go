package qmp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/digitalocean/go-qemu/qemu"
	"golang.org/x/sys/unix"

	"vmand/qemu/qmp"
	"vmand/test/need"
)

// machine is a QEMU process without a machine (-M none), of which only the monitor is
// used.
type machine struct {
	path    string // of the QMP socket
	process *os.Process
}

// launch starts QEMU with a listening socket that is passed as a descriptor, so that a
// client can connect at once. It skips the test if QEMU is not installed, or
// VMAN_TEST_QEMU is "off"; if that is "required", a missing QEMU is a failure.
func launch(t testing.TB) *machine {
	t.Helper()
	need.Programs(t, "qemu-system-x86_64")
	binary, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "qmp")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	socket, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	var stderr strings.Builder
	cmd := exec.Command(binary, "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control")
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("QEMU's stderr: %s", stderr.String())
		}
	})
	return &machine{path, cmd.Process}
}

// connect connects to QEMU.
func (m *machine) connect(t testing.TB) *qmp.Conn {
	t.Helper()
	c, err := qmp.Dial(patient(t), m.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// freeze stops the QEMU process and waits until it has stopped.
func (m *machine) freeze(t *testing.T) {
	t.Helper()
	if err := m.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, m.process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) thaw(t *testing.T) {
	t.Helper()
	if err := m.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

func TestQEMUAnswersConcurrentCommandsWithEvents(t *testing.T) {
	t.Parallel()
	m := launch(t)
	c := m.connect(t)
	if c.Version().QEMU.Major < 7 {
		t.Errorf("version %s, want 7 or later", c.Version())
	}
	sub := c.Subscribe(1) // overflows at the second event
	resumed := c.Expect(func(e qmp.Event) bool { return e.Event == "RESUME" })
	defer resumed.Cancel()
	var group sync.WaitGroup
	var first sync.Once
	var size int
	for range 8 {
		group.Go(func() {
			for range 3 {
				var schema json.RawMessage
				if err := c.Execute(patient(t), "query-qmp-schema", nil, &schema); err != nil {
					t.Error(err)
					return
				}
				first.Do(func() { size = len(schema) })
				if !json.Valid(schema) || len(schema) < 100<<10 {
					t.Errorf("schema of %d bytes, valid: %v", len(schema), json.Valid(schema))
				}
			}
		})
		group.Go(func() {
			for range 20 {
				for _, command := range []string{"cont", "stop"} { // each sends an event
					if err := c.Execute(patient(t), command, nil, nil); err != nil {
						t.Error(err)
					}
				}
				err := c.Execute(patient(t), "device_del", map[string]string{"id": "none"}, nil)
				var refused *qmp.Error
				if !errors.As(err, &refused) || refused.Class != qmp.DeviceNotFound {
					t.Errorf("device_del of no device: error %v, want DeviceNotFound", err)
				}
			}
		})
	}
	group.Wait()
	if e, err := resumed.Wait(patient(t)); err != nil || e.Event != "RESUME" {
		t.Errorf("RESUME: %+v, %v", e, err)
	}
	if sub.Lost() == 0 {
		t.Error("the full subscription lost no event")
	}
	if c.Strays() != 0 {
		t.Errorf("%d strays, want none", c.Strays())
	}
	t.Logf("the schema has %d bytes", size)
}

func TestACommandToAFrozenQEMUHasAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	m := launch(t)
	c := m.connect(t)
	m.freeze(t)
	for range 2 {
		err := c.Execute(soon(t), "query-version", nil, nil)
		if !errors.Is(err, qmp.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("frozen: error %v, want ErrUnknownOutcome for the deadline", err)
		}
	}
	if _, err := qmp.Dial(soon(t), m.path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial while frozen: error %v, want that of the deadline", err)
	}
	m.thaw(t)
	var got status
	if err := c.Execute(patient(t), "query-status", nil, &got); err != nil || got.Status != "prelaunch" {
		t.Errorf("thawed: %+v, %v; want prelaunch", got, err)
	}
	if c.Strays() != 2 {
		t.Errorf("%d late replies, want 2", c.Strays())
	}
}

func TestKillingQEMUFailsEveryCommand(t *testing.T) {
	t.Parallel()
	m := launch(t)
	c := m.connect(t)
	m.freeze(t)
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { errs <- c.Execute(patient(t), "query-version", nil, nil) }()
	}
	sub := c.Subscribe(1)
	if err := c.Execute(soon(t), "query-version", nil, nil); !errors.Is(err, qmp.ErrUnknownOutcome) {
		t.Errorf("frozen: error %v, want ErrUnknownOutcome", err)
	}
	if err := m.process.Kill(); err != nil {
		t.Fatal(err)
	}
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, qmp.ErrClosed) {
			t.Errorf("killed: error %v, want ErrClosed", err)
		}
	}
	for range sub.C() { // until the channel is closed
	}
	if err := c.Execute(patient(t), "query-version", nil, nil); !errors.Is(err, qmp.ErrNotSent) {
		t.Errorf("afterwards: error %v, want ErrNotSent", err)
	}
}

func TestTheSecondClientOfQEMUWaitsForTheFirst(t *testing.T) {
	t.Parallel()
	m := launch(t)
	first := m.connect(t)
	if _, err := qmp.Dial(soon(t), m.path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second client: error %v, want that of the deadline", err)
	}
	first.Close()
	second := m.connect(t)
	if err := second.Execute(patient(t), "query-version", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestQEMUQuitsWithAReplyAndAnEvent(t *testing.T) {
	t.Parallel()
	c := launch(t).connect(t)
	shutdown := c.Expect(func(e qmp.Event) bool { return e.Event == "SHUTDOWN" })
	if err := c.Execute(patient(t), "quit", nil, nil); err != nil {
		t.Error(err)
	}
	if e, err := shutdown.Wait(patient(t)); err != nil || e.Data["reason"] != "host-qmp-quit" {
		t.Errorf("SHUTDOWN: %+v, %v", e, err)
	}
	wait(t, c.Done(), "the end of the connection")
}

func TestQEMUGetsTheFileOfEachCommand(t *testing.T) {
	t.Parallel()
	m := launch(t)
	c := m.connect(t)
	var group sync.WaitGroup
	for n := range 16 {
		f := open(t, fmt.Sprint(n))
		group.Go(func() {
			var added struct {
				FD  int `json:"fd"`
				Set int `json:"fdset-id"`
			}
			if err := c.Execute(patient(t), "add-fd", nil, &added, f); err != nil {
				t.Error(err)
				return
			}
			got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", m.process.Pid, added.FD))
			if err != nil || got != f.Name() {
				t.Errorf("QEMU has %s (%v), want %s", got, err, f.Name())
			}
		})
		group.Go(func() {
			if err := c.Execute(patient(t), "query-version", nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

func TestQEMURunsCommandsOutOfBand(t *testing.T) {
	t.Parallel()
	c := launch(t).connect(t)
	err := c.ExecuteOOB(patient(t), "migrate-pause", nil, nil)
	var refused *qmp.Error // because there is no migration to pause
	if !errors.As(err, &refused) || refused.Class != qmp.GenericError {
		t.Errorf("migrate-pause: error %v, want GenericError", err)
	}
	err = c.ExecuteOOB(patient(t), "query-version", nil, nil)
	if !errors.As(err, &refused) || !strings.Contains(refused.Desc, "OOB") {
		t.Errorf("query-version: error %v, want a refusal to run it out of band", err)
	}
}

func TestADomainOfGoQEMUWorksWithQEMU(t *testing.T) {
	t.Parallel()
	c := launch(t).connect(t)
	d, err := qemu.NewDomain(c, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.Version(); err != nil || got != c.Version().String() {
		t.Errorf("Version = %s, %v; want %s", got, err, c.Version())
	}
	if ok, err := d.Supported("blockdev-add"); err != nil || !ok {
		t.Errorf("blockdev-add supported: %v, %v", ok, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
