package qemu

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"vmand/test/need"
	"vmand/vm"
)

// needQEMU ends a test where QEMU is missing or left out.
func needQEMU(t testing.TB) {
	t.Helper()
	need.Programs(t, "qemu-system-x86_64", "qemu-img")
}

// testHost is a driver with real QEMU and its own directories.
type testHost struct {
	*Driver
	t   testing.TB
	dir string

	mu    sync.Mutex
	news  map[string]int // how often Nudge named a VM
	marks []string       // what Mark got, as "<vm> <mark>"
}

// tempDir returns a directory that QEMU's user can pass through and whose path is
// short enough for sockets, unlike that of t.TempDir.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newHost returns a host without VMs. At the end of the test every VM is killed.
func newHost(t testing.TB) *testHost {
	t.Helper()
	needQEMU(t)
	h := &testHost{t: t, dir: tempDir(t), news: make(map[string]int)}
	h.open()
	t.Cleanup(func() {
		ids, _ := h.layout.vmIDs(pidSuffix)
		for _, id := range ids {
			if err := h.Shutdown(context.Background(), id, vm.StopOptions{Force: true}, nil); err != nil {
				t.Error(err)
			}
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// open opens the driver and watches it, as vmand does at its start.
func (h *testHost) open() {
	h.t.Helper()
	d, err := New(h.t.Context(), Options{
		StateDir: filepath.Join(h.dir, "state"), RuntimeDir: filepath.Join(h.dir, "run"), Accel: need.Accel(),
	}, testLog(h.t))
	if err != nil {
		h.t.Fatal(err)
	}
	h.Driver = d
	ctx, cancel := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		d.Watch(ctx, h)
	}()
	h.t.Cleanup(func() {
		cancel()
		<-watched
	})
}

// reopen replaces the driver by a new one, as a restart of vmand does.
func (h *testHost) reopen() {
	h.t.Helper()
	if err := h.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.open()
}

func testLog(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// Nudge implements [vm.Sink].
func (h *testHost) Nudge(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.news[id]++
}

// Mark implements [vm.Sink].
func (h *testHost) Mark(id string, m vm.BootMark, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(at) > time.Minute {
		h.t.Errorf("mark %s of VM %s has the time %v", m, id, at)
	}
	h.marks = append(h.marks, id+" "+string(m))
}

// marksTold returns the marks that Mark got.
func (h *testHost) marksTold() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.marks)
}

// newsOf returns how often Nudge named a VM.
func (h *testHost) newsOf(id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.news[id]
}

// create creates the files of a VM that boots a guest of guest_test.go.
func (h *testHost) create(id, guest string) vm.Spec {
	h.t.Helper()
	root := vm.DiskFile{SizeMiB: 8, Base: writeGuest(h.t, h.dir, guest), BaseFormat: formatRaw}
	if err := h.CreateVM(h.t.Context(), id, root, nil, nil); err != nil {
		h.t.Fatal(err)
	}
	p, err := h.Platform(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return vm.Spec{
		ID: id, UUID: uuid.NewString(), CPUCount: 1, RAMMiB: 32, Machine: p.Machine, Accel: p.Accel, Root: root,
		Ports: []vm.Port{userPort(0)},
	}
}

// start creates and starts a VM.
func (h *testHost) start(id, guest string) vm.Spec {
	h.t.Helper()
	s := h.create(id, guest)
	h.startSpec(s)
	return s
}

func (h *testHost) startSpec(s vm.Spec) {
	h.t.Helper()
	if err := h.Admit(h.t.Context(), s); err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.Start(h.t.Context(), s, nil); err != nil {
		h.t.Fatal(err)
	}
}

// disk creates a data disk for a VM.
func (h *testHost) disk(id, vmID, mountPoint string) vm.Disk {
	h.t.Helper()
	if err := h.CreateDisk(h.t.Context(), id, vm.DiskFile{SizeMiB: 16}, nil, nil); err != nil {
		h.t.Fatal(err)
	}
	return vm.Disk{ID: id, VMID: vmID, MountPoint: mountPoint, DiskFile: vm.DiskFile{SizeMiB: 16}}
}

// awaitStatus waits until QEMU reports a run state.
func (h *testHost) awaitStatus(id string, want vm.RunStatus) {
	h.t.Helper()
	var got vm.Observation
	await(h.t, fmt.Sprintf("VM %s is %s", id, want), func() bool {
		got = h.Observe(h.t.Context(), id)
		return got.Status == want
	})
}

// kill kills the process of a VM as the kernel's OOM killer does, and waits until the
// driver has seen that.
func (h *testHost) kill(id string) error {
	h.t.Helper()
	s, err := h.live(id)
	if err != nil {
		return err
	}
	if err := s.proc.Signal(unix.SIGKILL); err != nil {
		return err
	}
	<-s.ended
	return nil
}

func (h *testHost) serialLog(id string) string {
	b, _ := h.state.ReadFile(vmSerialLog(id))
	return string(b)
}

// awaitSerial waits until a guest has printed a text.
func (h *testHost) awaitSerial(id, want string) {
	h.t.Helper()
	await(h.t, fmt.Sprintf("VM %s prints %q", id, want), func() bool { return strings.Contains(h.serialLog(id), want) })
}

// await polls a condition for up to 20 s.
func await(t testing.TB, what string, met func() bool) {
	t.Helper()
	awaitFor(t, 20*time.Second, what, met)
}

func awaitFor(t testing.TB, limit time.Duration, what string, met func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		if time.Now().After(deadline) {
			t.Fatalf("not within the time limit: %s", what)
		}
		<-tick.C
	}
}
