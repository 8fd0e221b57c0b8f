package host

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// killTimeout is how long a process may take to end after SIGKILL: it can wait
// for a disk that does not answer.
const killTimeout = 10 * time.Second

// ErrNoProcess means that there is no process of a pid.
var ErrNoProcess = errors.New("no such process")

// A Process is a process that this vmand started ([Program.Start]) or one that it
// found ([OpenProcess]). It is held by a pidfd, which never names another process
// when the kernel reuses the pid. Its methods are safe for concurrent use.
//
// A process that ends frees what is held of it; [Process.Release] is for one that
// is to survive.
type Process struct {
	PID int

	pidfd *os.File
	child *os.Process // nil if another process started it

	done        chan struct{} // closed when the process has ended and is reaped
	state       string        // how it ended; valid once done is closed
	released    chan struct{} // closed by Release
	releaseOnce sync.Once
}

// OpenProcess returns the process with a pid, which another process started, or
// ErrNoProcess. The pid may have been reused before the call: the caller checks
// afterwards that the process is the one it looks for.
func OpenProcess(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrNoProcess
	}
	if err != nil {
		return nil, fmt.Errorf("open pidfd of process %d: %w", pid, err)
	}
	return watch(pid, fd, nil)
}

// watch returns the process of a pidfd and starts the goroutine that waits for
// its end. The pidfd becomes the process's.
func watch(pid, fd int, child *os.Process) (*Process, error) {
	if err := unix.SetNonblock(fd, true); err != nil { // so that Go's poller takes it
		unix.Close(fd)
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	p := &Process{
		PID:      pid,
		pidfd:    os.NewFile(uintptr(fd), "pidfd"),
		child:    child,
		done:     make(chan struct{}),
		released: make(chan struct{}),
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		p.pidfd.Close()
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	go func() {
		// No thread blocks: the poller reports when the pidfd becomes readable.
		if err := raw.Read(hasEnded); err != nil {
			return // released
		}
		if child != nil {
			if st, err := child.Wait(); err == nil {
				p.state = st.String()
			}
		}
		close(p.done)
		p.pidfd.Close()
	}()
	return p, nil
}

// hasEnded reports whether the process of a pidfd has ended.
func hasEnded(fd uintptr) bool {
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// IsChild reports whether this vmand started the process.
func (p *Process) IsChild() bool { return p.child != nil }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exited reports whether the process has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// State returns how the process ended, such as "exit status 1". It is empty until
// the process has ended, and for a process that this vmand did not start.
func (p *Process) State() string {
	if !p.Exited() {
		return ""
	}
	return p.state
}

// Signal sends a signal to the process. It returns nil if the process has ended.
func (p *Process) Signal(sig unix.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if p.Exited() || errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return errors.Join(err, sent)
}

// Wait waits for the end of the process, for at most limit or until stop is
// closed, and reports whether the process has ended.
func (p *Process) Wait(stop <-chan struct{}, limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
	case <-stop:
	}
	return p.Exited()
}

// Release stops watching the process without ending it. A process that ends with
// vmand is killed. After Release, Done is never closed, and a child that ends is
// a zombie until vmand ends.
func (p *Process) Release() {
	p.releaseOnce.Do(func() {
		p.pidfd.Close()
		close(p.released)
	})
}

// Kill kills the process, waits up to 10 s for its end, and releases it.
func (p *Process) Kill() {
	_ = p.Signal(unix.SIGKILL)
	p.Wait(nil, killTimeout)
	p.Release()
}
