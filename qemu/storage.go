package qemu

import (
	"errors"
	"fmt"
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

// rootDisks returns the VMs that have a directory, and whether there is a root disk in
// it. It makes one system call for each, where [os.Root] makes five. It may follow a
// directory that is a link, but only checks whether the file exists.
func (s *fileSurvey) rootDisks(dirs []os.DirEntry) (map[string]bool, error) {
	all := make(map[string]bool, len(dirs))
	if len(dirs) == 0 {
		return all, nil // vms/ may not exist yet
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
