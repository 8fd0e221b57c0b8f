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
	// watchInterval is how often every log is looked at, so that it stays bounded:
	// that is often enough, and a guest that chatters wakes nobody.
	watchInterval = 5 * time.Second
	// blindInterval is how often they are where a log cannot be watched.
	blindInterval = 50 * time.Millisecond
)

// serialWatch tells hubs that their logs have grown. There is one inotify instance
// for all of them, as a user has 128 by default (inotify(7)), and it watches only
// the logs that somebody follows.
type serialWatch struct {
	inotify *os.File // nil if the kernel gives none

	mu    sync.Mutex
	hubs  map[*serialHub]int32 // and the watch of its log, noWatch if there is none
	of    map[int32]*serialHub
	blind chan struct{} // gets something when a log cannot be watched
}

const noWatch = -1

func newSerialWatch(log *slog.Logger) *serialWatch {
	w := &serialWatch{hubs: make(map[*serialHub]int32), of: make(map[int32]*serialHub), blind: make(chan struct{}, 1)}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		log.Warn("consoles are looked at in intervals: the kernel gives no inotify instance", "err", err)
		return w
	}
	w.inotify = os.NewFile(uintptr(fd), "inotify")
	return w
}

// run tells hubs until ctx is done.
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
			w.lookAtAll()
		case <-w.blind:
			interval = blindInterval
			t.Reset(interval)
		case <-ctx.Done():
			return
		}
	}
}

// read reads events until the instance is closed.
func (w *serialWatch) read() {
	buf := make([]byte, 4096)
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return
		}
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			wd, mask, size := int32(binary.NativeEndian.Uint32(p)), binary.NativeEndian.Uint32(p[4:]), binary.NativeEndian.Uint32(p[12:])
			p = p[min(len(p), unix.SizeofInotifyEvent+int(size)):]
			if mask&unix.IN_Q_OVERFLOW != 0 {
				w.lookAtAll()
				continue
			}
			w.mu.Lock()
			h := w.of[wd]
			w.mu.Unlock()
			if h != nil {
				h.look()
			}
		}
	}
}

func (w *serialWatch) lookAtAll() {
	w.mu.Lock()
	hubs := slices.Collect(maps.Keys(w.hubs))
	w.mu.Unlock()
	for _, h := range hubs {
		h.look()
	}
}

// add has a hub look at its log now and then, until remove.
func (w *serialWatch) add(h *serialHub) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.hubs[h]; !known {
		w.hubs[h] = noWatch
	}
}

func (w *serialWatch) remove(h *serialHub) {
	w.unfollow(h)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.hubs, h)
}

// follow has a hub look at its log whenever that grows, until unfollow.
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

func (w *serialWatch) watch(log *os.File) (wd int32, err error) {
	raw, err := w.inotify.SyscallConn()
	if err != nil {
		return 0, err
	}
	path := fmt.Sprintf("/proc/self/fd/%d", log.Fd()) // whatever its name is now
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
