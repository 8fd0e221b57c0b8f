package harness

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"vmand/qemu/qmp"
)

// StartAll starts VMs together, waits until each has confirmed its address, and returns
// their shells.
func (d *Daemon) StartAll(ids ...string) []*Shell {
	d.T.Helper()
	answers := make(chan error, len(ids))
	for _, id := range ids {
		go func() {
			a, err := d.Try("POST", "/vms/"+id+"/actions/start?wait_for=ip", nil, Wait)
			if err == nil && a.Status != 200 {
				err = fmt.Errorf("start %s: %d %s", id, a.Status, a.Body)
			}
			answers <- err
		}()
	}
	for range ids {
		if err := <-answers; err != nil {
			d.T.Fatal(err)
		}
	}
	var shells []*Shell
	for _, id := range ids {
		shells = append(shells, d.Shell(id))
	}
	return shells
}

// unreachableSeconds is how many seconds a connection is tried that must not come about.
const unreachableSeconds = 2

// Reaches fails the test unless the guest's HTTP requests to an address arrive.
func (s *Shell) Reaches(address string) string {
	s.Daemon.T.Helper()
	return s.Run("timeout 15 wget -q -O - http://%s/ 2>&1", address)
}

// TriesInVain begins to reach an address that it must not, and returns what waits for
// that and fails the test if it does.
func (s *Shell) TriesInVain(address string) func() {
	s.Daemon.T.Helper()
	ended := s.Start("timeout %[1]d wget -q -O - http://%[2]s/ 2>&1 || ping -c 1 -W %[1]d %[2]s", unreachableSeconds, address)
	return func() {
		s.Daemon.T.Helper()
		if out, err := ended(); err == nil {
			s.Daemon.T.Errorf("guest %s reaches %s: %s", s.VM, address, out)
		}
	}
}

// shellPort is the root port that the shell's serial bus is plugged into: the
// last of those every VM has, so up to three NICs may come before it.
const shellPort = "port-3"

// A Shell runs commands in a guest that has a network, whatever that network
// does: through a virtio serial port that the operator's monitor plugs.
type Shell struct {
	Daemon *Daemon // whose test is told what fails
	VM     string
	conn   net.Conn

	mu      sync.Mutex
	next    int64
	waiting map[int64]chan shellReply
	broken  error
}

type shellReply struct {
	ID   int64  `json:"id"`
	Out  string `json:"out"`
	Code int    `json:"code"`
}

// Shell returns a shell of a VM that runs. There is one in each run of a VM.
func (d *Daemon) Shell(id string) *Shell {
	d.T.Helper()
	d.Serial(id).Expect("VMT: ready")
	path := filepath.Join(filepath.Dir(d.RuntimeDir), "shell-"+id)
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		d.T.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o666); err != nil { // QEMU is another user
		d.T.Fatal(err)
	}
	d.plugShell(id, path)
	_ = l.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := l.Accept()
	if err != nil {
		d.T.Fatalf("QEMU of %s does not connect the shell: %v", id, err)
	}
	s := &Shell{Daemon: d, VM: id, conn: conn, waiting: map[int64]chan shellReply{}}
	d.T.Cleanup(func() { conn.Close() })
	go s.read()
	s.Run("true")
	return s
}

func (d *Daemon) plugShell(id, path string) {
	d.T.Helper()
	ctx, cancel := context.WithTimeout(d.T.Context(), 20*time.Second)
	defer cancel()
	monitor, err := qmp.Dial(ctx, filepath.Join(d.RuntimeDir, id+".op-qmp"))
	if err != nil {
		d.T.Fatal(err)
	}
	defer monitor.Close()
	for _, c := range []struct {
		command string
		args    map[string]any
	}{
		{"chardev-add", map[string]any{"id": "vmt", "backend": map[string]any{"type": "socket", "data": map[string]any{
			"server": false, "addr": map[string]any{"type": "unix", "data": map[string]any{"path": path}}}}}},
		{"device_add", map[string]any{"driver": "virtio-serial-pci", "id": "vmt-bus", "bus": shellPort, "addr": "0x0"}},
		{"device_add", map[string]any{"driver": "virtserialport", "bus": "vmt-bus.0", "chardev": "vmt", "name": "vmt"}},
	} {
		if err := monitor.Execute(ctx, c.command, c.args, nil); err != nil {
			d.T.Fatalf("plug a shell into %s: %s: %v", id, c.command, err)
		}
	}
}

func (s *Shell) read() {
	lines := bufio.NewReader(s.conn)
	for {
		line, err := lines.ReadBytes('\n')
		var r shellReply
		if err == nil {
			err = json.Unmarshal(line, &r)
		}
		s.mu.Lock()
		if err != nil {
			s.broken = err
			for _, c := range s.waiting {
				close(c)
			}
			s.mu.Unlock()
			return
		}
		if c := s.waiting[r.ID]; c != nil {
			c <- r
			delete(s.waiting, r.ID)
		}
		s.mu.Unlock()
	}
}

// Try runs a line of shell and returns what it printed and its exit status.
func (s *Shell) Try(stdin, line string) (string, int, error) {
	c := make(chan shellReply, 1)
	s.mu.Lock()
	if s.broken != nil {
		s.mu.Unlock()
		return "", 0, fmt.Errorf("the shell of %s is gone: %w", s.VM, s.broken)
	}
	s.next++
	id := s.next
	s.waiting[id] = c
	s.mu.Unlock()
	text, err := json.Marshal(map[string]any{"id": id, "shell": line, "stdin": stdin})
	if err != nil {
		return "", 0, err
	}
	if _, err := s.conn.Write(append(text, '\n')); err != nil {
		return "", 0, err
	}
	select {
	case r, ok := <-c:
		if !ok {
			return "", 0, fmt.Errorf("the shell of %s ended during %q", s.VM, line)
		}
		return strings.TrimSpace(r.Out), r.Code, nil
	case <-time.After(2 * time.Minute):
		return "", 0, fmt.Errorf("guest %s does not end %q", s.VM, line)
	}
}

// Run runs a line of shell that must succeed, and returns what it printed.
func (s *Shell) Run(format string, args ...any) string {
	s.Daemon.T.Helper()
	line := fmt.Sprintf(format, args...)
	out, code, err := s.Try("", line)
	if err != nil {
		s.Daemon.T.Fatal(err)
	}
	if code != 0 {
		s.Daemon.T.Fatalf("guest %s: %q ended with %d:\n%s", s.VM, line, code, out)
	}
	return out
}

// RunFailing runs a line of shell that must not succeed.
func (s *Shell) RunFailing(format string, args ...any) {
	s.Daemon.T.Helper()
	line := fmt.Sprintf(format, args...)
	out, code, err := s.Try("", line)
	if err != nil {
		s.Daemon.T.Fatal(err)
	}
	if code == 0 {
		s.Daemon.T.Errorf("guest %s: %q succeeded:\n%s", s.VM, line, out)
	}
}

// Start runs a line of shell and returns a function that waits for its end.
func (s *Shell) Start(format string, args ...any) func() (string, error) {
	line := fmt.Sprintf(format, args...)
	type end struct {
		out string
		err error
	}
	ended := make(chan end, 1)
	go func() {
		out, code, err := s.Try("", line)
		if err == nil && code != 0 {
			err = fmt.Errorf("guest %s: %q ended with %d: %s", s.VM, line, code, out)
		}
		ended <- end{out, err}
	}()
	return func() (string, error) {
		e := <-ended
		return e.out, e.err
	}
}

// RunNumber runs a line of shell that prints one.
func (s *Shell) RunNumber(format string, args ...any) float64 {
	s.Daemon.T.Helper()
	out := s.Run(format, args...)
	n, err := strconv.ParseFloat(out, 64)
	if err != nil {
		s.Daemon.T.Fatalf("guest %s printed %q: %v", s.VM, out, err)
	}
	return n
}

// Send sends raw frames on an interface of the guest.
func (s *Shell) Send(name string, frames ...[]byte) {
	s.Daemon.T.Helper()
	var lines []string
	for _, f := range frames {
		lines = append(lines, hex.EncodeToString(f))
	}
	if out, code, err := s.Try(strings.Join(lines, "\n"), "vmt send "+name); err != nil || code != 0 {
		s.Daemon.T.Fatalf("guest %s sends on %s: %d %s %v", s.VM, name, code, out, err)
	}
}

// Capture begins to capture what arrives on an interface of the guest; heard
// returns it.
func (s *Shell) Capture(name string) {
	s.Daemon.T.Helper()
	s.Run("vmt capture %[1]s >/run/capture.%[1]s 2>&1 & until grep -q capturing /run/capture.%[1]s; do usleep 20000; done", name)
}

// Captured returns the frames that were captured on an interface of the guest.
func (s *Shell) Captured(name string) [][]byte {
	s.Daemon.T.Helper()
	var frames [][]byte
	for _, line := range strings.Fields(s.Run("tail -n +2 /run/capture.%s", name)) {
		if frame, err := hex.DecodeString(line); err == nil { // the last line may not be whole
			frames = append(frames, frame)
		}
	}
	return frames
}

// WaitCaptured waits until a frame with the words has arrived.
func (s *Shell) WaitCaptured(name, words string) {
	s.Daemon.T.Helper()
	Eventually(s.Daemon.T, 10*time.Second, fmt.Sprintf("guest %s to hear %q", s.VM, words), func() error {
		if CountFrames(s.Captured(name), words) == 0 {
			return ErrNotYet
		}
		return nil
	})
}
