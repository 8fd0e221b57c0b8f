package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// fileSurvey lists the files below a state directory. It reads the header of a
// disk's file again only after the file has changed.
type fileSurvey struct {
	state *os.Root
	read  func(diskID string) (sizeMiB int64, err error)

	mu    sync.Mutex
	sizes map[string]sizedFile // by disk id
}

// sizedFile is one version of a disk's file, and the virtual size in its header.
type sizedFile struct {
	modTime int64 // nanoseconds of the Unix epoch
	bytes   int64
	inode   uint64
	sizeMiB int64
}

// newFileSurvey returns a survey that calls read for the size of a disk.
func newFileSurvey(state *os.Root, read func(string) (int64, error)) *fileSurvey {
	return &fileSurvey{state: state, read: read, sizes: make(map[string]sizedFile)}
}

// survey fills in the VMs and the data disks that have files, and the free storage.
func (s *fileSurvey) survey(ctx context.Context, seen *vm.Survey) error {
	var err error
	if seen.VMFiles, err = s.rootDisks(ctx); err != nil {
		return err
	}
	if seen.DiskFiles, err = s.disks(); err != nil {
		return err
	}
	return s.surveyStorage(seen)
}

// surveyStorage fills in the free storage.
func (s *fileSurvey) surveyStorage(seen *vm.Survey) (err error) {
	seen.Storage, err = storageOf(s.state.Name())
	return err
}

// rootDisksOf fills in whether the VMs that have a process have a root disk. It reads no
// directory.
func (s *fileSurvey) rootDisksOf(seen *vm.Survey) {
	seen.VMFiles = make(map[string]bool, len(seen.VMs))
	for id := range seen.VMs {
		var st unix.Stat_t
		seen.VMFiles[id] = unix.Lstat(filepath.Join(s.state.Name(), vmRootDisk(id)), &st) == nil
	}
}

// version returns a text that changes when a directory or a file is created, renamed or
// removed in one of the directories of VMs, data disks and images. The clock of the file
// system bounds its precision: a change within one tick (4 ms) after another may not show.
func (s *fileSurvey) version() (string, error) {
	var all strings.Builder
	for _, dir := range []string{vmsDir, disksDir, imagesDir} {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(s.state.Name(), dir), &st)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return "", fmt.Errorf("stat %s: %w", dir, err)
		}
		fmt.Fprint(&all, st.Ino, " ", st.Mtim.Nano(), " ")
	}
	return all.String(), nil
}

// rootDisks returns the VMs that have a directory, and whether there is a root disk in it.
func (s *fileSurvey) rootDisks(ctx context.Context) (map[string]bool, error) {
	all := make(map[string]bool)
	err := eachVMDir(ctx, s.state, func(id string, lstat statInVMs) error {
		_, err := lstat(vmRootDisk(id))
		all[id] = err == nil
		return nil
	})
	return all, err
}

// statInVMs returns the state of a file below the directories of VMs. It makes one system
// call where [os.Root] makes five. It may follow a directory that is a link, so it must
// only tell whether a file exists and how old it is.
type statInVMs func(name string) (unix.Stat_t, error)

// eachVMDir calls visit for each VM that has a directory, until it fails or ctx is done. It does
// not read the types of the entries, for which [os.Root] makes a system call for each.
func eachVMDir(ctx context.Context, state *os.Root, visit func(id string, lstat statInVMs) error) error {
	vms, err := state.Open(vmsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer vms.Close()
	names, err := vms.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read %s: %w", vmsDir, err)
	}
	fd := int(vms.Fd())
	lstat := func(name string) (st unix.Stat_t, err error) {
		err = unix.Fstatat(fd, strings.TrimPrefix(name, vmsDir+"/"), &st, unix.AT_SYMLINK_NOFOLLOW)
		return st, err
	}
	for _, id := range names {
		if !vm.ValidName(id) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := visit(id, lstat); err != nil {
			return err
		}
	}
	return nil
}

// disks returns the sizes in MiB of the data disks that have a file.
func (s *fileSurvey) disks() (map[string]int64, error) {
	files, err := readDir(s.state, disksDir)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	disks := make(map[string]int64, len(files))
	known := make(map[string]sizedFile, len(files))
	for _, e := range files {
		id, ok := strings.CutSuffix(e.Name(), qcow2Suffix)
		if !ok || !vm.ValidName(id) {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // the file was removed meanwhile
		}
		now := sizedFile{modTime: info.ModTime().UnixNano(), bytes: info.Size()}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			now.inode = st.Ino
		}
		if now.sizeMiB, ok = s.size(id, now); ok {
			known[id] = now
		}
		disks[id] = now.sizeMiB
	}
	s.sizes = known
	return disks, nil
}

// settledAge is how old the last change of a file must be, so that its time of
// change differs from that of any later version.
const settledAge = time.Second

// size returns the virtual size in a version of a disk's file, 0 if it cannot be read.
// holds reports whether the size is valid until the file changes. s.mu must be held.
func (s *fileSurvey) size(id string, now sizedFile) (sizeMiB int64, holds bool) {
	was, ok := s.sizes[id]
	now.sizeMiB = was.sizeMiB
	if ok && was == now {
		return was.sizeMiB, true
	}
	holds = time.Since(time.Unix(0, now.modTime)) > settledAge
	sizeMiB, err := s.read(id)
	if err != nil {
		return 0, false
	}
	return sizeMiB, holds
}

// storageOf returns the storage of the file system that path is on.
func storageOf(path string) (vm.Storage, error) {
	free, size, err := room(path)
	return vm.Storage{Path: path, FreeMiB: free / mib, SizeMiB: size / mib}, err
}

// room returns how many bytes of the file system that path is on are free for users
// other than root, and how many it has.
func room(path string) (free, size int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("ask for the free space at %s: %w", path, err)
	}
	return int64(st.Bavail * uint64(st.Frsize)), int64(st.Blocks * uint64(st.Frsize)), nil
}
