package qemu

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"vmand/qemu/qmp"
	"vmand/vm"
)

// statusIOError is the run state of a guest that QEMU has paused because one of
// its disks had an error that the guest was not told of.
const statusIOError = vm.RunStatus("io-error")

// The io-status of a disk that the guest waits for (qapi/block-core.json in
// QEMU's source). A cont clears it and tries again.
const (
	ioFailed  = "failed"
	ioNoSpace = "nospace"
)

// blockInfo is what query-block says of a disk.
type blockInfo struct {
	Device    string `json:"qdev"`
	Status    string `json:"io-status"`
	Removable bool   `json:"removable"`
	Inserted  *struct {
		Image struct {
			Specific struct {
				Data struct {
					Corrupt bool `json:"corrupt"`
				} `json:"data"`
			} `json:"format-specific"`
		} `json:"image"`
	} `json:"inserted"` // nil if QEMU has closed the image
}

// lookForIOErrors asks which disks had an error and says so in o.
func (s *session) lookForIOErrors(ctx context.Context, o *vm.Observation) {
	var disks []blockInfo
	if err := s.execute(ctx, queryTimeout, "query-block", nil, &disks); err != nil {
		return
	}
	s.noteDamaged(disks)
	var words []string
	for _, d := range disks {
		name, path := s.nameDisk(deviceOf(d.Device))
		switch d.Status {
		case ioFailed:
			words = append(words, fmt.Sprintf("%s had an I/O error: %s", name, path))
		case ioNoSpace:
			free, _, err := room(path)
			if !o.NoSpace || free/mib < o.FreeMiB {
				o.NoSpace, o.FreeMiB = true, free/mib
			}
			left := fmt.Sprintf("%d bytes are free now", free)
			if err != nil {
				left = err.Error()
			}
			words = append(words, fmt.Sprintf("%s could not be written because its file system was full: %s (%s)", name, path, left))
		}
	}
	o.Trouble = join(words...)
}

func join(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(s string) bool { return s == "" }), "; ")
}

// deviceOf returns the id of the device that a block backend belongs to. QEMU
// names the device, or the path of the part of it that has the backend.
func deviceOf(qdev string) string {
	path, _ := strings.CutPrefix(qdev, "/machine/peripheral/")
	id, _, _ := strings.Cut(path, "/")
	return id
}

// nameDisk returns what to call the disk that a device or a node is, and the
// path of its file; for one that is not known, that of the directory of all.
func (s *session) nameDisk(alias string) (name, path string) {
	if alias == rootDevice || alias == rootNode {
		return "the root disk", s.layout.inState(vmRootDisk(s.id))
	}
	for _, prefix := range []string{diskDevicePrefix, diskNodePrefix} {
		if id, ok := strings.CutPrefix(alias, prefix); ok && vm.ValidName(id) {
			return "data disk " + id, s.layout.inState(dataDisk(id))
		}
	}
	if id, ok := cdromOfAlias(alias); ok {
		return "CD-ROM drive " + id, s.layout.inState(imagesDir)
	}
	return fmt.Sprintf("the disk %q", alias), s.layout.state
}

// maxDamaged is how many damaged images are remembered: a VM has one root disk
// and vm.MaxDisks others.
const maxDamaged = 1 + vm.MaxDisks

// damageDelay is how long after a connection is made QEMU is asked for damage:
// it takes milliseconds over the answer, and one who starts a VM, or many at
// once, waits for what is behind it in the queue.
const damageDelay = time.Second

// lookForDamage asks which images were found damaged while nobody listened, at
// the very start of QEMU or while vmand was not there, and reports whether any was.
func (s *session) lookForDamage(ctx context.Context, conn *qmp.Conn) bool {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var disks []blockInfo
	if err := conn.Execute(ctx, "query-block", nil, &disks); err != nil {
		s.log.Debug("cannot ask for damaged images", "err", err)
		return false
	}
	return s.noteDamaged(disks)
}

// noteDamaged remembers which of the disks are damaged and reports whether any is.
func (s *session) noteDamaged(disks []blockInfo) (any bool) {
	for _, d := range disks {
		if closed := d.Inserted == nil && !d.Removable; closed || d.Inserted != nil && d.Inserted.Image.Specific.Data.Corrupt {
			s.noteDamage(deviceOf(d.Device), "", closed)
			any = true
		}
	}
	return any
}

// noteDamageEvent remembers what QEMU says in a BLOCK_IMAGE_CORRUPTED.
func (s *session) noteDamageEvent(data map[string]any) {
	node, _ := data["node-name"].(string)
	said, _ := data["msg"].(string)
	fatal, _ := data["fatal"].(bool)
	s.noteDamage(node, said, fatal)
}

// noteDamage remembers what QEMU said of the image of the disk that a device or a
// node is. A fatal damage makes it close the image.
func (s *session) noteDamage(alias, said string, fatal bool) {
	name, path := s.nameDisk(alias)
	consequence := "QEMU goes on using it"
	if fatal {
		consequence = "QEMU does not use it any more"
	}
	words := fmt.Sprintf("the image of %s is damaged, %s: %s (%.200s)", name, consequence, path, cmp.Or(said, "it does not say how"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.damaged == nil {
		s.damaged = make(map[string]string)
	}
	if _, known := s.damaged[name]; known || len(s.damaged) < maxDamaged {
		s.damaged[name] = words
	}
}

// forgetDamage forgets an image that the VM does not have any more.
func (s *session) forgetDamage(alias string) {
	name, _ := s.nameDisk(alias)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.damaged, name)
}

// damage returns what is remembered, empty if there is nothing.
func (s *session) damage() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	words := make([]string, 0, len(s.damaged))
	for _, name := range slices.Sorted(maps.Keys(s.damaged)) {
		words = append(words, s.damaged[name])
	}
	return join(words...)
}
