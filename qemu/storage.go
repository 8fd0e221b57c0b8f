package qemu

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// fileSurvey looks at the files below a state directory. What it has read of a
// disk it reads again only when the file has changed.
type fileSurvey struct {
	state *os.Root
	read  func(diskID string) (sizeMiB int64, err error)

	mu    sync.Mutex
	sizes map[string]sizedFile // by disk id
}

// sizedFile is one version of a disk's file and the size of the disk in it.
type sizedFile struct {
	modTime int64 // nanoseconds of the Unix epoch
	bytes   int64
	inode   uint64
	sizeMiB int64
}

func newFileSurvey(state *os.Root, read func(string) (int64, error)) *fileSurvey {
	return &fileSurvey{state: state, read: read, sizes: make(map[string]sizedFile)}
}

// survey fills in which VMs and which data disks have files, and how much room
// there is for them.
func (s *fileSurvey) survey(seen *vm.Survey) error {
	dirs, err := readDir(s.state, vmsDir)
	if err != nil {
		return err
	}
	if seen.VMFiles, err = s.rootDisks(dirs); err != nil {
		return err
	}
	if seen.DiskFiles, err = s.disks(); err != nil {
		return err
	}
	seen.Storage, err = storageOf(s.state.Name())
	return err
}

// rootDisks returns which of the VMs that have a directory have a root disk. It
// asks one question of the kernel for each: [os.Root] asks five. A directory that
// is a link would be followed, only to learn whether there is such a file in it.
func (s *fileSurvey) rootDisks(dirs []os.DirEntry) (map[string]bool, error) {
	all := make(map[string]bool, len(dirs))
	if len(dirs) == 0 {
		return all, nil // there may be no directory of VMs yet
	}
	vms, err := s.state.Open(vmsDir)
	if err != nil {
		return nil, err
	}
	defer vms.Close()
	fd := int(vms.Fd())
	for _, e := range dirs {
		if vm.ValidName(e.Name()) {
			var st unix.Stat_t
			name := strings.TrimPrefix(vmRootDisk(e.Name()), vmsDir+"/")
			all[e.Name()] = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
		}
	}
	return all, nil
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
			continue // removed meanwhile
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

// settledAge is how long a file must have been left alone before its time of
// change tells it from a version that is written a moment later.
const settledAge = time.Second

// size returns the size of the disk in a version of its file, 0 if it cannot be
// read, and whether that holds until the file changes. s.mu is held.
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

// storageOf returns how much room the file system of a path has for us.
func storageOf(path string) (vm.Storage, error) {
	free, size, err := room(path)
	return vm.Storage{Path: path, FreeMiB: free / mib, SizeMiB: size / mib}, err
}

// room returns how many bytes of the file system that path is on are free, for
// others than root too, and how many it has.
func room(path string) (free, size int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("ask for the room at %s: %w", path, err)
	}
	return int64(st.Bavail * uint64(st.Frsize)), int64(st.Blocks * uint64(st.Frsize)), nil
}
