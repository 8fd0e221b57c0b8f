package crash

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// faults is a file system that passes accesses on to a directory below it, and fails some
// of them with EIO, like a disk with bad sectors. Data of a failed write is lost, data of a
// failed flush may be.
type faults struct {
	mu    sync.Mutex
	fails func(op, path string) bool // nil: no access fails
	hits  int                        // accesses that have failed since fails was set
}

// failing returns a function for faults.set: accesses of the kinds ops ("read", "write",
// "fsync", "create") fail for files whose path begins with prefix.
func failing(prefix string, ops ...string) func(op, path string) bool {
	return func(op, path string) bool { return strings.HasPrefix(path, prefix) && slices.Contains(ops, op) }
}

// mend makes all accesses succeed again and returns how many have failed.
func (f *faults) mend() int { return f.set(nil) }

// set makes accesses fail and returns how many have failed before.
func (f *faults) set(fails func(op, path string) bool) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	hits := f.hits
	f.fails, f.hits = fails, 0
	return hits
}

// errno returns the result of an access.
func (f *faults) errno(op, path string) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails == nil || !f.fails(op, path) {
		return fs.OK
	}
	f.hits++
	return syscall.EIO
}

// mount returns a function that mounts the file system at dir, over a directory beside it.
func (f *faults) mount(t *testing.T) func(dir string) error {
	return func(dir string) error {
		below := dir + "-below"
		if err := errors.Join(os.Mkdir(below, 0o711), os.Chmod(below, 0o711)); err != nil {
			return err
		}
		root, err := fs.NewLoopbackRoot(below)
		if err != nil {
			return err
		}
		// QEMU runs as another user. Names and attributes are not cached, so that QEMU
		// sees the changes of vmand at once.
		server, err := fs.Mount(dir, &faultyNode{root.(*fs.LoopbackNode), f}, &fs.Options{
			MountOptions: fuse.MountOptions{
				AllowOther:        true,
				DirectMountStrict: true,
				FsName:            "faulty",
				Options:           []string{"default_permissions"},
			},
		})
		if err != nil {
			return err
		}
		t.Cleanup(func() { f.mend() }) // runs after the unmount, which is registered later
		go server.Wait()
		return nil
	}
}

type faultyNode struct {
	*fs.LoopbackNode
	faults *faults
}

// WrapChild implements [fs.NodeWrapChilder].
func (n *faultyNode) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	return &faultyNode{child.(*fs.LoopbackNode), n.faults}
}

func (n *faultyNode) path() string { return n.Path(n.Root()) }

// open wraps an open file. Accesses bypass the kernel's cache, so that all of them can
// fail, but for the index of SQLite's log, which is mapped into memory.
func (n *faultyNode) open(name string, h fs.FileHandle, flags uint32) (fs.FileHandle, uint32) {
	if !strings.HasSuffix(name, "-shm") {
		flags |= fuse.FOPEN_DIRECT_IO
	}
	return &faultyFile{h.(*fs.LoopbackFile), n}, flags
}

// Open implements [fs.NodeOpener].
func (n *faultyNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, out, errno := n.LoopbackNode.Open(ctx, flags)
	if errno == fs.OK {
		h, out = n.open(n.path(), h, out)
	}
	return h, out, errno
}

// Create implements [fs.NodeCreater].
func (n *faultyNode) Create(ctx context.Context, name string, flags, mode uint32, entry *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.faults.errno("create", filepath.Join(n.path(), name)); errno != fs.OK {
		return nil, nil, 0, errno
	}
	child, h, out, errno := n.LoopbackNode.Create(ctx, name, flags, mode, entry)
	if errno == fs.OK {
		h, out = child.Operations().(*faultyNode).open(name, h, out)
	}
	return child, h, out, errno
}

// CopyFileRange implements [fs.NodeCopyFileRanger]. It makes copies fall back to reads and
// writes.
func (n *faultyNode) CopyFileRange(context.Context, fs.FileHandle, uint64, *fs.Inode, fs.FileHandle, uint64, uint64, uint64) (uint32, syscall.Errno) {
	return 0, syscall.ENOSYS
}

type faultyFile struct {
	*fs.LoopbackFile
	node *faultyNode
}

// PassthroughFd implements [fs.FilePassthroughFder]. It makes every access call this file
// system.
func (f *faultyFile) PassthroughFd() (int, bool) { return 0, false }

// Read implements [fs.FileReader].
func (f *faultyFile) Read(ctx context.Context, buf []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if errno := f.node.faults.errno("read", f.node.path()); errno != fs.OK {
		return nil, errno
	}
	return f.LoopbackFile.Read(ctx, buf, off)
}

// Write implements [fs.FileWriter].
func (f *faultyFile) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if errno := f.node.faults.errno("write", f.node.path()); errno != fs.OK {
		return 0, errno
	}
	return f.LoopbackFile.Write(ctx, data, off)
}

// Fsync implements [fs.FileFsyncer].
func (f *faultyFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	if errno := f.node.faults.errno("fsync", f.node.path()); errno != fs.OK {
		return errno
	}
	return f.LoopbackFile.Fsync(ctx, flags)
}

// Allocate implements [fs.FileAllocater].
func (f *faultyFile) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	if errno := f.node.faults.errno("write", f.node.path()); errno != fs.OK {
		return errno
	}
	return f.LoopbackFile.Allocate(ctx, off, size, mode)
}
