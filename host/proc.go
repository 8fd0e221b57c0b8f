package host

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// BootID returns a text that changes at each boot of the host: the UUID of the kernel
// (random(4)). If the host is a container, the kernel has booted long before it, and the start
// of its first process is added. A container may show a UUID of its own, but a service with a
// mount of /proc of its own (ProtectProc=) does not see it.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	stat, err := os.ReadFile("/proc/1/stat")
	if err != nil {
		return "", err
	}
	return bootID(string(id), string(stat)), nil
}

// initTicks is the time of a kernel until its first process, in clock ticks of 10 ms (proc(5),
// starttime), above which the process is that of a container. The kernel makes its own before
// it looks for devices: after 0.25 s in a virtual machine (measured).
const initTicks = 1000

// bootID returns the [BootID] given the contents of boot_id and of /proc/1/stat.
func bootID(id, stat string) string {
	id = strings.TrimSpace(id)
	_, rest, _ := strings.Cut(stat[strings.LastIndexByte(stat, ')')+1:], " ") // the name may contain anything
	fields := strings.Fields(rest)
	if len(fields) < 20 { // the first is the third of proc(5), starttime is the 22nd
		return id
	}
	if ticks, err := strconv.ParseUint(fields[19], 10, 64); err == nil && ticks > initTicks {
		id += "+" + fields[19]
	}
	return id
}

// procDir returns the directory of a process in /proc.
func procDir(pid int) string { return filepath.Join("/proc", strconv.Itoa(pid)) }

// Processes returns the pids of all processes that /proc shows.
func Processes() []int {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var pids []int
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// ProcessesOf returns the pids of the processes of a user.
func ProcessesOf(uid int) []int {
	return slices.DeleteFunc(Processes(), func(pid int) bool { return OwnerOf(pid) != uid })
}

// OwnerOf returns the user of a process, or -1 if the process has ended. root owns the
// directory in /proc of a process that may not be examined (PR_SET_DUMPABLE), so its status
// decides.
func OwnerOf(pid int) int {
	st, err := os.Stat(procDir(pid))
	if err != nil {
		return -1
	}
	if uid := int(st.Sys().(*syscall.Stat_t).Uid); uid != 0 {
		return uid
	}
	status, _ := os.ReadFile(procDir(pid) + "/status")
	_, rest, _ := strings.Cut(string(status), "\nUid:\t")
	first, _, _ := strings.Cut(rest, "\t")
	uid, err := strconv.Atoi(first)
	if err != nil {
		return -1
	}
	return uid
}

// Arguments returns the command line of a process, nil if the process has ended.
func Arguments(pid int) []string {
	text, err := os.ReadFile(procDir(pid) + "/cmdline")
	if err != nil || len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// ArgumentAfter returns the argument that follows an option, or "".
func ArgumentAfter(arguments []string, option string) string {
	at := slices.Index(arguments, option) + 1
	if at == 0 || at == len(arguments) {
		return ""
	}
	return arguments[at]
}

// OpenFiles returns the targets of the descriptors of a process, such as /dev/null or
// socket:[1234]. Its error is of class [io/fs.ErrPermission] if the process may not be
// examined.
func OpenFiles(pid int) ([]string, error) {
	dir := procDir(pid) + "/fd"
	fds, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil {
			targets = append(targets, target)
		}
	}
	return targets, nil
}

// SocketInode returns the inode of a socket that [OpenFiles] names. It is not ok for another
// file.
func SocketInode(target string) (inode uint32, ok bool) {
	number, isSocket := strings.CutPrefix(target, "socket:[")
	n, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32)
	return uint32(n), isSocket && err == nil
}
