package bench

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/openapi"
	"vmand/qemu/qmp"
	"vmand/test/harness"
)

// A manualQEMU starts the QEMU of a VM by hand: the same program with the same arguments as
// the same user, with other sockets and another pidfile.
type manualQEMU struct {
	t       testing.TB
	dir     string
	cmd     exec.Cmd       // a template: each start uses a copy
	sockets map[int]string // the paths of the listening sockets, by file descriptor
	log     int            // the file descriptor of the console's log
}

// byHand returns a manualQEMU of a running VM.
func byHand(d *harness.Daemon, id string) *manualQEMU {
	d.T.Helper()
	pid := d.VMPID(id)
	h := &manualQEMU{t: d.T, dir: filepath.Join(filepath.Dir(d.RuntimeDir), "by-hand"), sockets: map[int]string{}}
	if err := os.Mkdir(h.dir, 0o711); err != nil {
		d.T.Fatal(err)
	}
	read := func(name string) []string {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
		if err != nil {
			d.T.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	}
	program, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	if err != nil {
		d.T.Fatal(err)
	}
	h.cmd = exec.Cmd{Path: program, Dir: "/", Env: read("environ"),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Credential: credential(d.T, pid)}}
	socket := regexp.MustCompile(`^socket,id=([a-z]+),fd=(\d+),`)
	set := regexp.MustCompile(`^fd=(\d+),set=\d+$`)
	for _, arg := range read("cmdline") {
		h.cmd.Args = append(h.cmd.Args, strings.ReplaceAll(arg, d.RuntimeDir, h.dir))
		if m := socket.FindStringSubmatch(arg); m != nil {
			fd, _ := strconv.Atoi(m[2]) // matched as digits
			h.sockets[fd] = filepath.Join(h.dir, m[1])
		}
		if m := set.FindStringSubmatch(arg); m != nil {
			h.log, _ = strconv.Atoi(m[1])
		}
	}
	if len(h.sockets) < 3 {
		d.T.Fatalf("the command line has %d sockets, want at least 3: %q", len(h.sockets), h.cmd.Args)
	}
	h.makePidfile(id)
	h.makeConsole(id)
	return h
}

// makeConsole makes the files of the console's input and output.
func (h *manualQEMU) makeConsole(id string) {
	h.t.Helper()
	in := filepath.Join(h.dir, id+".tty.in")
	if err := unix.Mkfifo(in, 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.give(in)
	if err := os.Symlink(os.DevNull, filepath.Join(h.dir, id+".tty.out")); err != nil {
		h.t.Fatal(err)
	}
}

// credential returns the user and the groups of a process.
func credential(t testing.TB, pid int) *syscall.Credential {
	t.Helper()
	number := func(field string) uint32 {
		n, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(n)
	}
	c := &syscall.Credential{
		Uid: number(strings.Fields(harness.ProcStatus(t, pid, "Uid"))[0]),
		Gid: number(strings.Fields(harness.ProcStatus(t, pid, "Gid"))[0]),
	}
	for _, group := range strings.Fields(harness.ProcStatus(t, pid, "Groups")) {
		c.Groups = append(c.Groups, number(group))
	}
	return c
}

// makePidfile makes the pidfile, because QEMU must not create files in the directory.
func (h *manualQEMU) makePidfile(id string) {
	h.t.Helper()
	file := filepath.Join(h.dir, id+".pid")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.give(file)
}

// give makes QEMU's user the owner of a file.
func (h *manualQEMU) give(file string) {
	h.t.Helper()
	c := h.cmd.SysProcAttr.Credential
	if err := os.Chown(file, int(c.Uid), int(c.Gid)); err != nil {
		h.t.Fatal(err)
	}
}

// start starts QEMU and returns the time until it has answered qmp_capabilities, and a
// function that kills QEMU and returns the time until it is reaped.
func (h *manualQEMU) start() (time.Duration, func() time.Duration) {
	h.t.Helper()
	cmd := h.cmd
	give := func(fd int, f *os.File) {
		for len(cmd.ExtraFiles) <= fd-3 {
			cmd.ExtraFiles = append(cmd.ExtraFiles, nil)
		}
		cmd.ExtraFiles[fd-3] = f
	}
	for fd, path := range h.sockets {
		f := h.listen(path)
		defer f.Close()
		give(fd, f)
	}
	log, err := os.OpenFile(filepath.Join(h.dir, "serial.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	give(h.log, log)
	var monitor *qmp.Conn
	started := took(func() {
		if err := cmd.Start(); err != nil {
			h.t.Fatal(err)
		}
		var err error
		if monitor, err = qmp.Dial(h.t.Context(), filepath.Join(h.dir, "qmp")); err != nil {
			h.t.Fatal(err)
		}
	})
	return started, func() time.Duration {
		defer monitor.Close()
		return took(func() {
			if err := cmd.Process.Kill(); err != nil {
				h.t.Fatal(err)
			}
			_ = cmd.Wait() // returns that it was killed
		})
	}
}

// listen returns a listening socket at a path.
func (h *manualQEMU) listen(path string) *os.File {
	h.t.Helper()
	_ = os.Remove(path) // of the run before
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		h.t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), path)
}

// benchStart starts and stops a VM over the API. The reference is a QEMU started by hand.
func benchStart(b *testing.B, t *table) {
	// The reference has the command line and the root disk of VM a, so a whole pass would
	// adopt it as that VM.
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL=10m", "VMAN_OBSERVER_ALLOW_SLOW=true")
	d.Start()
	d.SkipContract()
	d.CreateTemplate()
	// Without a NIC, which needs another program or a tap.
	d.CreateVMWith("a", map[string]any{"nics": []any{}})
	d.Action("a", "start")
	manual := byHand(d, "a")
	d.ForceStop("a")
	var starts, rawStarts, stops, rawStops []time.Duration
	for b.Loop() {
		starts = append(starts, took(func() {
			if v := d.Action("a", "start"); v.State != openapi.VMStateRunning {
				b.Fatalf("VM a is %s, want running", v.State)
			}
		}))
		stops = append(stops, took(func() { d.ForceStop("a") }))
		raw, end := manual.start()
		rawStarts = append(rawStarts, raw)
		rawStops = append(rawStops, end())
	}
	t.atMost("start until running, against QEMU by hand until QMP answers", starts, rawStarts, 1.15)
	t.atMost("forced stop, against SIGKILL until reaped", stops, rawStops, 0)
}

// benchCreateDisk creates disks over the API. The reference is qemu-img.
func benchCreateDisk(b *testing.B, t *table) {
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL=5s")
	d.Start()
	d.SkipContract()
	file := filepath.Join(b.TempDir(), "disk.qcow2")
	var values, refs []time.Duration
	for b.Loop() {
		var disk openapi.Disk
		values = append(values, took(func() { disk = d.CreateDisk(1) }))
		d.Call("DELETE", "/disks/"+disk.ID, nil).Want(204)
		refs = append(refs, took(func() { createImage(b, file) }))
		if err := os.Remove(file); err != nil {
			b.Fatal(err)
		}
	}
	t.atMost("create a disk, against qemu-img create", values, refs, 0)
}

func createImage(t testing.TB, file string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", file, "1G").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
}

// benchHotPlug plugs a disk into a running VM and unplugs it. The reference is the same QMP
// commands over the operator's monitor.
func benchHotPlug(b *testing.B, t *table) {
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL=5s")
	d.Start()
	d.SkipContract()
	d.CreateTemplate()
	d.CreateVM("a")
	d.Action("a", "start")
	disk := d.CreateDisk(1)
	raw := newRawDisk(d, "a")
	var attach, rawAttach, detach, rawDetach []time.Duration
	for b.Loop() {
		attach = append(attach, took(func() { d.AttachDisk(disk.ID, "a") }))
		detach = append(detach, took(func() { d.Call("POST", "/disks/"+disk.ID+"/detach", nil).Want(200) }))
		rawAttach = append(rawAttach, took(raw.attach))
		rawDetach = append(rawDetach, took(raw.detach))
	}
	t.atMost("attach a disk to a running VM, against QMP alone", attach, rawAttach, 0)
	t.atMost("detach it, against QMP alone until the device is gone", detach, rawDetach, 0)
}

// A rawDisk is a disk that vmand does not know.
type rawDisk struct {
	t       testing.TB
	file    string
	monitor *qmp.Conn
}

func newRawDisk(d *harness.Daemon, id string) *rawDisk {
	d.T.Helper()
	r := &rawDisk{t: d.T, file: filepath.Join(filepath.Dir(d.StateDir), "raw.qcow2")}
	createImage(d.T, r.file)
	c := credential(d.T, d.VMPID(id))
	if err := os.Chown(r.file, int(c.Uid), int(c.Gid)); err != nil {
		d.T.Fatal(err)
	}
	var err error
	if r.monitor, err = d.Monitor(d.T.Context(), id); err != nil {
		d.T.Fatal(err)
	}
	d.T.Cleanup(func() { r.monitor.Close() })
	return r
}

func (r *rawDisk) execute(ctx context.Context, command string, args any) {
	r.t.Helper()
	if err := r.monitor.Execute(ctx, command, args, nil); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rawDisk) attach() {
	r.t.Helper()
	ctx := r.t.Context()
	r.execute(ctx, "blockdev-add", map[string]any{"driver": "qcow2", "node-name": "bench", "discard": "unmap",
		"file": map[string]any{"driver": "file", "filename": r.file, "discard": "unmap"}})
	r.execute(ctx, "device_add", map[string]any{
		"driver": "scsi-hd",
		"id":     "bench-disk",
		"bus":    "scsi0.0",
		"lun":    24,
		"drive":  "bench",
		"serial": "bench",
	})
}

func (r *rawDisk) detach() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	gone := r.monitor.Expect(func(e qmp.Event) bool {
		return e.Event == "DEVICE_DELETED" && e.Data["device"] == "bench-disk"
	})
	defer gone.Cancel()
	r.execute(ctx, "device_del", map[string]any{"id": "bench-disk"})
	if _, err := gone.Wait(ctx); err != nil {
		r.t.Fatal(err)
	}
	r.execute(ctx, "blockdev-del", map[string]any{"node-name": "bench"})
}
