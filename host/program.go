package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Program describes a process to start. The process always has its own session (no
// signal to vmand's session reaches it), the working directory /, an environment of only
// PATH and LC_ALL=C, no capability of vmand's and, if vmand runs as root, an empty bounding
// set, no way to gain privileges (PR_SET_NO_NEW_PRIVS) and no descriptors but Files (after [Confine]).
type Program struct {
	Argv    []string   // Argv[0] is the absolute path of the program
	Files   []*os.File // the descriptors 0, 1, 2, … of the process; nil is /dev/null. They stay the caller's
	Account Account    // the user that the process runs as, never root
	Nice    int        // the nice value of the process, if that is higher than vmand's
	Limits  Limits     // the zero value limits nothing

	// EndsWithVmand makes the kernel kill the process when vmand ends, however
	// that happens. Else the process survives vmand.
	EndsWithVmand bool
}

// Start starts the process. Give it files for its output: a pipe to vmand would
// break when vmand ends. Start fails with [ErrNoPrlimit] if limits are set and
// the host has no prlimit.
func (p Program) Start() (*Process, error) {
	if p.Account.UID == 0 {
		return nil, fmt.Errorf("%s would run as root", p.Argv[0])
	}
	argv, err := p.Limits.wrap(p.Argv)
	if err != nil {
		return nil, err
	}
	p.Argv = argv
	if slices.Contains(p.Files, nil) {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		defer null.Close()
		p.Files = slices.Clone(p.Files)
		for i, f := range p.Files {
			if f == nil {
				p.Files[i] = null
			}
		}
	}
	return p.startOnThread()
}

// startOnThread starts the process from a thread of its own.
func (p Program) startOnThread() (*Process, error) {
	type result struct {
		process *Process
		err     error
	}
	started := make(chan result, 1)
	go func() {
		// The process inherits the attributes that are set on this thread. The
		// thread is never unlocked, so it ends with the goroutine.
		runtime.LockOSThread()
		var r result
		r.process, r.err = p.startHere()
		started <- r
		if p.EndsWithVmand && r.err == nil {
			// The kernel kills the process when the thread that started it ends
			// (PR_SET_PDEATHSIG), so the thread has to outlive it.
			select {
			case <-r.process.done:
			case <-r.process.released:
			}
		}
	}()
	r := <-started
	return r.process, r.err
}

// startHere starts the process from the calling thread, which is of no other use
// afterwards.
func (p Program) startHere() (*Process, error) {
	if err := dropPrivileges(p.Nice); err != nil {
		return nil, err
	}
	pidfd := -1
	attr := &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd, Credential: p.Account.credential()}
	if p.EndsWithVmand {
		attr.Pdeathsig = syscall.SIGKILL
	}
	child, err := os.StartProcess(p.Argv[0], p.Argv, &os.ProcAttr{
		Dir:   "/",
		Files: p.Files,
		Env:   []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		Sys:   attr,
	})
	if err != nil {
		return nil, err
	}
	if pidfd < 0 {
		child.Kill()
		child.Wait()
		return nil, errors.New("the kernel returns no pidfd (vmand needs Linux 5.4)")
	}
	return watch(child.Pid, pidfd, child)
}

// dropPrivileges takes from the calling thread, for the process that it will
// start, the ways to gain privileges, the capabilities and the priority of vmand.
func dropPrivileges(nice int) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	// A vmand that is not root may have ambient capabilities (for the network),
	// which a process would inherit. Kernels before 4.3 have none: EINVAL.
	err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := dropBoundingSet(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if own, err := niceOf(0); err == nil && own < nice {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
			return fmt.Errorf("set the nice value %d: %w", nice, err)
		}
	}
	return nil
}

// dropBoundingSet removes all capabilities from the bounding set of the calling thread, so
// that no process it starts can have one, whatever else fails. It takes 82 system calls,
// 0.08 ms. The thread's own capabilities stay, as the start as another account needs them.
// Only a process with CAP_SETPCAP can do that, so of a vmand that is not root the set stays,
// and no_new_privs alone keeps a program from gaining a capability.
func dropBoundingSet() error {
	for c := uintptr(0); ; c++ {
		set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // c is above the last capability of this kernel
		}
		if err != nil {
			return err
		}
		if set == 0 {
			continue
		}
		err = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EPERM) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// LookPath returns the absolute path of a program: a path, or a name to look up
// in PATH.
func LookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("it is not installed")
	}
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
