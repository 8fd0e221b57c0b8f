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
	// reserveSuffix follows the path of the database in that of its reserve.
	reserveSuffix = ".reserve"
	// reserveSlice is the number of bytes that a reserve frees at a time: enough for any
	// one change. Other programs on the file system may use them, but not the rest.
	reserveSlice = 1 << 20
	// reserveRoom is the factor of its size that must be free before a reserve is
	// allocated, so that the reserve itself never fills the file system.
	reserveRoom = 4
	// reserveInterval is the time between two checks for that space.
	reserveInterval = time.Minute
	// reserveFailed is the time before an allocation that failed is retried.
	reserveFailed = time.Hour
)

// A reserve is a file beside the database that only occupies space. It frees that
// space when the file system is full: a change that stops a VM or deletes a disk, and
// so frees space, must be recorded first. A nil reserve has no space to free.
type reserve struct {
	path string
	size int64 // bytes, when complete
	log  *slog.Logger

	mu       sync.Mutex
	complete bool
	next     time.Time // when to check for space again
}

func newReserve(o Options) *reserve {
	if o.Reserve <= 0 {
		return nil
	}
	return &reserve{path: o.Path + reserveSuffix, size: o.Reserve, log: o.Log}
}

// retry runs f until it succeeds, fails for another reason than lack of space, or the
// reserve is used up.
func (r *reserve) retry(f func() error) error {
	for {
		err := f()
		if err == nil {
			r.fill()
		}
		if !noSpace(err) || !r.release() {
			return err
		}
	}
}

// noSpace reports whether err means that the file system is full.
func noSpace(err error) bool { return vm.HasCode(err, vm.CodeInsufficientStorage) }

// release frees a slice of the reserve and reports whether there was one.
func (r *reserve) release() bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complete, r.next = false, time.Now().Add(reserveInterval)
	left, err := r.cut()
	if errors.Is(err, fs.ErrNotExist) {
		return false // used up
	}
	if err != nil {
		r.log.Warn("cannot free space from the reserve of the database", "err", err)
		return false
	}
	r.log.Warn("no space left for the database, using its reserve", "path", r.path, "bytes_left", left)
	return true
}

// cut removes a slice from the end of the file, or the file with the last slice.
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

// fill completes the reserve if there is enough space. It is best effort: the
// reserve matters only once the file system is full.
func (r *reserve) fill() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.complete || time.Now().Before(r.next) {
		return
	}
	r.next = time.Now().Add(reserveInterval)
	var err error
	if r.complete, err = r.allocate(); err != nil {
		r.next = time.Now().Add(reserveFailed)
		r.log.Warn("no reserve for the database", "err", err)
	}
}

// allocate allocates all blocks of the file if there is space for them, and reports
// whether the file has them.
func (r *reserve) allocate() (bool, error) {
	var file unix.Stat_t
	if err := unix.Lstat(r.path, &file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("stat %s: %w", r.path, err)
	}
	// A copy of the file may have the size and no blocks, and so reserve nothing.
	const block = 512 // the unit of st_blocks on every file system (inode(7))
	if file.Size >= r.size && file.Blocks*block >= r.size {
		return true, nil
	}
	var system unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.path), &system); err != nil {
		return false, fmt.Errorf("get the free space for %s: %w", r.path, err)
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
		err = fmt.Errorf("allocate %d bytes for %s: %w", r.size, r.path, err)
		return false, errors.Join(err, os.Remove(r.path))
	}
	return true, nil
}
