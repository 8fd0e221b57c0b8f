package qemu

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// linuxGuest returns the disk of the Linux guest that test/guest/build.sh builds.
func linuxGuest(t testing.TB, variant string) string {
	t.Helper()
	needQEMU(t)
	dir := os.Getenv("VMAN_TEST_GUEST")
	if dir == "" {
		dir = filepath.Join("..", "build", "guest")
		if out, err := exec.Command("../test/guest/build.sh", dir).CombinedOutput(); err != nil {
			t.Fatalf("build the test guest: %v\n%s", err, out)
		}
	}
	path, err := filepath.Abs(filepath.Join(dir, "disk-"+variant+".qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// startAgent starts a VM with a guest agent and waits until the agent answers.
func (h *testHost) startAgent(id string) {
	h.t.Helper()
	root := vm.DiskFile{SizeMiB: 64, Base: linuxGuest(h.t, "agent"), BaseFormat: formatQcow2}
	must(h.t, h.CreateVM(h.t.Context(), id, root, nil, nil))
	s := h.create(id+"-model", guestDeaf)
	s.ID, s.RAMMiB, s.Root = id, 192, root
	h.startSpec(s)
	h.awaitAgent(id, vm.AgentConnected)
}

func (h *testHost) awaitAgent(id string, want vm.AgentState) vm.Agent {
	h.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		got := h.Agent(id)
		if got.State == want && (want != vm.AgentConnected || got.Version != "") {
			return got
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("the agent of VM %s never becomes %s, it is %+v; the console log is %s", id, want, got, h.serialLog(id))
		}
		<-tick.C
	}
}

// sh runs a shell command in a guest.
func (h *testHost) sh(id, line string) string {
	h.t.Helper()
	c := vm.GuestCommand{Path: "/bin/sh", Args: []string{"-c", line}, Env: []string{"PATH=/bin"}, Timeout: 30 * time.Second}
	r, err := h.Exec(h.t.Context(), id, c)
	if err != nil || !r.Exited || r.ExitCode != 0 || r.Signal != 0 {
		h.t.Fatalf("%s: %+v, %v", line, r, err)
	}
	return string(r.Stdout)
}

const restartAgent = `(sleep 1; kill $(cat /run/qemu-ga.pid); sleep 3; qemu-ga -d -t /run -f /run/qemu-ga.pid -l /run/qemu-ga.log) </dev/null >/dev/null 2>&1 &`

func TestAGuestAgentAnswersEveryCall(t *testing.T) {
	h := newHost(t)
	begin := time.Now()
	h.startAgent("web")
	t.Logf("the agent answered after %v", time.Since(begin))
	if !slices.Contains(h.marksTold(), "web agent") {
		t.Errorf("marks: %v", h.marksTold())
	}
	a := h.Agent("web")
	if !strings.HasPrefix(a.Version, "7.") || time.Since(a.LastSeenAt) > time.Minute {
		t.Errorf("the agent is %+v", a)
	}
	disk := h.disk("data", "web", "/dev/sdb")
	must(t, h.AttachDisk(t.Context(), disk))
	// The device node can exist before the kernel has probed the disk.
	h.sh("web", "until mke2fs /dev/sda >/dev/null 2>&1; do sleep 0.1; done; "+
		"mkdir /data && mount -t ext4 /dev/sda /data && hostname web")

	t.Run("info", h.testInfo)
	t.Run("mounts", h.testMounts)
	t.Run("exec", h.testExec)
	t.Run("files", h.testFiles)
	t.Run("refusals", h.testRefusals)
	t.Run("freeze", h.testFreeze)
	t.Run("deadlines", h.testDeadlines)
	t.Run("pause", func(t *testing.T) {
		must(t, h.Pause(t.Context(), "web"))
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := h.GuestInfo(ctx, "web")
		mustFail(t, err, vm.CodeAgentUnavailable)
		must(t, h.Resume(t.Context(), "web"))
		h.awaitAgent("web", vm.AgentConnected)
	})
	t.Run("restart", func(t *testing.T) {
		h.sh("web", restartAgent)
		h.awaitAgent("web", vm.AgentSilent)
		_, err := h.GuestInfo(t.Context(), "web")
		mustFail(t, err, vm.CodeAgentUnavailable)
		h.awaitAgent("web", vm.AgentConnected)
		h.sh("web", "true")
	})
	t.Run("adoption", func(t *testing.T) {
		s, err := h.live("web")
		must(t, err)
		_, err = s.agent.client.Freeze(t.Context()) // as a vmand that is killed after that
		must(t, err)
		h.reopen()
		h.awaitAgent("web", vm.AgentConnected)
		s, err = h.live("web")
		must(t, err)
		await(t, "the guest is thawed", func() bool {
			frozen, err := s.agent.client.Frozen(t.Context())
			return err == nil && !frozen
		})
		if n := strings.Count(strings.Join(h.marksTold(), ","), "web agent"); n != 1 {
			t.Errorf("there are %d agent marks", n)
		}
		h.sh("web", "echo still >/data/here")
	})
	must(t, h.kill("web"))
	if got := h.Agent("web"); got.State != vm.AgentAbsent {
		t.Errorf("after the end of the VM: %+v", got)
	}
	_, err := h.GuestInfo(t.Context(), "web")
	mustFail(t, err, vm.CodeState)
}

func (h *testHost) testInfo(t *testing.T) {
	g, err := h.GuestInfo(t.Context(), "web")
	must(t, err)
	if g.Hostname != "web" || g.OS.Machine != "x86_64" || !strings.HasPrefix(g.OS.Kernel, "6.") {
		t.Errorf("the guest is %+v", g)
	}
	eth := slices.IndexFunc(g.Interfaces, func(i vm.GuestInterface) bool { return i.MAC == userPort(0).MAC })
	if eth < 0 || g.Interfaces[eth].Name != "eth0" {
		t.Errorf("its interfaces are %+v", g.Interfaces)
	}
	data := slices.IndexFunc(g.Filesystems, func(f vm.GuestFilesystem) bool { return f.MountPoint == "/data" })
	if data < 0 || g.Filesystems[data].Type != "ext4" || g.Filesystems[data].TotalBytes < 8<<20 {
		t.Errorf("its file systems are %+v", g.Filesystems)
	}
}

func (h *testHost) testMounts(t *testing.T) {
	disk := vm.Disk{ID: "data", VMID: "web", MountPoint: "/dev/sdb"}
	h.sh("web", "mkdir -p /more && mount -o bind /data /more")
	got, err := h.Mounts(t.Context(), disk)
	want := []vm.GuestMount{{MountPoint: "/data", Device: "sda"}, {MountPoint: "/more", Device: "sda"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the mounts are %+v, %v; want %+v", got, err, want)
	}
	h.sh("web", "umount /more")
	disk.ID, disk.MountPoint = "other", "/dev/sdc"
	if got, err := h.Mounts(t.Context(), disk); err != nil || len(got) != 0 {
		t.Errorf("the mounts of another disk are %+v, %v", got, err)
	}
	n, err := h.Freeze(t.Context(), "web", "/data")
	if err != nil || n != 1 {
		t.Errorf("froze %d: %v", n, err)
	}
	must(t, h.Thaw(t.Context(), "web"))
}

func (h *testHost) testExec(t *testing.T) {
	c := vm.GuestCommand{Path: "/bin/sh", Args: []string{"-c", "cat; echo $X >&2; exit 3"}, Env: []string{"X=a b", "PATH=/bin"}, Stdin: []byte("in\x00put"), Timeout: time.Minute}
	r, err := h.Exec(t.Context(), "web", c)
	if err != nil || !r.Exited || r.ExitCode != 3 || string(r.Stdout) != "in\x00put" || string(r.Stderr) != "a b\n" || r.Truncated {
		t.Errorf("got %+v, %v", r, err)
	}
	begin := time.Now()
	r, err = h.Exec(t.Context(), "web", vm.GuestCommand{
		Path:    "/bin/sleep",
		Args:    []string{"5"},
		Timeout: 100 * time.Millisecond,
	})
	if err != nil || r.Exited || time.Since(begin) > 15*time.Second {
		t.Errorf("after %v: %+v, %v", time.Since(begin), r, err)
	}
	begin = time.Now()
	r, err = h.Exec(t.Context(), "web", vm.GuestCommand{
		Path:    "/bin/sh",
		Args:    []string{"-c", "yes | head -c 3000000"},
		Env:     []string{"PATH=/bin"},
		Timeout: time.Minute,
	})
	if err != nil || !r.Exited || len(r.Stdout) != 3000000 || r.Truncated {
		t.Errorf("3 MB of output: %d bytes, %+v, %v", len(r.Stdout), r.Exited, err)
	}
	t.Logf("3 MB of output took %v", time.Since(begin))
	_, err = h.Exec(t.Context(), "web", vm.GuestCommand{Stdin: make([]byte, vm.MaxGuestStdin+1)})
	mustFail(t, err, vm.CodeInvalid)
}

func (h *testHost) testFiles(t *testing.T) {
	content := make([]byte, 1<<20)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	begin := time.Now()
	must(t, h.WriteFile(t.Context(), "web", "/data/file", bytes.NewReader(content)))
	wrote := time.Since(begin)
	var got bytes.Buffer
	must(t, h.ReadFile(t.Context(), "web", "/data/file", &got, 1<<20))
	t.Logf("1 MiB: written in %v, read in %v", wrote, time.Since(begin)-wrote)
	if !bytes.Equal(got.Bytes(), content) {
		t.Errorf("read %d bytes that were not written", got.Len())
	}
	got.Reset()
	mustFail(t, h.ReadFile(t.Context(), "web", "/data/file", &got, 1000), vm.CodeInvalid)
	if !bytes.Equal(got.Bytes(), content[:1000]) {
		t.Errorf("read %d bytes of 1000", got.Len())
	}
}

func (h *testHost) testRefusals(t *testing.T) {
	err := h.ReadFile(t.Context(), "web", "/none", &bytes.Buffer{}, 1)
	mustFail(t, err, vm.CodeGuestRefused)
	if err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Errorf("the error is %v", err)
	}
	_, err = h.Exec(t.Context(), "web", vm.GuestCommand{Path: "/none", Timeout: time.Minute})
	mustFail(t, err, vm.CodeGuestRefused)
	// The agent finds no chpasswd in the guest.
	mustFail(t, h.SetPassword(t.Context(), "web", "nobody", "x"), vm.CodeGuestRefused)
	if err := h.Trim(t.Context(), "web"); err != nil {
		mustFail(t, err, vm.CodeGuestRefused)
	}
	if got := h.Agent("web"); got.State != vm.AgentConnected {
		t.Errorf("after that the agent is %+v", got)
	}
}

func (h *testHost) testFreeze(t *testing.T) {
	n, err := h.Freeze(t.Context(), "web")
	if err != nil || n < 1 {
		t.Fatalf("froze %d: %v", n, err)
	}
	_, err = h.Freeze(t.Context(), "web")
	mustFail(t, err, vm.CodeBusy)
	_, err = h.Exec(t.Context(), "web", vm.GuestCommand{Path: "/bin/true", Timeout: time.Minute})
	mustFail(t, err, vm.CodeGuestRefused)
	must(t, h.Thaw(t.Context(), "web"))
	mustFail(t, h.Thaw(t.Context(), "web"), vm.CodeState)
	_, err = h.Freeze(t.Context(), "web")
	must(t, err)
	s, err := h.live("web")
	must(t, err)
	s.agent.mu.Lock()
	if left := time.Until(s.agent.thawAt); left > freezeLease {
		t.Errorf("it would thaw by itself after %v", left)
	}
	s.agent.thawAt = time.Now() // as if the lease was over
	s.agent.mu.Unlock()
	s.agent.poke()
	await(t, "the guest thaws by itself", func() bool {
		s.agent.mu.Lock()
		defer s.agent.mu.Unlock()
		return !s.agent.frozen
	})
	mustFail(t, h.Thaw(t.Context(), "web"), vm.CodeState)
	_, err = h.Freeze(t.Context(), "web")
	must(t, err)
	h.reopen() // a vmand that stops thaws
	h.awaitAgent("web", vm.AgentConnected)
	h.sh("web", "echo thawed >/data/thawed")
}

func (h *testHost) testDeadlines(t *testing.T) {
	s, err := h.live("web")
	must(t, err)
	must(t, s.proc.Signal(unix.SIGSTOP))
	defer s.proc.Signal(unix.SIGCONT)
	for range 20 { // more than the backlog of a socket
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		begin := time.Now()
		_, err := h.GuestInfo(ctx, "web")
		cancel()
		if took := time.Since(begin); codeOf(err) != vm.CodeAgentUnavailable || took > 15*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
	}
	begin := time.Now()
	_, err = h.GuestInfo(t.Context(), "web")
	mustFail(t, err, vm.CodeAgentUnavailable)
	t.Logf("a question without a deadline ended after %v", time.Since(begin))
	if got := h.Agent("web"); got.State != vm.AgentSilent {
		t.Errorf("the agent is %+v", got)
	}
	must(t, s.proc.Signal(unix.SIGCONT))
	h.awaitAgent("web", vm.AgentConnected)
	h.sh("web", "true")
}

func TestAGuestWithoutAnAgentGetsNoCalls(t *testing.T) {
	h := newHost(t)
	h.start("web", guestSaysHi)
	h.awaitSerial("web", "hi")
	s, err := h.live("web")
	must(t, err)
	await(t, "QEMU has reported the port", func() bool {
		s.agent.mu.Lock()
		defer s.agent.mu.Unlock()
		return s.agent.hasPort
	})
	if got := h.Agent("web"); got != (vm.Agent{State: vm.AgentAbsent}) {
		t.Errorf("got %+v", got)
	}
	_, err = h.Exec(t.Context(), "web", vm.GuestCommand{Path: "/bin/true"})
	mustFail(t, err, vm.CodeAgentUnavailable)
	var f *vm.Fault
	if errors.As(err, &f) && !strings.Contains(f.Hint, "qemu-guest-agent") {
		t.Errorf("the hint is %q", f.Hint)
	}
	// vmand has not connected to the port: this connection is the first.
	conn, err := net.Dial("unix", h.layout.inRun("web", agentSuffix))
	must(t, err)
	conn.Close()
	if got := h.Agent("none"); got != (vm.Agent{State: vm.AgentAbsent}) {
		t.Errorf("no VM: %+v", got)
	}
	_, err = h.Exec(t.Context(), "none", vm.GuestCommand{})
	mustFail(t, err, vm.CodeState)
}
