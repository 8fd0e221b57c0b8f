package store

import (
	"context"
	"sync"

	"vmand/vm"
)

// changeLog remembers the names of the rows that this process wrote last, so that
// an observer need not read all rows to find those that changed. It is safe for
// concurrent use.
type changeLog struct {
	mu     sync.Mutex
	last   vm.Mark // of the newest entry; entry n is at n modulo the size
	oldest vm.Mark // from which on all is known
	names  [changeLogSize]changedRow
}

// changeLogSize is how many writes of rows are remembered: at 300 commits a second,
// those of more than ten seconds.
const changeLogSize = 1 << 12

type changedRow struct {
	kind rowKind
	name string
}

type rowKind byte

const (
	vmRow rowKind = iota
	diskRow
	imageRow
	networkRow
)

// add records that rows were written.
func (l *changeLog) add(rows []changedRow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range rows {
		l.last++
		l.names[l.last%changeLogSize] = r
	}
}

// reset records that any row may have been written.
func (l *changeLog) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	l.oldest = l.last
}

// since returns the names of the rows written after a mark.
func (l *changeLog) since(mark vm.Mark) vm.Changes {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := vm.Changes{Mark: l.last}
	if mark < l.oldest || l.last-mark > changeLogSize {
		c.All = true
		return c
	}
	seen := make(map[changedRow]bool)
	for n := mark + 1; n <= l.last; n++ {
		r := l.names[n%changeLogSize]
		if seen[r] {
			continue
		}
		seen[r] = true
		switch r.kind {
		case vmRow:
			c.VMs = append(c.VMs, r.name)
		case diskRow:
			c.Disks = append(c.Disks, r.name)
		case imageRow:
			c.Images = append(c.Images, r.name)
		case networkRow:
			c.Networks = append(c.Networks, r.name)
		}
	}
	return c
}

// Changes returns the names of the rows written since a mark, at most changeLogSize. It
// executes one pragma and reads no rows.
func (s *Store) Changes(ctx context.Context, since vm.Mark) (vm.Changes, error) {
	if err := s.look(ctx, s.writer); err != nil {
		return vm.Changes{}, s.fault(ctx, err)
	}
	return s.changes.since(since), nil
}

// rowsOf returns the rows that c may have written.
func rowsOf(c vm.Change) []changedRow {
	var rows []changedRow
	add := func(kind rowKind, name string) {
		if name != "" {
			rows = append(rows, changedRow{kind, name})
		}
	}
	if c.NewVM != nil {
		add(vmRow, c.NewVM.ID)
	}
	if c.VM != nil {
		add(vmRow, c.VM.VM.ID)
	}
	add(vmRow, c.DeleteVM)
	if c.NewDisk != nil {
		add(diskRow, c.NewDisk.ID)
	}
	for _, u := range c.Disks {
		add(diskRow, u.Disk.ID)
	}
	add(diskRow, c.DeleteDisk)
	if c.NewImage != nil {
		add(imageRow, c.NewImage.Name)
	}
	if c.Image != nil {
		add(imageRow, c.Image.Image.Name)
	}
	add(imageRow, c.DeleteImage)
	if c.NewNetwork != nil {
		add(networkRow, c.NewNetwork.Name)
	}
	if c.Network != nil {
		add(networkRow, c.Network.Name)
	}
	add(networkRow, c.DeleteNetwork)
	return rows
}

// noteChange makes known that c was applied and returned done, or failed: then it
// may have been committed all the same.
func (s *Store) noteChange(c vm.Change, done vm.Applied, err error) {
	rows := rowsOf(c)
	for _, v := range done.Learned {
		rows = append(rows, changedRow{vmRow, v.ID})
	}
	if err != nil {
		for _, l := range c.Learned {
			rows = append(rows, changedRow{vmRow, l.VMID})
		}
	}
	var vms []string
	for _, r := range rows {
		if r.kind == vmRow {
			vms = append(vms, r.name)
		}
	}
	if len(vms) > 0 {
		s.cache.forget(vms...)
	}
	s.changes.add(rows)
}
