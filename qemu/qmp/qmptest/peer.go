package qmptest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Greeting is the first line that the server sends: that of QEMU 7.2, with out-of-band
// execution offered.
const Greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "qmptest"},` +
	` "capabilities": ["oob"]}}`

// Peer is the server's side of the connection to a client. Its methods that send are
// safe for concurrent use. Messages to a client that has disconnected are dropped, as
// QEMU does.
type Peer struct {
	server     *Server
	sock       *net.UnixConn
	negotiated atomic.Bool
	sending    sync.Mutex

	// Used only by the goroutine that serves the client.
	buf     []byte     // received and not yet consumed
	files   []*os.File // received and not yet given to a command
	filesAt int        // index in buf of the last byte that came with files
	all     []*os.File // closed by release
}

// Command is a command as the server received it.
type Command struct {
	Name  string
	OOB   bool
	Args  Args
	ID    json.RawMessage // nil if there was none
	Files []*os.File      // passed with the command; closed when the client disconnects
}

// Args holds the arguments of a command, a JSON object, or nil.
type Args json.RawMessage

// String returns the argument with a name if it is a string, otherwise "".
func (a Args) String(name string) string {
	var all map[string]any
	if len(a) == 0 || json.Unmarshal(a, &all) != nil {
		return ""
	}
	s, _ := all[name].(string)
	return s
}

// Decode stores the arguments in v as json.Unmarshal does.
func (a Args) Decode(v any) error { return json.Unmarshal(a, v) }

// Refusal is an error with a QMP class. See [Refuse].
type Refusal struct{ Class, Desc string }

func (r *Refusal) Error() string { return r.Class + ": " + r.Desc }

// Refuse returns an error with which a [Handler] refuses a command.
func Refuse(class, desc string) error { return &Refusal{class, desc} }

// Handshake sends the greeting and answers qmp_capabilities.
func (p *Peer) Handshake() {
	p.Raw(Greeting + "\r\n")
	cmd := p.Next()
	if cmd.Name != "qmp_capabilities" {
		p.fail("got %s, want qmp_capabilities first", cmd.Name)
	}
	p.Reply(cmd, nil)
	p.negotiated.Store(true)
}

// Next waits for the next command.
func (p *Peer) Next() Command {
	cmd, err := p.receive()
	if err != nil {
		p.fail("waiting for a command: %v", err)
	}
	return cmd
}

// Expect waits for the next command, which must have this name. With args, a value or a
// json.RawMessage, its arguments must be the same JSON value.
func (p *Peer) Expect(name string, args ...any) Command {
	cmd, err := p.receive()
	if err != nil {
		p.fail("waiting for %s: %v", name, err)
	}
	if cmd.Name != name {
		p.fail("got %s %s, want %s", cmd.Name, cmd.Args, name)
	}
	if len(args) > 0 {
		want := encode(args[0])
		if !sameJSON([]byte(cmd.Args), want) {
			p.fail("%s has arguments %s, want %s", name, cmd.Args, want)
		}
	}
	return cmd
}

// Reply answers cmd with a return value, encoded by json.Marshal; nil stands for {}.
func (p *Peer) Reply(cmd Command, value any) {
	if value == nil {
		value = struct{}{}
	}
	p.send(map[string]any{"return": value}, cmd.ID)
}

// Refuse answers cmd with an error.
func (p *Peer) Refuse(cmd Command, class, desc string) {
	p.send(map[string]any{"error": map[string]string{"class": class, "desc": desc}}, cmd.ID)
}

// Event sends an event, without data if data is nil.
func (p *Peer) Event(name string, data any) {
	m := map[string]any{
		"event":     name,
		"timestamp": map[string]int64{"seconds": 1700000000, "microseconds": 42},
	}
	if data != nil {
		m["data"] = data
	}
	p.send(m, nil)
}

// Raw sends s unchanged.
func (p *Peer) Raw(s string) {
	p.sending.Lock()
	defer p.sending.Unlock()
	p.sock.Write([]byte(s))
}

// Close hangs up.
func (p *Peer) Close() { p.sock.Close() }

// send sends a message, with an id unless that is nil.
func (p *Peer) send(m map[string]any, id json.RawMessage) {
	if id != nil {
		m["id"] = id
	}
	p.Raw(string(encode(m)) + "\r\n")
}

// handle does the handshake and answers all commands with h.
func (p *Peer) handle(h Handler) {
	p.Raw(Greeting + "\r\n")
	for {
		cmd, err := p.receive()
		if err != nil {
			return // the client has disconnected
		}
		if cmd.Name == "qmp_capabilities" {
			p.Reply(cmd, nil)
			p.negotiated.Store(true)
			continue
		}
		value, err := h(cmd.Name, cmd.Args)
		var refusal *Refusal
		switch {
		case err == nil:
			p.Reply(cmd, value)
		case errors.Is(err, ErrSilent):
		case errors.Is(err, ErrHangUp):
			p.Close()
		case errors.As(err, &refusal):
			p.Refuse(cmd, refusal.Class, refusal.Desc)
		default:
			p.Refuse(cmd, "GenericError", err.Error())
		}
	}
}

// receive returns the next command, or an error if the client has disconnected.
func (p *Peer) receive() (Command, error) {
	line, files, err := p.line()
	if err != nil {
		return Command{}, err
	}
	var m struct {
		Execute   string          `json:"execute"`
		ExecOOB   string          `json:"exec-oob"`
		Arguments json.RawMessage `json:"arguments"`
		ID        json.RawMessage `json:"id"`
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return Command{}, fmt.Errorf("the client sent %q: %w", line, err)
	}
	cmd := Command{
		Name:  m.Execute + m.ExecOOB,
		OOB:   m.ExecOOB != "",
		Args:  Args(m.Arguments),
		ID:    m.ID,
		Files: files,
	}
	if cmd.Name != "qmp_capabilities" {
		p.server.record(cmd.Name)
	}
	return cmd, nil
}

// line returns the next line and the files that were passed with it.
func (p *Peer) line() ([]byte, []*os.File, error) {
	for {
		if end := bytes.IndexByte(p.buf, '\n'); end >= 0 {
			line := p.buf[:end:end]
			p.buf = p.buf[end+1:]
			var files []*os.File
			if p.files != nil && end >= p.filesAt {
				files, p.files = p.files, nil
			}
			p.filesAt -= end + 1
			return line, files, nil
		}
		if err := p.fill(); err != nil {
			return nil, nil, err
		}
	}
}

// fill reads once from the socket.
func (p *Peer) fill() error {
	chunk, control := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(16*4))
	n, c, _, _, err := p.sock.ReadMsgUnix(chunk, control)
	if err != nil {
		return err
	}
	p.buf = append(p.buf, chunk[:n]...)
	if c == 0 {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(control[:c])
	if err != nil {
		return err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return err
		}
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "passed")
			p.files, p.all = append(p.files, f), append(p.all, f)
		}
	}
	p.filesAt = len(p.buf) - 1 // the kernel ends a read at the message with the files
	return nil
}

// drain reads until the client disconnects.
func (p *Peer) drain() {
	for p.fill() == nil {
		p.buf = nil
	}
}

// release closes the socket and the files of the client.
func (p *Peer) release() {
	p.server.mu.Lock()
	p.server.peer = nil
	p.server.mu.Unlock()
	p.sock.Close()
	for _, f := range p.all {
		f.Close()
	}
}

// fail fails the test and ends the goroutine of the script.
func (p *Peer) fail(format string, args ...any) {
	p.server.t.Errorf("qmptest: "+format, args...)
	p.Close()
	runtime.Goexit()
}

// encode encodes v, which a test wrote. If that fails, it returns the error as JSON.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Appendf(nil, "%q", err.Error())
	}
	return b
}

// sameJSON reports whether a and b are the same JSON value.
func sameJSON(a, b []byte) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return bytes.Equal(a, b)
	}
	return reflect.DeepEqual(x, y)
}
