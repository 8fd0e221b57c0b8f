package harness

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// shellPort is the root port of the shell's serial bus: the last that every VM has, so
// that up to three NICs fit before it.
const shellPort = "port-3"

// A Shell runs commands in a guest of the variant "net", through a virtio serial port
// that the harness plugs over the operator's monitor. It works whatever the guest's
// network does.
type Shell struct {
	Daemon *Daemon
	VM     string
	conn   net.Conn

	mu      sync.Mutex
	next    int64 // the id of the last request
	waiting map[int64]chan shellReply
	broken  error // not nil: the connection has ended
}

type shellReply struct {
	ID   int64  `json:"id"`
	Out  string `json:"out"`
	Code int    `json:"code"`
}

// StartAll starts VMs at the same time, waits until each guest has confirmed its
// address, and returns their shells.
func (d *Daemon) StartAll(ids ...string) []*Shell {
	d.T.Helper()
	answers := make(chan error, len(ids))
	for _, id := range ids {
		go func() {
			a, err := d.Try("POST", "/vms/"+id+"/actions/start?wait_for=ip", nil, Wait)
			if err == nil && a.Status != 200 {
				err = fmt.Errorf("start VM %s: %d %s", id, a.Status, a.Body)
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

// Shell waits until the guest of a running VM has booted and returns a shell in it. A VM
// has at most one shell in each of its runs.
func (d *Daemon) Shell(id string) *Shell {
	d.T.Helper()
	d.Serial(id).Expect("VMT: ready")
	path := filepath.Join(filepath.Dir(d.RuntimeDir), "shell-"+id)
	_ = os.Remove(path) // of the run before
	l, err := net.Listen("unix", path)
	if err != nil {
		d.T.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o666); err != nil { // QEMU runs as another user
		d.T.Fatal(err)
	}
	d.plugShell(id, path)
	_ = l.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := l.Accept()
	if err != nil {
		d.T.Fatalf("QEMU of VM %s does not connect the shell: %v", id, err)
	}
	s := &Shell{Daemon: d, VM: id, conn: conn, waiting: map[int64]chan shellReply{}}
	d.T.Cleanup(func() { conn.Close() })
	go s.read()
	s.Run("true")
	return s
}

// plugShell plugs a serial port whose other end is the socket at a path.
func (d *Daemon) plugShell(id, path string) {
	d.T.Helper()
	ctx, cancel := context.WithTimeout(d.T.Context(), 20*time.Second)
	defer cancel()
	monitor, err := d.Monitor(ctx, id)
	if err != nil {
		d.T.Fatal(err)
	}
	defer monitor.Close()
	address := map[string]any{"type": "unix", "data": map[string]any{"path": path}}
	socket := map[string]any{"type": "socket", "data": map[string]any{"server": false, "addr": address}}
	for _, c := range []struct {
		command string
		args    map[string]any
	}{
		{"chardev-add", map[string]any{"id": "vmt", "backend": socket}},
		{"device_add", map[string]any{"driver": "virtio-serial-pci", "id": "vmt-bus", "bus": shellPort, "addr": "0x0"}},
		{"device_add", map[string]any{"driver": "virtserialport", "bus": "vmt-bus.0", "chardev": "vmt", "name": "vmt"}},
	} {
		if err := monitor.Execute(ctx, c.command, c.args, nil); err != nil {
			d.T.Fatalf("plug a shell into VM %s: %s: %v", id, c.command, err)
		}
	}
}

// read hands replies to the calls of Try that wait for them, until the connection ends.
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

// Try runs a shell command and returns its output and its exit status. It is safe for
// concurrent use.
func (s *Shell) Try(stdin, command string) (string, int, error) {
	reply := make(chan shellReply, 1)
	s.mu.Lock()
	if s.broken != nil {
		s.mu.Unlock()
		return "", 0, fmt.Errorf("the shell of guest %s has ended: %w", s.VM, s.broken)
	}
	s.next++
	id := s.next
	s.waiting[id] = reply
	s.mu.Unlock()
	text, err := json.Marshal(map[string]any{"id": id, "shell": command, "stdin": stdin})
	if err != nil {
		return "", 0, err
	}
	if _, err := s.conn.Write(append(text, '\n')); err != nil {
		return "", 0, err
	}
	select {
	case r, ok := <-reply:
		if !ok {
			return "", 0, fmt.Errorf("the shell of guest %s ended during %q", s.VM, command)
		}
		return strings.TrimSpace(r.Out), r.Code, nil
	case <-time.After(2 * time.Minute):
		return "", 0, fmt.Errorf("guest %s: %q did not end", s.VM, command)
	}
}

// Run runs a shell command, ends the test if it fails, and returns its output.
func (s *Shell) Run(format string, args ...any) string {
	s.Daemon.T.Helper()
	command := fmt.Sprintf(format, args...)
	out, code, err := s.Try("", command)
	if err != nil {
		s.Daemon.T.Fatal(err)
	}
	if code != 0 {
		s.Daemon.T.Fatalf("guest %s: %q ended with %d:\n%s", s.VM, command, code, out)
	}
	return out
}

// RunFailing runs a shell command and fails the test unless the command fails.
func (s *Shell) RunFailing(format string, args ...any) {
	s.Daemon.T.Helper()
	command := fmt.Sprintf(format, args...)
	out, code, err := s.Try("", command)
	if err != nil {
		s.Daemon.T.Fatal(err)
	}
	if code == 0 {
		s.Daemon.T.Errorf("guest %s: %q succeeded:\n%s", s.VM, command, out)
	}
}

// RunNumber runs a shell command that prints a number.
func (s *Shell) RunNumber(format string, args ...any) float64 {
	s.Daemon.T.Helper()
	out := s.Run(format, args...)
	n, err := strconv.ParseFloat(out, 64)
	if err != nil {
		s.Daemon.T.Fatalf("guest %s printed %q: %v", s.VM, out, err)
	}
	return n
}

// Start starts a shell command and returns a function that waits for its end.
func (s *Shell) Start(format string, args ...any) func() (string, error) {
	command := fmt.Sprintf(format, args...)
	type end struct {
		out string
		err error
	}
	ended := make(chan end, 1)
	go func() {
		out, code, err := s.Try("", command)
		if err == nil && code != 0 {
			err = fmt.Errorf("guest %s: %q ended with %d: %s", s.VM, command, code, out)
		}
		ended <- end{out, err}
	}()
	return func() (string, error) {
		e := <-ended
		return e.out, e.err
	}
}
