package test

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"vmand/qemu/qmp"
)

// shellPort is the root port that the shell's serial bus is plugged into: the
// last of those every VM has, so up to three NICs may come before it.
const shellPort = "port-3"

// A shell runs commands in a guest that has a network, whatever that network
// does: through a virtio serial port that the operator's monitor plugs.
type shell struct {
	d    *daemon // whose test is told what fails
	id   string
	conn net.Conn

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

// shell returns a shell of a VM that runs. There is one in each run of a VM.
func (d *daemon) shell(id string) *shell {
	d.t.Helper()
	d.guest(id).says("VMT: ready")
	path := filepath.Join(filepath.Dir(d.runtime), "shell-"+id)
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o666); err != nil { // QEMU is another user
		d.t.Fatal(err)
	}
	d.plugShell(id, path)
	_ = l.(*net.UnixListener).SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := l.Accept()
	if err != nil {
		d.t.Fatalf("QEMU of %s does not connect the shell: %v", id, err)
	}
	s := &shell{d: d, id: id, conn: conn, waiting: map[int64]chan shellReply{}}
	d.t.Cleanup(func() { conn.Close() })
	go s.read()
	s.run("true")
	return s
}

func (d *daemon) plugShell(id, path string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
	defer cancel()
	monitor, err := qmp.Dial(ctx, filepath.Join(d.runtime, id+".op-qmp"))
	if err != nil {
		d.t.Fatal(err)
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
			d.t.Fatalf("plug a shell into %s: %s: %v", id, c.command, err)
		}
	}
}

func (s *shell) read() {
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

// try runs a line of shell and returns what it printed and its exit status.
func (s *shell) try(stdin, line string) (string, int, error) {
	c := make(chan shellReply, 1)
	s.mu.Lock()
	if s.broken != nil {
		s.mu.Unlock()
		return "", 0, fmt.Errorf("the shell of %s is gone: %w", s.id, s.broken)
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
			return "", 0, fmt.Errorf("the shell of %s ended during %q", s.id, line)
		}
		return strings.TrimSpace(r.Out), r.Code, nil
	case <-time.After(2 * time.Minute):
		return "", 0, fmt.Errorf("guest %s does not end %q", s.id, line)
	}
}

// run runs a line of shell that must succeed, and returns what it printed.
func (s *shell) run(format string, args ...any) string {
	s.d.t.Helper()
	line := fmt.Sprintf(format, args...)
	out, code, err := s.try("", line)
	if err != nil {
		s.d.t.Fatal(err)
	}
	if code != 0 {
		s.d.t.Fatalf("guest %s: %q ended with %d:\n%s", s.id, line, code, out)
	}
	return out
}

// fails runs a line of shell that must not succeed.
func (s *shell) fails(format string, args ...any) {
	s.d.t.Helper()
	line := fmt.Sprintf(format, args...)
	out, code, err := s.try("", line)
	if err != nil {
		s.d.t.Fatal(err)
	}
	if code == 0 {
		s.d.t.Errorf("guest %s: %q succeeded:\n%s", s.id, line, out)
	}
}

// start runs a line of shell and returns a function that waits for its end.
func (s *shell) start(format string, args ...any) func() (string, error) {
	line := fmt.Sprintf(format, args...)
	type end struct {
		out string
		err error
	}
	ended := make(chan end, 1)
	go func() {
		out, code, err := s.try("", line)
		if err == nil && code != 0 {
			err = fmt.Errorf("guest %s: %q ended with %d: %s", s.id, line, code, out)
		}
		ended <- end{out, err}
	}()
	return func() (string, error) {
		e := <-ended
		return e.out, e.err
	}
}

// number runs a line of shell that prints one.
func (s *shell) number(format string, args ...any) float64 {
	s.d.t.Helper()
	out := s.run(format, args...)
	n, err := strconv.ParseFloat(out, 64)
	if err != nil {
		s.d.t.Fatalf("guest %s printed %q: %v", s.id, out, err)
	}
	return n
}

// send sends raw frames on an interface of the guest.
func (s *shell) send(name string, frames ...[]byte) {
	s.d.t.Helper()
	var lines []string
	for _, f := range frames {
		lines = append(lines, hex.EncodeToString(f))
	}
	if out, code, err := s.try(strings.Join(lines, "\n"), "vmt send "+name); err != nil || code != 0 {
		s.d.t.Fatalf("guest %s sends on %s: %d %s %v", s.id, name, code, out, err)
	}
}

// sniff begins to capture what arrives on an interface of the guest; heard
// returns it.
func (s *shell) sniff(name string) {
	s.d.t.Helper()
	s.run("vmt capture %[1]s >/run/capture.%[1]s 2>&1 & until grep -q capturing /run/capture.%[1]s; do usleep 20000; done", name)
}

func (s *shell) heard(name string) [][]byte {
	s.d.t.Helper()
	var frames [][]byte
	for _, line := range strings.Fields(s.run("tail -n +2 /run/capture.%s", name)) {
		if frame, err := hex.DecodeString(line); err == nil { // the last line may not be whole
			frames = append(frames, frame)
		}
	}
	return frames
}

// waitHeard waits until a frame with the words has arrived.
func (s *shell) waitHeard(name, words string) {
	s.d.t.Helper()
	eventually(s.d.t, 10*time.Second, fmt.Sprintf("guest %s to hear %q", s.id, words), func() error {
		if count(s.heard(name), words) == 0 {
			return errNotYet
		}
		return nil
	})
}

// errNotYet is why one has to wait on, where there is nothing more to say.
var errNotYet = errors.New("not yet")

// ipSaid is what the guest says when DHCP has given it an address.
var ipSaid = regexp.MustCompile(`VMT: ip name=(\S*) addr=(\S*) router=(\S*) dns=(\S*) domain=(\S*) hostname=(\S*) mtu=(\S*) ntp=(\S*) lease=(\S*) server=(\S*)`)
