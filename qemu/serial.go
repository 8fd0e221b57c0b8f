package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// serialHub is vmand's end of a VM's serial console: the one client of its
// socket, and where all who read and type meet.
//
// QEMU itself appends what the guest prints to the serial log, so nothing is lost
// while no vmand looks, and there is one place that says what was printed: the
// log. Everybody reads that file, each at a position of their own, and what comes
// by the socket only says that there is more. So what is old and what is live
// join by themselves, across restarts of vmand too, and a reader who is slow
// costs no memory. The price is that nothing bounds the log of a guest that
// chatters while no vmand runs; the next one does at once.
//
// The log is bounded by a hole at its beginning, which the file system makes
// while QEMU appends: no byte can slip through, as one would between copying a
// log and emptying it, and an offset in the file means the same for its life.
type serialHub struct {
	state *os.Root
	id    string
	log   *slog.Logger
	// keeper means that who prints does not write the log, and the hub does: QEMUs
	// that an older vmand has started, and dry runs.
	keeper bool
	limits serialLimits

	typing sync.Mutex // held over a write to sock; taken before mu

	mu         sync.Mutex
	file       *os.File // nil if there is no log
	begin, end int64    // of what the log has
	reserved   int64    // up to where the file system holds room for it
	over       error    // what readers get at the end, once there will be no more
	changed    chan struct{}
	sock       net.Conn // nil while there is no connection
	typist     *console // nil if nobody types
	lost       bool     // a complaint about the log was logged
	again      *time.Timer
	pause      time.Duration // until the log is looked at again
}

// serialLimits are constants, but for tests.
type serialLimits struct {
	most, keep int64         // a log that is larger than most is cut down to about keep; bytes
	grain      int64         // logs are cut at multiples of it, which no block of a file system is larger than
	reserve    int64         // room held for a log; bytes
	patience   time.Duration // how long a guest may take to read what is typed
}

var usualLimits = serialLimits{most: 32 << 20, keep: 16 << 20, grain: 1 << 20, reserve: 64 << 10, patience: 5 * time.Second}

// lastWords is how long what an ended QEMU has written is still read.
const lastWords = 100 * time.Millisecond

// maxTyped is how much the kernel holds of what was typed and not taken in; it
// counts twice what it is told (socket(7)).
const maxTyped = 64 << 10

func newSerialHub(state *os.Root, id string, log *slog.Logger, keeper bool) *serialHub {
	h := &serialHub{state: state, id: id, log: log, keeper: keeper, limits: usualLimits}
	h.look()
	return h
}

// keepsSerialLog reports whether a process was told to write the log itself.
func keepsSerialLog(pid int) bool {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return bytes.Contains(b, []byte(serialLogOption))
}

// openSerialLog opens, or makes, the log that a QEMU appends to.
func openSerialLog(state *os.Root, id string) (*os.File, error) {
	return state.OpenFile(vmSerialLog(id), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

// run keeps the connection to a console's socket, and reads, until ctx is done: a
// guest whose console nobody drains stops at its next word. heard, if not nil, is
// called at the first byte.
func (h *serialHub) run(ctx context.Context, path string, heard func()) {
	wait := firstRetry
	for ctx.Err() == nil {
		var dialer net.Dialer
		sock, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			wait = firstRetry
			hangUp := context.AfterFunc(ctx, func() { sock.SetReadDeadline(time.Now().Add(lastWords)) })
			heard = h.drain(sock, heard)
			hangUp()
		} else if ctx.Err() == nil {
			h.log.Debug("serial console connection failed", "error", err)
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

// drain reads from a connection until it ends, whether it can be kept or not,
// and closes it. It returns heard, or nil if that was called.
func (h *serialHub) drain(sock net.Conn, heard func()) func() {
	if s, ok := sock.(*net.UnixConn); ok {
		s.SetWriteBuffer(maxTyped / 2) // else more waits
	}
	h.connect(sock)
	defer h.connect(nil)
	defer sock.Close()
	buf := make([]byte, 4096)
	for {
		n, err := sock.Read(buf)
		if n > 0 {
			if heard != nil {
				heard()
				heard = nil
			}
			h.print(buf[:n])
		}
		if err != nil {
			return heard
		}
	}
}

func (h *serialHub) connect(sock net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sock = sock
	h.tell()
}

// print notes that the guest has printed something. QEMU writes it to the log
// just after it sends it, so there may be more in the log a moment later.
func (h *serialHub) print(p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keeper && h.opened() {
		h.file.Write(p) // what cannot be kept is lost
	}
	h.lookHere()
	if h.keeper {
		return
	}
	h.pause = time.Millisecond
	if h.again == nil {
		h.again = time.AfterFunc(h.pause, h.lookAgain)
	} else {
		h.again.Reset(h.pause)
	}
}

// lookAgain looks at the log after 1, 4, 16, … ms and a last time after a second.
func (h *serialHub) lookAgain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over != nil {
		return
	}
	h.lookHere()
	if h.pause < time.Second {
		h.pause *= 4
		h.again.Reset(h.pause)
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
	return true
}

// complain logs, once, that the log is not what it should be. h.mu is held.
func (h *serialHub) complain(err error) {
	if !h.lost && !errors.Is(err, fs.ErrNotExist) { // or the VM has just been deleted
		h.log.Warn("what the guest prints cannot be kept", "error", err)
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

// close ends the hub, and a connection that is left. Readers get why after the
// last byte.
func (h *serialHub) close(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sock != nil {
		h.sock.Close()
	}
	h.lookHere()
	h.over = why
	if h.again != nil {
		h.again.Stop()
	}
	if h.file != nil {
		h.file.Close()
		h.file = nil
	}
	h.tell()
}

// closeAfter ends the hub of a process that has ended, or that vmand lets go of.
func (h *serialHub) closeAfter(p *process) {
	if p.exited() {
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
