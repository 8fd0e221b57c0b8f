package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

const (
	// reserveSuffix is what the file of a reserve is called after its database.
	reserveSuffix = ".reserve"
	// reserveSlice is how many bytes a reserve gives back at a time: room for
	// any one change. Others write to the file system too, and are the first to
	// take what is free; they get no more than this of it.
	reserveSlice = 1 << 20
	// reserveRoom is how many times its size has to be free for a reserve to be
	// made, so that it never is what fills the file system.
	reserveRoom = 4
	// reserveInterval is how long not to look for that room again.
	reserveInterval = time.Minute
	// reserveFailed is how long not to try again what the file system refused.
	reserveFailed = time.Hour
)

// A reserve is a file beside the database that does nothing but take up room,
// and gives it back when there is no other: what ends a VM or deletes a disk, and
// so frees space, has to be recorded first. A nil reserve has nothing to give.
type reserve struct {
	path string
	size int64 // bytes, when it is whole
	log  *slog.Logger

	mu    sync.Mutex
	whole bool
	next  time.Time // when to look for room again
}

func newReserve(o Options) *reserve {
	if o.Reserve <= 0 {
		return nil
	}
	return &reserve{path: o.Path + reserveSuffix, size: o.Reserve, log: o.Log}
}

// retry runs f, and again for as long as it fails for want of room and the
// reserve had some to give back.
func (r *reserve) retry(f func() error) error {
	for {
		err := f()
		if err == nil {
			r.fill()
		}
		if !noRoom(err) || !r.giveBack() {
			return err
		}
	}
}

// noRoom reports whether err says that the file system is full.
func noRoom(err error) bool {
	var f *vm.Fault
	return errors.As(err, &f) && f.Code == vm.CodeInsufficientStorage
}

// giveBack frees a slice of the reserve. It reports whether there was one.
func (r *reserve) giveBack() bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.whole, r.next = false, time.Now().Add(reserveInterval)
	left, err := r.cut()
	if errors.Is(err, fs.ErrNotExist) {
		return false // used up
	}
	if err != nil {
		r.log.Warn("reserve of the database not given back", "err", err)
		return false
	}
	r.log.Warn("no space left for the database, using its reserve", "file", r.path, "bytes_left", left)
	return true
}

// cut takes a slice off the end of the file, or removes it with the last one.
func (r *reserve) cut() (left int64, err error) {
	info, err := os.Lstat(r.path)
	if err != nil {
		return 0, err
	}
	if left = info.Size() - reserveSlice; left <= 0 || !info.Mode().IsRegular() {
		return 0, os.Remove(r.path)
	}
	return left, os.Truncate(r.path, left)
}

// fill makes the reserve whole if it is not and there is room enough. That it
// cannot be is no reason to fail: it is only lacking when it is needed.
func (r *reserve) fill() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.whole || time.Now().Before(r.next) {
		return
	}
	r.next = time.Now().Add(reserveInterval)
	var err error
	if r.whole, err = r.allocate(); err != nil {
		r.next = time.Now().Add(reserveFailed)
		r.log.Warn("no reserve for the database", "err", err)
	}
}

// allocate gives the file all its blocks if there is room for them, and reports
// whether it has them.
func (r *reserve) allocate() (bool, error) {
	var file unix.Stat_t
	if err := unix.Lstat(r.path, &file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("look at %s: %w", r.path, err)
	}
	// A copy of the file may have the size and no blocks, and so keep nothing.
	const block = 512 // of st_blocks, whatever the file system's are (inode(7))
	if file.Size >= r.size && file.Blocks*block >= r.size {
		return true, nil
	}
	var system unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.path), &system); err != nil {
		return false, fmt.Errorf("ask for the room for %s: %w", r.path, err)
	}
	if int64(system.Bavail*uint64(system.Frsize)) < reserveRoom*r.size {
		return false, nil
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, r.size); err != nil {
		return false, errors.Join(fmt.Errorf("allocate %d bytes for %s: %w", r.size, r.path, err), os.Remove(r.path))
	}
	return true, nil
}
