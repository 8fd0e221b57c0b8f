package qemu

import (
	"context"
	"io"
	"net"
	"os"
	"time"
)

// maxSerialLog is the size in bytes at which a serial log becomes serial.log.1,
// in place of the one before.
const maxSerialLog = 16 << 20

// drainConsole is the one client of a VM's serial console. It always reads: a
// guest whose console nobody drains stops at its next word. What it reads goes
// into the serial log, as far as there is room for it.
func (d *Driver) drainConsole(ctx context.Context, s *session) {
	w := &rotatingLog{root: d.state, name: vmSerialLog(s.id), old: vmSerialLogOld(s.id), max: maxSerialLog}
	defer w.Close()
	heard := &firstWrite{Writer: w, tell: s.heard}
	wait := firstRetry
	for ctx.Err() == nil {
		var dialer net.Dialer
		sock, err := dialer.DialContext(ctx, "unix", s.layout.inRun(s.id, serialSuffix))
		if err == nil {
			wait = firstRetry
			hangUp := context.AfterFunc(ctx, func() { sock.SetReadDeadline(time.Now().Add(lastWords)) })
			drain(sock, heard)
			hangUp()
			sock.Close()
		} else if ctx.Err() == nil {
			s.log.Debug("serial console connection failed", "error", err)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		wait = min(2*wait, lastRetry)
	}
}

// firstWrite passes writes on and tells of the first that is not empty.
type firstWrite struct {
	io.Writer
	tell func() // nil once told
}

func (f *firstWrite) Write(p []byte) (int, error) {
	if len(p) > 0 && f.tell != nil {
		f.tell()
		f.tell = nil
	}
	return f.Writer.Write(p)
}

// lastWords is how long what an ended QEMU has written is still read.
const lastWords = 100 * time.Millisecond

// drain copies from r until it ends, and goes on reading when writing fails.
func drain(r io.Reader, w io.Writer) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		w.Write(buf[:n])
		if err != nil {
			return
		}
	}
}

// rotatingLog is a log file that never grows beyond a size. The file is made
// with the first write. A write that fails is lost, and the next may succeed.
type rotatingLog struct {
	root      *os.Root
	name, old string
	max       int64

	f    *os.File
	size int64
}

func (l *rotatingLog) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if l.f == nil {
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		l.Close()
		if err := l.root.Rename(l.name, l.old); err != nil {
			return 0, err
		}
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *rotatingLog) open() error {
	f, err := l.root.OpenFile(l.name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.f, l.size = f, st.Size()
	return nil
}

func (l *rotatingLog) Close() error {
	if l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	return f.Close()
}
