package harness

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// MemoryMiB returns a line of the daemon's status that is a size, in MiB.
func (d *Daemon) MemoryMiB(line string) int {
	d.T.Helper()
	kib, err := strconv.Atoi(strings.TrimSuffix(ProcStatus(d.T, d.PID(), line), " kB"))
	if err != nil {
		d.T.Fatal(err)
	}
	return kib >> 10
}

// CPUTime returns the user and system time that a process has used, with a
// resolution of 10 ms (proc(5), stat: utime and stime in clock ticks, of which
// Linux shows 100 a second on every machine).
func CPUTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	// The second field is the program's name and may have spaces in it.
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

// ProcStatus returns a line of /proc/<pid>/status without its name.
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

// VMPID returns the process that holds the lock of the VM's pidfile, 0 for none:
// QEMU holds it as long as it lives.
func (d *Daemon) VMPID(id string) int {
	d.T.Helper()
	f, err := os.Open(filepath.Join(d.RuntimeDir, id+".pid"))
	if os.IsNotExist(err) {
		return 0
	}
	if err != nil {
		d.T.Fatal(err)
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil {
		d.T.Fatal(err)
	}
	if lock.Type == unix.F_UNLCK {
		return 0
	}
	return int(lock.Pid)
}

// QEMUs returns the pids of all QEMUs whose command line names the daemon's
// directories, whatever the daemon knows of them.
func (d *Daemon) QEMUs() []int {
	d.T.Helper()
	return QEMUProcesses(d.T, d.RuntimeDir)
}

// QEMUProcesses returns the pids of the QEMUs that have an argument containing the text.
func QEMUProcesses(t testing.TB, argument string) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range dirs {
		line, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(line, []byte("qemu-system")) && !bytes.Contains(line, []byte("/qemu-system")) || !bytes.Contains(line, []byte(argument)) {
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

// KillVMs kills every QEMU of the daemon and waits until they are gone.
func (d *Daemon) KillVMs() {
	for _, pid := range d.QEMUs() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	Eventually(d.T, 10*time.Second, "the VMs to end", func() error {
		if left := d.QEMUs(); len(left) != 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}
