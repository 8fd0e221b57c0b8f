package qemu

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// watchInterval is how often every log is checked, to bound it. A guest with much
	// output wakes vmand no more often than that.
	watchInterval = 5 * time.Second
	// blindInterval is how often logs are checked that cannot be watched.
	blindInterval = 50 * time.Millisecond
)

// serialWatch makes hubs read their logs when those have grown. There is one
// inotify instance for all of them, because a user has 128 by default (inotify(7)),
// and it watches only the logs that have followers.
type serialWatch struct {
	inotify *os.File // nil if the kernel has no instance left

	mu    sync.Mutex
	hubs  map[*serialHub]int32 // the watch of each hub's log, noWatch if there is none
	of    map[int32]*serialHub // the hub of each watch
	blind chan struct{}        // holds one: a log cannot be watched
}

// noWatch stands for a log that is not watched.
const noWatch = -1

// newSerialWatch returns a watch that does nothing before run.
func newSerialWatch(log *slog.Logger) *serialWatch {
	w := &serialWatch{
		hubs:  make(map[*serialHub]int32),
		of:    make(map[int32]*serialHub),
		blind: make(chan struct{}, 1),
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		log.Warn("console logs are polled: the kernel has no inotify instance left", "err", err)
		return w
	}
	w.inotify = os.NewFile(uintptr(fd), "inotify")
	return w
}

// run makes hubs read their logs until ctx is done.
func (w *serialWatch) run(ctx context.Context) {
	var reading sync.WaitGroup
	if w.inotify != nil {
		reading.Go(w.read)
		defer reading.Wait()
		defer w.inotify.Close()
	}
	interval := watchInterval
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			w.updateAll()
		case <-w.blind:
			interval = blindInterval
			t.Reset(interval)
		case <-ctx.Done():
			return
		}
	}
}

// read reads events until the inotify instance is closed.
func (w *serialWatch) read() {
	buf := make([]byte, 4096)
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return
		}
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(p))
			mask := binary.NativeEndian.Uint32(p[4:])
			size := binary.NativeEndian.Uint32(p[12:]) // of the name that follows
			p = p[min(len(p), unix.SizeofInotifyEvent+int(size)):]
			w.handle(wd, mask)
		}
	}
}

// handle makes the hub of a watch, or all hubs if events were lost, read its log.
func (w *serialWatch) handle(wd int32, mask uint32) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		w.updateAll()
		return
	}
	w.mu.Lock()
	h := w.of[wd]
	w.mu.Unlock()
	if h != nil {
		h.update()
	}
}

// updateAll makes every hub read its log.
func (w *serialWatch) updateAll() {
	w.mu.Lock()
	hubs := slices.Collect(maps.Keys(w.hubs))
	w.mu.Unlock()
	for _, h := range hubs {
		h.update()
	}
}

// add makes a hub read its log periodically, until remove.
func (w *serialWatch) add(h *serialHub) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.hubs[h]; !known {
		w.hubs[h] = noWatch
	}
}

// remove undoes add and follow.
func (w *serialWatch) remove(h *serialHub) {
	w.unfollow(h)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.hubs, h)
}

// follow makes a hub read its log whenever it grows, until unfollow.
func (w *serialWatch) follow(h *serialHub, log *os.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.inotify != nil {
		wd, err := w.watch(log)
		if err == nil {
			w.hubs[h], w.of[wd] = wd, h
			return
		}
		h.log.Debug("a console's log cannot be watched", "err", err)
	}
	select {
	case w.blind <- struct{}{}:
	default:
	}
}

// watch adds a watch of a log to the inotify instance.
func (w *serialWatch) watch(log *os.File) (wd int32, err error) {
	raw, err := w.inotify.SyscallConn()
	if err != nil {
		return 0, err
	}
	path := fmt.Sprintf("/proc/self/fd/%d", log.Fd()) // valid even if the file was renamed
	err2 := raw.Control(func(fd uintptr) {
		var n int
		n, err = unix.InotifyAddWatch(int(fd), path, unix.IN_MODIFY)
		wd = int32(n)
	})
	if err2 != nil {
		return 0, err2
	}
	return wd, err
}

// unfollow undoes follow.
func (w *serialWatch) unfollow(h *serialHub) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, known := w.hubs[h]
	if !known || wd == noWatch {
		return
	}
	w.hubs[h] = noWatch
	delete(w.of, wd)
	if raw, err := w.inotify.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { unix.InotifyRmWatch(int(fd), uint32(wd)) })
	}
}
