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

// serialHub connects the readers and the one writer of a VM's serial console.
//
// QEMU itself appends the guest's output to the serial log. So no output is lost
// while vmand does not run, and the log is the only record of it. Every reader reads
// that file at an offset of its own, and inotify reports growth. Old and live output
// therefore join without a gap, also across restarts of vmand; a slow reader costs no
// memory; and vmand can never block a guest. The price: a log grows without bound
// while no vmand runs. The next vmand cuts it at once.
//
// Input goes through a FIFO. A socket does not work: when its buffer is full, which
// happens after about 300 bytes printed one by one, QEMU 7.2 writes a byte to the log
// once more each time it retries (qemu_chr_write_buffer in chardev/char.c).
//
// A hole at the beginning bounds the log. The file system makes it while QEMU
// appends, so no byte is lost as between a copy and a truncation, and an offset means
// the same for the life of the file.
type serialHub struct {
	state  *os.Root
	id     string
	log    *slog.Logger
	watch  *serialWatch         // nil if print reports the output
	dial   func() (line, error) // to the guest
	limits serialLimits

	typing sync.Mutex // held over a write to line; taken before mu

	mu         sync.Mutex
	file       *os.File      // nil if there is no log
	begin, end int64         // the range of the log that is kept
	reserved   int64         // offset up to which blocks are allocated
	over       error         // readers get it after the last byte; nil while there can be more
	changed    chan struct{} // closed at the next change
	heard      func()        // called once, at the next output; may be nil
	followers  int           // readers that need to know of output at once
	line       line          // nil if it is not open
	typist     *console      // the connection that types; nil if there is none
	lost       bool          // a failure of the log was logged
}

// A line carries input to a guest.
type line interface {
	io.WriteCloser
	SetWriteDeadline(time.Time) error
}

// serialLimits are variable for tests only.
type serialLimits struct {
	most, keep int64         // bytes: a log larger than most is cut to about keep
	grain      int64         // bytes: logs are cut at multiples of it, a multiple of any file system's block
	reserve    int64         // bytes allocated ahead of the end
	patience   time.Duration // for the guest to read its input
}

var usualLimits = serialLimits{
	most:     32 << 20,
	keep:     16 << 20,
	grain:    1 << 20,
	reserve:  64 << 10,
	patience: 5 * time.Second,
}

// openHub returns the hub of a VM's console. heard, if not nil, is called once, at
// the first output after the present end of the log.
func (d *Driver) openHub(id string, log *slog.Logger, heard func()) *serialHub {
	fifo := d.layout.inRun(id, consoleInSuffix)
	return newSerialHub(&serialHub{
		state: d.state,
		id:    id,
		log:   log,
		watch: d.watch,
		heard: heard,
		dial: func() (line, error) {
			return os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0)
		},
	})
}

// newSerialHub starts a hub. Its caller has set state, id, log and, if wanted, watch,
// heard and dial.
func newSerialHub(h *serialHub) *serialHub {
	h.limits = usualLimits
	h.mu.Lock()
	defer h.mu.Unlock()
	heard := h.heard
	h.heard = nil
	h.lookHere()
	if heard != nil { // only for later output
		h.heard = heard
		h.follow()
	}
	if h.watch != nil {
		h.watch.add(h)
	}
	return h
}

// makeConsole makes the two files that QEMU opens as its end of a console: a FIFO
// that it reads, and a link to /dev/null that it writes. The log gets the output too.
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
	f, err := os.OpenFile(in, os.O_RDWR, 0) // does not wait for another process
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.Own(f); err != nil {
		return err
	}
	return os.Symlink(os.DevNull, out)
}

// openSerialLog opens or creates the log that a QEMU appends to.
func openSerialLog(state *os.Root, id string) (*os.File, error) {
	return state.OpenFile(vmSerialLog(id), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

// print appends to the log instead of QEMU, in a dry run.
func (h *serialHub) print(p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.opened() {
		h.file.Write(p) // best effort
		h.lookHere()
	}
}

// follow has the log watched until unfollow was called as often. h.mu must be held.
func (h *serialHub) follow() {
	h.followers++
	if h.followers == 1 && h.file != nil && h.watch != nil {
		h.watch.follow(h, h.file)
	}
}

// unfollow undoes a follow. h.mu must be held.
func (h *serialHub) unfollow() {
	h.followers--
	if h.followers == 0 && h.watch != nil {
		h.watch.unfollow(h)
	}
}

// update reads the log after it has grown.
func (h *serialHub) update() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lookHere()
}

// lookHere reads the length of the log, wakes readers if it has grown, and bounds it.
// h.mu must be held.
func (h *serialHub) lookHere() {
	if !h.opened() {
		return
	}
	end, err := fileSize(h.file)
	if err != nil || end == h.end {
		return
	}
	if end < h.end { // it was truncated
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

// opened opens the log, unless it is open, and reports whether it is. h.mu must be
// held.
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

// complain logs the first failure of the log. h.mu must be held.
func (h *serialHub) complain(err error) {
	if !h.lost && !errors.Is(err, fs.ErrNotExist) { // not if the VM was just deleted
		h.log.Warn("cannot keep the output of the console", "err", err)
		h.lost = true
	}
}

// trim keeps about the last keep bytes of the log and punches a hole before them. On
// a file system without holes (FAT, NFS 3) it empties the log, and offsets begin at 0
// again. h.mu must be held.
func (h *serialHub) trim(keep int64) {
	cut := (h.end - keep) / h.limits.grain * h.limits.grain
	if cut <= h.begin {
		return
	}
	from := h.begin
	h.begin = cut // first: a reader checks it after it has read, so none returns bytes of the hole
	err := unix.Fallocate(int(h.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, cut-from)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		h.begin, h.end, h.reserved = 0, 0, 0
		err = h.file.Truncate(0)
	}
	if err != nil {
		h.complain(err)
	}
}

// hold allocates blocks for the next output. On a full disk, when the console is
// needed most, it takes them from the oldest part of the log. h.mu must be held.
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
		err = nil // the file system cannot allocate ahead
	}
	if err != nil {
		h.complain(err)
		return
	}
	h.reserved = h.end + h.limits.reserve
}

// tell wakes all waiting readers. h.mu must be held.
func (h *serialHub) tell() {
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// wait returns a channel that is closed at the next change. h.mu must be held.
func (h *serialHub) wait() <-chan struct{} {
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	return h.changed
}

// errEnding is the end of a console when vmand stops and the VM does not.
var errEnding = fault(vm.CodeUnavailable, nil, "vmand is stopping")

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

// hangUp closes the line. h.mu must be held.
func (h *serialHub) hangUp() {
	if h.line != nil {
		h.line.Close()
		h.line = nil
	}
}

// closeAfter ends the hub of a process that ended or is released.
func (h *serialHub) closeAfter(p *host.Process) {
	if p.Exited() {
		h.close(io.EOF)
		return
	}
	h.close(errEnding)
}

// bounds returns the range of the log that is kept: from begin to before end.
func (h *serialHub) bounds() (begin, end int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.begin, h.end
}

// fileSize returns the size of a file in bytes.
func fileSize(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// firstData returns the offset of the first data of a log, after its hole.
func firstData(f *os.File) int64 {
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // no data
		at, _ = fileSize(f)
	} else if err != nil {
		return 0 // the file system has no holes
	}
	return at
}
