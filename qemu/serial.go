package qemu

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/vm"
)

// serialHub is where all who read a VM's serial console, and who types on it, meet.
//
// QEMU itself appends what the guest prints to the serial log, so nothing is lost
// while no vmand looks, and there is one place that says what was printed: the
// log. Everybody reads that file, each at a position of their own; inotify says
// that there is more. So what is old and what is live join by themselves, across
// restarts of vmand too, a reader who is slow costs no memory, and nothing that
// vmand does or does not do can hold up a guest. The price is that nothing bounds
// the log of a guest that chatters while no vmand runs; the next one does at once.
//
// What is typed goes through a FIFO. A socket would not do: QEMU 7.2 writes a byte
// to the log, and once more each time it tries again, when a socket's buffer is
// full (qemu_chr_write_buffer in chardev/char.c), and that happens after some 300
// bytes that are printed one by one.
//
// The log is bounded by a hole at its beginning, which the file system makes
// while QEMU appends: no byte can slip through, as one would between copying a
// log and emptying it, and an offset in the file means the same for its life.
type serialHub struct {
	state  *os.Root
	id     string
	log    *slog.Logger
	watch  *serialWatch         // nil if print is told what is printed
	dial   func() (line, error) // to the guest
	limits serialLimits

	typing sync.Mutex // held over a write to line; taken before mu

	mu         sync.Mutex
	file       *os.File // nil if there is no log
	begin, end int64    // of what the log has
	reserved   int64    // up to where the file system holds room for it
	over       error    // what readers get at the end, once there will be no more
	changed    chan struct{}
	heard      func()   // to be called when more is printed; nil once it was, or if nobody wants to know
	followers  int      // how many want to know at once that there is more
	line       line     // nil if it is not open
	typist     *console // nil if nobody types
	lost       bool     // a complaint about the log was logged
}

// A line leads to a guest.
type line interface {
	io.WriteCloser
	SetWriteDeadline(time.Time) error
}

// serialLimits are constants, but for tests.
type serialLimits struct {
	most, keep int64         // a log that is larger than most is cut down to about keep; bytes
	grain      int64         // logs are cut at multiples of it, which no block of a file system is larger than
	reserve    int64         // room held for a log; bytes
	patience   time.Duration // how long a guest may take to read what is typed
}

var usualLimits = serialLimits{most: 32 << 20, keep: 16 << 20, grain: 1 << 20, reserve: 64 << 10, patience: 5 * time.Second}

// openHub makes the hub of a VM's console. heard, if not nil, is called once, when
// more is printed than the log has.
func (d *Driver) openHub(id string, log *slog.Logger, heard func()) *serialHub {
	fifo := d.layout.inRun(id, consoleInSuffix)
	return newSerialHub(&serialHub{state: d.state, id: id, log: log, watch: d.watch, heard: heard, dial: func() (line, error) {
		return os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0)
	}})
}

// newSerialHub opens a hub that has state, id, log and what else it is to have.
func newSerialHub(h *serialHub) *serialHub {
	h.limits = usualLimits
	h.mu.Lock()
	defer h.mu.Unlock()
	heard := h.heard
	h.heard = nil
	h.lookHere()
	if heard != nil { // of what is printed from now on
		h.heard = heard
		h.follow()
	}
	if h.watch != nil {
		h.watch.add(h)
	}
	return h
}

// makeConsole makes what QEMU's end of a console is: two files, of which it reads
// one and writes the other. What the guest prints gets into the log on its way.
func (l layout) makeConsole(id string, a host.Account) error {
	in, out := l.inRun(id, consoleInSuffix), l.inRun(id, consoleOutSuffix)
	for _, name := range []string{in, out} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := unix.Mkfifo(in, 0o600); err != nil {
		return fmt.Errorf("make %s: %w", in, err)
	}
	f, err := os.OpenFile(in, os.O_RDWR, 0) // does not wait for another
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.Own(f); err != nil {
		return err
	}
	return os.Symlink(os.DevNull, out)
}

// openSerialLog opens, or makes, the log that a QEMU appends to.
func openSerialLog(state *os.Root, id string) (*os.File, error) {
	return state.OpenFile(vmSerialLog(id), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

// print appends to the log in QEMU's place.
func (h *serialHub) print(p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.opened() {
		h.file.Write(p) // what cannot be kept is lost
		h.lookHere()
	}
}

// follow has the log watched, until as many have called unfollow. h.mu is held.
func (h *serialHub) follow() {
	h.followers++
	if h.followers == 1 && h.file != nil && h.watch != nil {
		h.watch.follow(h, h.file)
	}
}

func (h *serialHub) unfollow() {
	h.followers--
	if h.followers == 0 && h.watch != nil {
		h.watch.unfollow(h)
	}
}

func (h *serialHub) look() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lookHere()
}

// lookHere finds out how far the log goes, tells who waits for more, and bounds
// it. h.mu is held.
func (h *serialHub) lookHere() {
	if !h.opened() {
		return
	}
	end, err := fileSize(h.file)
	if err != nil || end == h.end {
		return
	}
	if end < h.end { // somebody has emptied it
		h.begin, h.reserved = 0, 0
	}
	h.end = end
	h.tell()
	if h.heard != nil {
		h.heard()
		h.heard = nil
		h.unfollow()
	}
	if h.end-h.begin > h.limits.most {
		h.trim(h.limits.keep)
	}
	h.hold()
}

// opened opens the log if that has not been done. h.mu is held.
func (h *serialHub) opened() bool {
	if h.file != nil {
		return true
	}
	if h.over != nil {
		return false
	}
	f, err := h.state.OpenFile(vmSerialLog(h.id), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		h.complain(err)
		return false
	}
	h.file, h.begin = f, firstData(f)
	if h.followers > 0 && h.watch != nil {
		h.watch.follow(h, f)
	}
	return true
}

// complain logs, once, that the log is not what it should be. h.mu is held.
func (h *serialHub) complain(err error) {
	if !h.lost && !errors.Is(err, fs.ErrNotExist) { // or the VM has just been deleted
		h.log.Warn("what the guest prints cannot be kept", "err", err)
		h.lost = true
	}
}

// trim leaves about the last keep bytes of the log, and a hole in the place of
// what was before. On a file system that makes no holes (FAT, NFS 3) it empties
// the log, and offsets begin anew. h.mu is held.
func (h *serialHub) trim(keep int64) {
	cut := (h.end - keep) / h.limits.grain * h.limits.grain
	if cut <= h.begin {
		return
	}
	from := h.begin
	h.begin = cut // who reads looks here after it has read, so no hole is taken for a word of the guest's
	err := unix.Fallocate(int(h.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, cut-from)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		h.begin, h.end, h.reserved = 0, 0, 0
		err = h.file.Truncate(0)
	}
	if err != nil {
		h.complain(err)
	}
}

// hold keeps some room ready for what comes next: on a full disk, which is when
// somebody will look at the console, it is taken from the log's oldest part.
// h.mu is held.
func (h *serialHub) hold() {
	if h.reserved-h.end > h.limits.reserve/2 {
		return
	}
	room := func() error {
		return unix.Fallocate(int(h.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, h.end, h.limits.reserve)
	}
	err := room()
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		h.trim(min(h.limits.keep, (h.end-h.begin)/2))
		err = room()
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		err = nil // it does without
	}
	if err != nil {
		h.complain(err)
		return
	}
	h.reserved = h.end + h.limits.reserve
}

// tell wakes who waits for something to change. h.mu is held.
func (h *serialHub) tell() {
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// wait returns a channel that is closed when something has changed. h.mu is held.
func (h *serialHub) wait() <-chan struct{} {
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	return h.changed
}

// errEnding is what readers get when vmand ends and the VM does not.
var errEnding = fault(vm.CodeUnavailable, nil, "vmand is ending")

// close ends the hub. Readers get why after the last byte.
func (h *serialHub) close(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lookHere()
	h.over = why
	if h.watch != nil {
		h.watch.remove(h)
	}
	h.interrupt()
	h.hangUp()
	if h.file != nil {
		h.file.Close()
		h.file = nil
	}
	h.tell()
}

// hangUp closes the line. h.mu is held.
func (h *serialHub) hangUp() {
	if h.line != nil {
		h.line.Close()
		h.line = nil
	}
}

// closeAfter ends the hub of a process that has ended, or that vmand lets go of.
func (h *serialHub) closeAfter(p *host.Process) {
	if p.Exited() {
		h.close(io.EOF)
		return
	}
	h.close(errEnding)
}

// bounds returns what the log has: from begin to before end.
func (h *serialHub) bounds() (begin, end int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.begin, h.end
}

func fileSize(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// firstData returns where a log begins after the hole at its beginning.
func firstData(f *os.File) int64 {
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // nothing is there
		at, _ = fileSize(f)
	} else if err != nil {
		return 0 // holes are not made here either
	}
	return at
}
