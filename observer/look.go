package observer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vmand/vm"
)

const (
	// wholeEvery is the number of passes of which at least one is whole: one a minute at the
	// default interval.
	wholeEvery = 12
	// rowsAtOnce is the number of rows that a whole pass reads at a time, to bound its memory.
	rowsAtOnce = 500
)

// A cycle decides which passes are whole.
type cycle struct {
	begun   bool // a pass has begun
	whole   bool // the next pass must be whole
	light   int  // light passes since the last whole one
	files   string
	foreign int64
	event   int64                // number of the newest event before the last pass
	watched map[vm.Resource]bool // with findings that a light pass can miss
}

// beginPass reports whether this pass must be whole, and prepares the cycle for the next one.
// It returns true if it cannot read the host or the records.
func (o *Observer) beginPass(ctx context.Context) bool {
	c := &o.cycle
	whole := !c.begun || c.whole || c.light+1 >= wholeEvery
	next := cycle{
		begun:   true,
		files:   c.files,
		foreign: c.foreign,
		event:   c.event,
		watched: map[vm.Resource]bool{},
	}
	_, err := guard(o.log, func() (_ struct{}, err error) {
		if next.files, err = o.host.FilesVersion(ctx); err != nil {
			return
		}
		if next.foreign, err = o.records.ForeignVersion(ctx); err != nil {
			return
		}
		if next.event, err = o.records.LastEvent(ctx); err != nil || whole {
			return
		}
		whole = next.files != c.files || next.foreign != c.foreign
		if !whole && len(c.watched) > 0 && next.event > c.event {
			whole, err = o.concerns(ctx, c.event, c.watched)
		}
		return
	})
	if err != nil {
		whole, next.whole = true, true
	}
	if !whole {
		next.light = c.light + 1
	}
	o.cycle = next
	return whole
}

// concerns reports whether an event with a number above last is about a watched resource,
// leaving out the observer's own events. It returns true if there are more than newsPage events.
func (o *Observer) concerns(ctx context.Context, last int64, watched map[vm.Resource]bool) (bool, error) {
	events, err := o.records.Events(ctx, vm.EventFilter{}, vm.Page{After: last, Limit: newsPage})
	if err != nil {
		return false, err
	}
	for _, e := range events {
		if watched[e.Resource] && !strings.HasPrefix(e.Type, "observer.") {
			return true, nil
		}
	}
	return len(events) == newsPage, nil
}

// A view holds the data that a pass read.
type view struct {
	planner *planner // has the VMs, disks and images
	active  []vm.VM  // the VMs that are active or have a process
}

// viewAll reads the host and all records. It observes the host before it reads the records:
// a VM created in between is then recorded and has no files, which Settle handles, and is not
// mistaken for an orphan.
func (o *Observer) viewAll(ctx context.Context) (view, error) {
	seen, err := o.host.Survey(ctx)
	if err != nil {
		return view{}, fmt.Errorf("survey the host: %w", err)
	}
	p := newPlanner(seen, false)
	v, err := o.viewVMs(ctx, p)
	if err != nil {
		return view{}, err
	}
	err = pages(func(page vm.Page) ([]vm.VMSummary, error) {
		return o.records.VMSummaries(ctx, vm.VMFilter{}, page)
	}, func(s vm.VMSummary) int64 {
		p.addInactive(s)
		return s.Seq
	})
	if err != nil {
		return view{}, fmt.Errorf("read the recorded VMs: %w", err)
	}
	err = pages(func(page vm.Page) ([]vm.Disk, error) { return o.records.Disks(ctx, vm.DiskFilter{}, page) },
		func(d vm.Disk) int64 {
			p.addDisk(d)
			return d.Seq
		})
	if err != nil {
		return view{}, fmt.Errorf("read the recorded disks: %w", err)
	}
	images, err := o.records.Images(ctx, vm.ImageFilter{}, vm.Page{})
	if err != nil {
		return view{}, fmt.Errorf("read the recorded images: %w", err)
	}
	p.images(images)
	return v, nil
}

// pages calls each for all rows, which read returns page by page. each returns the Seq of the
// row.
func pages[T any](read func(vm.Page) ([]T, error), each func(T) int64) error {
	page := vm.Page{Limit: rowsAtOnce}
	for {
		rows, err := read(page)
		if err != nil {
			return err
		}
		for _, row := range rows {
			page.After = each(row)
		}
		if len(rows) != rowsAtOnce {
			return nil
		}
	}
}

// viewVMs adds the VMs that are active or have a process to a planner.
func (o *Observer) viewVMs(ctx context.Context, p *planner) (v view, err error) {
	v.planner = p
	if v.active, err = o.records.VMs(ctx, vm.VMFilter{Active: true}, vm.Page{}); err != nil {
		return view{}, fmt.Errorf("read the active VMs: %w", err)
	}
	for _, one := range v.active {
		p.addVM(one)
	}
	for id := range p.seen.VMs {
		if p.vms[id] {
			continue
		}
		one, err := o.records.VM(ctx, id)
		if errors.Is(err, vm.ErrNotFound) {
			continue // an orphan
		}
		if err != nil {
			return view{}, fmt.Errorf("read VM %s: %w", id, err)
		}
		p.addVM(one)
		v.active = append(v.active, one)
	}
	return v, nil
}

// viewActive reads the processes of the host, the VMs that are active or have a process,
// and the disks of these VMs. Like viewAll it observes the host first.
func (o *Observer) viewActive(ctx context.Context) (view, error) {
	seen, err := o.host.SurveyProcesses(ctx)
	if err != nil {
		return view{}, fmt.Errorf("survey the host: %w", err)
	}
	p := newPlanner(seen, true)
	v, err := o.viewVMs(ctx, p)
	if err != nil {
		return view{}, err
	}
	for _, one := range v.active {
		disks, err := o.records.Disks(ctx, vm.DiskFilter{VMID: one.ID}, vm.Page{})
		if err != nil {
			return view{}, fmt.Errorf("read the recorded disks: %w", err)
		}
		for _, d := range disks {
			p.addDisk(d)
		}
	}
	for _, id := range p.strangers() {
		d, err := o.records.Disk(ctx, id)
		if err == nil {
			p.owner[id] = d.VMID
		} else if !errors.Is(err, vm.ErrNotFound) {
			return view{}, fmt.Errorf("read disk %s: %w", id, err)
		}
	}
	return v, nil
}

// plan returns the plan for a view.
func (o *Observer) plan(ctx context.Context, v view) ([]Action, error) {
	open, err := o.records.Operations(ctx, vm.OperationFilter{Open: true}, vm.Page{})
	if err != nil {
		return nil, fmt.Errorf("read the open operations: %w", err)
	}
	o.restarts.add(v.active)
	plan := v.planner.finish(open, int64(o.o.LowMiB), o.settler.Busy)
	for r := range v.planner.held {
		o.cycle.watched[r] = true
	}
	if o.o.Repair == RepairReport {
		for i := range plan {
			plan[i] = plan[i].reportOnly()
		}
	}
	return plan, nil
}
