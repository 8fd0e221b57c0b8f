package manager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmand/vm"
)

// Disks makes, copies, resizes, plugs and deletes data disks.
type Disks struct{ *Engine }

// Deadlines of operations on a disk.
const (
	fileTimeout = 5 * time.Minute // to make or remove a file
	copyTimeout = 24 * time.Hour  // to copy a disk or import an image: a slow line, a large disk
	plugTimeout = 90 * time.Second
)

var filePoints = []string{"image.temp-made", "image.created", "image.renamed"}

var diskCreate = verb{
	kind: vm.DiskCreate, timeout: fileTimeout,
	cleanup: leavesNothing, reached: neverKnown, answer: vm.AnswerCreated,
	points: filePoints,
}

var diskDelete = verb{
	kind: vm.DiskDelete, timeout: fileTimeout,
	cleanup: removeUnrecordedDisk, reached: exists(false), answer: vm.AnswerNothing,
	points: []string{"files.removed"},
}

var diskAttach = verb{
	kind: vm.DiskAttach, timeout: plugTimeout, preemptible: true,
	cleanup: leavesNothing, reached: diskReaches(vm.DiskAttached), answer: vm.AnswerResource,
	points: []string{"plug.node-added", "plug.device-added"},
}

var diskDetach = verb{
	kind: vm.DiskDetach, timeout: plugTimeout, preemptible: true,
	cleanup: leavesNothing, reached: diskReaches(vm.DiskAvailable), answer: vm.AnswerResource,
	points: []string{"unplug.device-deleted", "unplug.node-deleted"},
}

var diskResize = verb{
	kind: vm.DiskResize, timeout: fileTimeout, preemptible: true,
	cleanup: leavesNothing, reached: neverKnown, answer: vm.AnswerResource,
	points: []string{"resize.grown"},
}

// removeUnrecordedDisk removes the file of a disk that is not recorded: its deletion had
// already deleted its record.
func removeUnrecordedDisk(ctx context.Context, e *Engine, op vm.Operation) error {
	recorded, err := e.recorded(ctx, op.Resource)
	if err != nil || recorded {
		return err
	}
	return e.driver.DeleteDisk(ctx, op.Resource.ID)
}

// diskReaches returns the reached of verbs that bring a disk to a state.
func diskReaches(want vm.DiskState) func(context.Context, *Engine, vm.Operation) (bool, error) {
	return func(ctx context.Context, e *Engine, op vm.Operation) (bool, error) {
		d, err := e.store.Disk(ctx, op.Resource.ID)
		return err == nil && d.State == want, ignoreNotFound(err)
	}
}

// Create makes a data disk, empty or an overlay of an image, and returns it when it is
// durable.
func (s *Disks) Create(ctx context.Context, n vm.NewDisk) (vm.Disk, error) {
	if err := n.Check(); err != nil {
		return vm.Disk{}, err
	}
	c := s.newDisk(n)
	if _, err := s.run(ctx, diskCreate.request(c, vm.DiskResource(c.d.ID))); err != nil {
		return vm.Disk{}, err
	}
	return s.store.Disk(ctx, c.d.ID)
}

// Copy begins to create a data disk as a copy of another disk, n.FromDisk, and returns it in
// its transitional state. [Operations.Wait] returns the outcome. If the copy fails, the disk
// is removed again.
func (s *Disks) Copy(ctx context.Context, n vm.NewDisk) (vm.Disk, vm.Operation, error) {
	if err := n.Check(); err != nil {
		return vm.Disk{}, vm.Operation{}, err
	}
	source, err := s.sourceOf(ctx, n.FromDisk)
	if err != nil {
		return vm.Disk{}, vm.Operation{}, err
	}
	c := s.newDisk(n)
	c.source = source
	q := diskCreate.request(c, vm.DiskResource(c.d.ID), source)
	q.reads = []vm.Resource{source}
	q.timeout, q.preemptible = copyTimeout, true
	r, err := s.begin(ctx, q)
	if err != nil {
		return vm.Disk{}, vm.Operation{}, err
	}
	d, err := s.store.Disk(ctx, c.d.ID)
	if err != nil { // the copy has failed by now
		d = c.d
	}
	return d, r.snapshot(), nil
}

func (s *Disks) newDisk(n vm.NewDisk) *diskCreation {
	return &diskCreation{s: s, n: n, d: vm.Disk{
		ID: "disk-" + randomWord(10), DiskFile: vm.DiskFile{SizeMiB: n.SizeMiB},
		MountPoint: n.MountPoint, State: vm.DiskCreating, CreatedAt: now(),
	}}
}

// A diskCreation makes one data disk.
type diskCreation struct {
	s      *Disks
	n      vm.NewDisk
	source vm.Resource // to copy; zero for none
	d      vm.Disk     // as recorded with the intent
	from   *vm.CopySource
	held   []heldImage
}

func (c *diskCreation) intent(ctx context.Context, r *run) (vm.Change, error) {
	var err error
	switch {
	case c.source != vm.Resource{}:
		err = c.copyOf(ctx)
	case c.n.Image != "":
		err = c.overlay(ctx, r)
	}
	recorded := c.d
	return vm.Change{NewDisk: &recorded}, err
}

func (c *diskCreation) overlay(ctx context.Context, r *run) error {
	i, err := c.s.Images.hold(ctx, r, c.n.Image, "/image")
	if err != nil {
		return err
	}
	c.held = append(c.held, i)
	c.d.DiskFile, err = i.Overlay(c.n.SizeMiB, "/size", "/image")
	return err
}

func (c *diskCreation) copyOf(ctx context.Context) error {
	from, err := c.s.copySource(ctx, c.source)
	if err != nil {
		return err
	}
	c.from = &from
	c.d.SizeMiB = c.n.SizeMiB
	if c.n.SizeMiB == 0 {
		c.d.SizeMiB, c.d.ShortBytes = from.File.SizeMiB, from.File.ShortBytes
	}
	if c.d.SizeMiB < from.File.SizeMiB {
		return vm.InvalidField("/size", "must be at least %g GiB, the size of the disk to copy",
			float64(from.File.SizeMiB)/vm.MiBPerGiB)
	}
	c.d.Image = from.File.Image
	return nil
}

func (c *diskCreation) act(ctx context.Context, r *run) (vm.Change, error) {
	if c.from != nil {
		r.report("copy", "from "+c.source.String())
	}
	if err := c.s.driver.CreateDisk(ctx, c.d.ID, c.d.DiskFile, c.from, r.progress); err != nil {
		return vm.Change{}, err
	}
	made := c.d
	made.State = vm.DiskAvailable
	return vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskCreating, Disk: made}}}, nil
}

func (c *diskCreation) truth(ctx context.Context) (vm.Change, error) { return c.s.truth(ctx, c.d.ID) }

func (c *diskCreation) release() { c.s.Images.release(c.held...) }

// sourceOf returns the resource to copy, given its id: the data disk with that id or, if
// there is none, the VM.
func (s *Disks) sourceOf(ctx context.Context, id string) (vm.Resource, error) {
	for _, r := range []vm.Resource{vm.DiskResource(id), vm.VMResource(id)} {
		if recorded, err := s.recorded(ctx, r); recorded || err != nil {
			return r, err
		}
	}
	return vm.Resource{}, vm.InvalidField("/from_disk", "there is no disk and no VM %q", id)
}

// copySource returns what to copy of a disk that nothing uses. It must be called with the
// resource locked.
func (s *Disks) copySource(ctx context.Context, resource vm.Resource) (vm.CopySource, error) {
	if resource.Kind == vm.VMKind {
		v, err := s.VMs.settled(ctx, resource.ID)
		if err == nil && v.State != vm.Stopped {
			err = &vm.Fault{
				Code:   vm.CodeState,
				Detail: fmt.Sprintf("VM %s is not stopped: it is %s", v.ID, v.State),
				Hint:   "stop it first",
			}
		}
		return vm.CopySource{Resource: resource, File: v.Root}, err
	}
	d, err := s.store.Disk(ctx, resource.ID)
	switch {
	case err != nil:
	case d.VMID != "":
		err = attachedFault(d)
	case d.State != vm.DiskAvailable:
		err = d.NotAvailable()
	}
	return vm.CopySource{Resource: resource, File: d.DiskFile}, err
}

func attachedFault(d vm.Disk) *vm.Fault {
	return &vm.Fault{
		Code:   vm.CodeInUse,
		Detail: fmt.Sprintf("disk %s is attached to VM %s", d.ID, d.VMID),
		Hint:   "detach it first",
	}
}

// Delete removes a disk. It fails with [vm.CodeInUse] while the disk is attached, and with
// [vm.CodeBusy] while an operation copies it, unless force cancels that operation.
func (s *Disks) Delete(ctx context.Context, id string, match vm.Match, force bool) error {
	q := diskDelete.request(&diskDeletion{s: s, id: id, match: match}, vm.DiskResource(id))
	q.claim.force = force
	_, err := s.run(ctx, q)
	return err
}

// A diskDeletion is one [Disks.Delete]. The record goes before the file: a kill in between
// leaves a file that the open operation accounts for.
type diskDeletion struct {
	s     *Disks
	id    string
	match vm.Match
}

func (x *diskDeletion) intent(ctx context.Context, _ *run) (vm.Change, error) {
	d, err := x.s.store.Disk(ctx, x.id)
	if err != nil {
		return vm.Change{}, err
	}
	if err := x.match.Check("disk "+x.id, d.Version()); err != nil {
		return vm.Change{}, err
	}
	if d.VMID != "" {
		return vm.Change{}, attachedFault(d)
	}
	return vm.Change{DeleteDisk: x.id}, nil
}

func (x *diskDeletion) act(ctx context.Context, _ *run) (vm.Change, error) {
	return vm.Change{}, x.s.driver.DeleteDisk(ctx, x.id)
}

func (x *diskDeletion) truth(context.Context) (vm.Change, error) { return vm.Change{}, nil }

// truth implements [settler]: a disk that was never finished is removed, and a detach that
// the guest or QEMU has not carried out is asked for again. The disk's VM must be locked
// too.
func (s *Disks) truth(ctx context.Context, id string) (vm.Change, error) {
	d, err := s.store.Disk(ctx, id)
	if err != nil {
		return vm.Change{}, ignoreNotFound(err)
	}
	var seen vm.Observation
	if d.VMID != "" {
		seen = s.driver.Observe(ctx, d.VMID)
	}
	verdict := vm.SettleDisk(d, seen)
	if verdict.Remove {
		if err := s.driver.DeleteDisk(ctx, id); err != nil {
			return vm.Change{}, err
		}
		return vm.Change{DeleteDisk: id}, nil
	}
	if verdict.Unplug && s.driver.DetachDisk(ctx, d) == nil {
		verdict.Detach = true
	} else if verdict.Detach && seen.Alive() {
		// An attach or a detach was interrupted. QEMU may have no device but still hold the
		// file, so that no other VM could use it.
		err := s.driver.DetachDisk(ctx, d)
		if errors.Is(err, vm.ErrUnavailable) { // QEMU still has the disk: the detach continues
			return detaching(d, err), nil
		}
		if err != nil {
			return vm.Change{}, fmt.Errorf("remove the file of disk %s from the QEMU of VM %s: %w", id, d.VMID, err)
		}
	}
	if verdict.Detach {
		return vm.Change{Disks: []vm.DiskUpdate{d.Released("")}}, nil
	}
	return s.fileTruth(ctx, d, verdict.State)
}

// detaching returns the change that records a disk as one that the QEMU of its VM still
// has, and why.
func detaching(d vm.Disk, why error) vm.Change {
	was := d
	d.State, d.Reason = vm.DiskDetaching, vm.ProblemOf(why).Detail
	if d == was {
		return vm.Change{}
	}
	return vm.Change{Disks: []vm.DiskUpdate{{From: was.State, Disk: d}}}
}

// fileTruth compares the record of a disk with its file.
func (s *Disks) fileTruth(ctx context.Context, d vm.Disk, state vm.DiskState) (vm.Change, error) {
	was := d
	d.State = state
	switch size, err := s.driver.DiskSize(ctx, d.ID); {
	case errors.Is(err, vm.ErrNotFound):
		d.State, d.Reason = vm.DiskError, "the disk's file is missing"
	case err != nil:
		return vm.Change{}, err
	default:
		if d.SizeMiB != size {
			d.SizeMiB, d.ShortBytes = size, 0
		}
		if d.State == vm.DiskError {
			d.State, d.Reason = vm.DiskAvailable, ""
			if d.VMID != "" {
				d.State = vm.DiskAttached
			}
		}
	}
	if d == was {
		return vm.Change{}, nil
	}
	return vm.Change{Disks: []vm.DiskUpdate{{From: was.State, Disk: d}}}, nil
}

// stateName implements [settler].
func (s *Disks) stateName(ctx context.Context, id string) (string, error) {
	d, err := s.store.Disk(ctx, id)
	if errors.Is(err, vm.ErrNotFound) {
		return "absent", nil
	}
	return string(d.State), err
}

// unplugged returns the updates of the disks that were being attached or detached when the
// process of their VM ended.
func (s *Disks) unplugged(ctx context.Context, vmID string) ([]vm.DiskUpdate, error) {
	disks, err := s.store.Disks(ctx, vm.DiskFilter{VMID: vmID}, vm.Page{})
	if err != nil {
		return nil, err
	}
	var updates []vm.DiskUpdate
	for _, d := range disks {
		if vm.SettleDisk(d, vm.Observation{}).Detach {
			updates = append(updates, d.Released(""))
		}
	}
	return updates, nil
}
