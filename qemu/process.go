package qemu

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a process that was started by this vmand, or by one before it.
// It is held by a pidfd, which never means another process, however often its
// number is used again.
type process struct {
	pid   int
	pidfd *os.File
	child *os.Process   // nil if a vmand before this one started it
	done  chan struct{} // closed when the process has ended (and is reaped)
	gone  chan struct{} // closed when it is released
	state string        // how it ended, such as "exit status 1"; valid once done is closed, empty if unknown
}

// start launches the program argv[0] as a. The process gets files as its
// descriptors 0, 1, 2, … and no other, an empty environment but for the locale,
// and none of vmand's privileges, its priority among them. It outlives vmand.
func start(a account, argv []string, files []*os.File) (*process, error) {
	return startOn(a, argv, files, false)
}

// startTied is start of a process that the kernel ends with vmand.
func startTied(a account, argv []string, files []*os.File) (*process, error) {
	return startOn(a, argv, files, true)
}

func startOn(a account, argv []string, files []*os.File, tied bool) (*process, error) {
	type result struct {
		p   *process
		err error
	}
	started := make(chan result, 1)
	go func() {
		// What is set on this thread is inherited by the process. The thread is
		// never unlocked, so it ends with the goroutine.
		runtime.LockOSThread()
		var r result
		r.p, r.err = startHere(a, argv, files, tied)
		started <- r
		if tied && r.err == nil { // the end of its parent's thread is what ends it
			select {
			case <-r.p.done:
			case <-r.p.gone:
			}
		}
	}()
	r := <-started
	return r.p, r.err
}

func startHere(a account, argv []string, files []*os.File, tied bool) (*process, error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("give up new privileges: %w", err)
	}
	// A vmand that is not root may hold capabilities (for the network) that
	// would be inherited. Kernels before 4.3 do not have them.
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("drop capabilities: %w", err)
	}
	if raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil && 20-raw < a.nice { // of this thread, getpriority(2)
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, a.nice); err != nil {
			return nil, fmt.Errorf("give up priority: %w", err)
		}
	}
	fd := -1
	attr := a.sysProcAttr()
	attr.PidFD = &fd
	if tied {
		attr.Pdeathsig = syscall.SIGKILL
	}
	child, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir: "/", Files: files, Sys: attr,
		Env: []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
	})
	if err != nil {
		return nil, err
	}
	if fd < 0 {
		child.Kill()
		child.Wait()
		return nil, errors.New("the kernel gives no pidfd (vmand needs Linux 5.4)")
	}
	return watch(child.Pid, fd, child)
}

func watch(pid, fd int, child *os.Process) (*process, error) {
	if err := unix.SetNonblock(fd, true); err != nil { // so that Go's poller takes it
		unix.Close(fd)
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	p := &process{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd"), child: child, done: make(chan struct{}), gone: make(chan struct{})}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	go func() {
		// No thread waits: the poller tells when the pidfd becomes readable.
		if err := raw.Read(hasEnded); err != nil {
			return // released
		}
		if child != nil {
			if st, err := child.Wait(); err == nil {
				p.state = st.String()
			}
		}
		close(p.done)
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

// exited reports whether the process has ended.
func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal sends sig, to this process or to none.
func (p *process) signal(sig unix.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

// waitExit waits for the end of the process, for at most limit or until stop is
// closed, and reports whether it has ended.
func (p *process) waitExit(stop <-chan struct{}, limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
	case <-stop:
	}
	return p.exited()
}

// release lets go of a process without ending it.
func (p *process) release() {
	p.pidfd.Close()
	close(p.gone)
}

// kill ends a process of ours that is of no further use and waits for its end.
func (p *process) kill() {
	p.signal(unix.SIGKILL)
	p.waitExit(nil, 10*time.Second) // SIGKILL can wait for a disk that does not answer
	p.release()
}
