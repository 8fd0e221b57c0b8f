package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"vmand/host"
	"vmand/qemu/qmp"

	"golang.org/x/sys/unix"
)

// examination is a QEMU process without a guest that was started to answer questions.
type examination struct {
	proc   *host.Process
	conn   *qmp.Conn
	stderr *os.File
}

// errCannotStart reports that a program could not be started at all.
var errCannotStart = errors.New("cannot start")

// examine starts a QEMU that runs no guest and connects to its monitor.
func (d *Driver) examine(ctx context.Context, binary string, args ...string) (*examination, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	stderr, err := host.MemoryFile("stderr")
	if err != nil {
		ours.Close()
		return nil, err
	}
	args = append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
	}, args...)
	program := d.program(append([]string{binary}, args...)...)
	program.Files = []*os.File{nil, stderr, stderr, theirs}
	program.EndsWithVmand = true
	proc, err := program.Start()
	if err != nil {
		ours.Close()
		stderr.Close()
		return nil, fmt.Errorf("%w %s: %w", errCannotStart, binary, err)
	}
	theirs.Close() // so that the end of the process ends the connection
	x := &examination{proc: proc, stderr: stderr}
	if x.conn, err = qmp.New(ctx, ours); err != nil {
		err = x.explain(err)
		x.end()
		return nil, err
	}
	return x, nil
}

// explain returns what QEMU wrote to its stderr, or how it ended, instead of err.
func (x *examination) explain(err error) error {
	const grace = 100 * time.Millisecond // a connection breaks shortly before its process ends
	x.proc.Wait(nil, grace)
	if text := host.LastLines(host.Tail(x.stderr, maxStderr), 4); text != "" {
		return errors.New(strings.ReplaceAll(text, "\n", "; "))
	}
	if x.proc.Exited() && x.proc.State() != "" {
		return fmt.Errorf("it ended at once: %s", x.proc.State())
	}
	return err
}

// end ends the process.
func (x *examination) end() {
	if x.conn != nil {
		x.conn.Close()
	}
	x.proc.Kill()
	x.stderr.Close()
}

// socketPair returns two connected sockets, the second for another process.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}
