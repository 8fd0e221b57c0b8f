package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// VMPID returns the process id of a VM's QEMU, 0 if it does not run. QEMU holds the lock
// of the VM's pidfile as long as it lives.
func (d *Daemon) VMPID(id string) int {
	d.T.Helper()
	pid, err := d.TryVMPID(id)
	if err != nil {
		d.T.Fatal(err)
	}
	return pid
}

// TryVMPID is VMPID for goroutines of a test, which must not end it.
func (d *Daemon) TryVMPID(id string) (int, error) {
	f, err := os.Open(filepath.Join(d.RuntimeDir, id+".pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return 0, err
	}
	return int(lock.Pid), nil
}

// QEMUs returns the process ids of all QEMUs whose command line names the daemon's
// runtime directory, recorded or not.
func (d *Daemon) QEMUs() []int {
	d.T.Helper()
	return QEMUProcesses(d.T, d.RuntimeDir)
}

// QEMUProcesses returns the process ids of all QEMUs whose command line contains text.
func QEMUProcesses(t testing.TB, text string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(line, []byte(text)) {
			continue
		}
		if !bytes.HasPrefix(line, []byte("qemu-system")) && !bytes.Contains(line, []byte("/qemu-system")) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// KillVMs kills all QEMUs of the daemon and waits for their end.
func (d *Daemon) KillVMs() {
	for _, pid := range d.QEMUs() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	Eventually(d.T, 10*time.Second, "the VMs to end", func() error {
		if left := d.QEMUs(); len(left) != 0 {
			return fmt.Errorf("QEMUs %v run", left)
		}
		return nil
	})
}

// MemoryMiB returns a size of the daemon's memory by its name in /proc/<pid>/status,
// such as VmRSS.
func (d *Daemon) MemoryMiB(name string) int {
	d.T.Helper()
	kib, err := strconv.Atoi(strings.TrimSuffix(ProcStatus(d.T, d.PID(), name), " kB"))
	if err != nil {
		d.T.Fatal(err)
	}
	return kib >> 10
}

// CPUTime returns the user and system time of a process, with a resolution of 10 ms
// (proc(5), stat: utime and stime in clock ticks, 100 a second on every Linux).
func CPUTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	// The second field is the name of the program, which may contain spaces.
	fields := strings.Fields(string(line[strings.LastIndexByte(string(line), ')')+1:]))
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// ProcStatus returns a value of /proc/<pid>/status.
func ProcStatus(t testing.TB, pid int, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, name)
	return ""
}
