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

// statusIOError is the run state of a guest that QEMU paused because of a disk error
// instead of reporting the error to the guest.
const statusIOError = vm.RunStatus("io-error")

// Values of the io-status of a disk (qapi/block-core.json in QEMU's source). A cont
// clears it and retries the request.
const (
	ioFailed  = "failed"
	ioNoSpace = "nospace"
)

// blockInfo is a disk in the answer to query-block.
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
	} `json:"inserted"` // nil if QEMU closed the image
}

// lookForIOErrors adds to o which disks had an error.
func (s *session) lookForIOErrors(ctx context.Context, o *vm.Observation) {
	var disks []blockInfo
	if err := s.execute(ctx, queryTimeout, "query-block", nil, &disks); err != nil {
		return
	}
	s.noteDamaged(disks)
	var troubles []string
	for _, d := range disks {
		name, path := s.nameDisk(deviceOf(d.Device))
		switch d.Status {
		case ioFailed:
			troubles = append(troubles, fmt.Sprintf("%s had an I/O error: %s", name, path))
		case ioNoSpace:
			troubles = append(troubles, noteNoSpace(o, name, path))
		}
	}
	o.Trouble = join(troubles...)
}

// noteNoSpace adds to o that the file system of a disk was full, and returns that as
// text.
func noteNoSpace(o *vm.Observation, name, path string) string {
	free, _, err := room(path)
	if !o.NoSpace || free/mib < o.FreeMiB {
		o.NoSpace, o.FreeMiB = true, free/mib
	}
	left := fmt.Sprintf("%d bytes are free now", free)
	if err != nil {
		left = err.Error()
	}
	return fmt.Sprintf("%s could not be written because its file system was full: %s (%s)", name, path, left)
}

// join joins the texts that are not empty.
func join(texts ...string) string {
	return strings.Join(slices.DeleteFunc(texts, func(s string) bool { return s == "" }), "; ")
}

// deviceOf returns the id of the device of a block backend. QEMU names the device, or
// the path of the part of the device that has the backend.
func deviceOf(qdev string) string {
	path, _ := strings.CutPrefix(qdev, "/machine/peripheral/")
	id, _, _ := strings.Cut(path, "/")
	return id
}

// nameDisk returns the name in messages, and the path of the file, of the disk with a
// device or node. The path of an unknown disk is the state directory.
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

// maxDamaged bounds the damaged images that are remembered: a VM has one root disk
// and vm.MaxDisks data disks.
const maxDamaged = 1 + vm.MaxDisks

// damageDelay is how long after the connection QEMU is asked for damaged images. It
// takes milliseconds to answer, and a start, or many at once, would wait for that.
const damageDelay = time.Second

// lookForDamage asks for images that QEMU found damaged while vmand was not connected,
// and reports whether there are any.
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

// noteDamaged remembers the damaged disks and reports whether there are any.
func (s *session) noteDamaged(disks []blockInfo) (any bool) {
	for _, d := range disks {
		closed := d.Inserted == nil && !d.Removable
		if closed || d.Inserted != nil && d.Inserted.Image.Specific.Data.Corrupt {
			s.noteDamage(deviceOf(d.Device), "", closed)
			any = true
		}
	}
	return any
}

// noteDamageEvent remembers the damage in a BLOCK_IMAGE_CORRUPTED event.
func (s *session) noteDamageEvent(data map[string]any) {
	node, _ := data["node-name"].(string)
	message, _ := data["msg"].(string)
	fatal, _ := data["fatal"].(bool)
	s.noteDamage(node, message, fatal)
}

// noteDamage remembers that the image of a disk, given by its device or node, is
// damaged. After fatal damage QEMU closes the image.
func (s *session) noteDamage(alias, message string, fatal bool) {
	name, path := s.nameDisk(alias)
	consequence := "QEMU still uses it"
	if fatal {
		consequence = "QEMU no longer uses it"
	}
	text := fmt.Sprintf("the image of %s is damaged, %s: %s (%.200s)",
		name, consequence, path, cmp.Or(message, "QEMU gives no details"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.damaged == nil {
		s.damaged = make(map[string]string)
	}
	if _, known := s.damaged[name]; known || len(s.damaged) < maxDamaged {
		s.damaged[name] = text
	}
}

// forgetDamage drops the damage of a disk that was unplugged.
func (s *session) forgetDamage(alias string) {
	name, _ := s.nameDisk(alias)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.damaged, name)
}

// damage returns the damage that is remembered, "" if there is none.
func (s *session) damage() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	texts := make([]string, 0, len(s.damaged))
	for _, name := range slices.Sorted(maps.Keys(s.damaged)) {
		texts = append(texts, s.damaged[name])
	}
	return join(texts...)
}
