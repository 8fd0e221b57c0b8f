package manager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"vmand/vm"
)

// Orphans adopts, terminates and deletes unrecorded processes and files. An orphan may be a VM
// that is newer than a restored database, so vmand changes it only on an explicit request.
type Orphans struct{ *Engine }

const orphanTimeout = 2 * time.Minute

var vmAdopt = verb{
	kind: vm.VMAdopt, timeout: orphanTimeout,
	cleanup: leavesNothing, reached: exists(true), answer: vm.AnswerOperation,
}

var diskAdopt = verb{
	kind: vm.DiskAdopt, timeout: orphanTimeout,
	cleanup: leavesNothing, reached: diskReaches(vm.DiskAvailable), answer: vm.AnswerOperation,
}

var orphanTerminate = verb{
	kind: vm.OrphanTerminate, timeout: orphanTimeout,
	cleanup: leavesNothing, reached: neverKnown, answer: vm.AnswerOperation,
	points: []string{"stop.quit", "stop.exited", "run.removed"},
}

var orphanDelete = verb{
	kind: vm.OrphanDelete, timeout: orphanTimeout,
	cleanup: finishOrphanDelete, reached: neverKnown, answer: vm.AnswerOperation,
	points: []string{"files.removed"},
}

// An orphanWork is what differs between the operations on an orphan.
type orphanWork interface {
	act(context.Context, *run) (vm.Change, error)
}

// An orphanAction runs an orphanWork on an orphan.
type orphanAction struct {
	orphanWork
	s        *Orphans
	resource vm.Resource
}

func (a *orphanAction) intent(ctx context.Context, _ *run) (vm.Change, error) {
	known, err := a.s.known(ctx, a.resource)
	if err == nil && known {
		err = &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("%s is no orphan: it is recorded", a.resource)}
	}
	if err == nil && !a.s.existsOnHost(ctx, a.resource) {
		err = vm.NotFound("orphan", a.resource.String())
	}
	return vm.Change{}, err
}

func (a *orphanAction) truth(context.Context) (vm.Change, error) { return vm.Change{}, nil }

func (a *orphanAction) release() {
	if held, ok := a.orphanWork.(releaser); ok {
		held.release()
	}
}

func (s *Orphans) work(ctx context.Context, v *verb, resource vm.Resource, w orphanWork) (vm.Operation, error) {
	valid := (resource.Kind == vm.VMKind || resource.Kind == vm.DiskKind) && vm.ValidName(resource.ID) ||
		resource.Kind == vm.ImageKind && vm.ValidContent(resource.ID) && v == &orphanDelete
	if !valid {
		return vm.Operation{}, vm.NotFound("orphan", resource.String())
	}
	return s.run(ctx, v.request(&orphanAction{orphanWork: w, s: s, resource: resource}, resource))
}

// known reports whether the records have a VM or a disk, or an image of the content that an
// orphan of kind images is.
func (s *Orphans) known(ctx context.Context, resource vm.Resource) (bool, error) {
	if resource.Kind != vm.ImageKind {
		return s.recorded(ctx, resource)
	}
	images, err := s.store.Images(ctx, vm.ImageFilter{SHA256: resource.ID}, vm.Page{Limit: 1})
	return len(images) > 0, err
}

// existsOnHost reports whether the host has a process or files of the resource. It is true
// also if that cannot be found out.
func (s *Orphans) existsOnHost(ctx context.Context, resource vm.Resource) bool {
	switch resource.Kind {
	case vm.ImageKind:
		has, err := s.driver.HasImage(ctx, resource.ID)
		return has || err != nil
	case vm.DiskKind:
		_, err := s.driver.DiskSize(ctx, resource.ID)
		return !errors.Is(err, vm.ErrNotFound)
	}
	has, err := s.driver.HasVM(ctx, resource.ID)
	return has || err != nil || s.driver.Observe(ctx, resource.ID).Alive()
}

// Adopt records an orphan: the file of a disk as an available disk; the files of a VM, and
// its process if it has one, as a VM of the template.
func (s *Orphans) Adopt(ctx context.Context, resource vm.Resource, template string) (vm.Operation, error) {
	if resource.Kind == vm.VMKind {
		return s.work(ctx, &vmAdopt, resource, &vmAdoption{s: s, id: resource.ID, template: template})
	}
	return s.work(ctx, &diskAdopt, resource, &diskAdoption{s: s, id: resource.ID})
}

// A diskAdoption is one [Orphans.Adopt] of a disk.
type diskAdoption struct {
	s    *Orphans
	id   string
	held []heldImage
}

func (a *diskAdoption) act(ctx context.Context, r *run) (_ vm.Change, err error) {
	d := vm.Disk{ID: a.id, State: vm.DiskAvailable, CreatedAt: now()}
	if d.DiskFile, err = a.s.driver.AdoptDisk(ctx, a.id); err != nil {
		return vm.Change{}, err
	}
	a.held, err = a.s.Images.verifyBacking(ctx, r, &d.DiskFile, vm.DiskResource(a.id))
	return vm.Change{NewDisk: &d}, err
}

func (a *diskAdoption) release() { a.s.Images.release(a.held...) }

// A vmAdoption is one [Orphans.Adopt] of a VM. It records the observed state.
type vmAdoption struct {
	s            *Orphans
	id, template string
	held         []heldImage
}

func (a *vmAdoption) act(ctx context.Context, r *run) (vm.Change, error) {
	t, err := a.s.VMs.template(ctx, a.template)
	if err != nil {
		return vm.Change{}, err
	}
	known, root, err := a.s.driver.AdoptVM(ctx, a.id)
	if err != nil {
		return vm.Change{}, err
	}
	if a.held, err = a.s.Images.verifyBacking(ctx, r, &root, vm.VMResource(a.id)); err != nil {
		return vm.Change{}, err
	}
	seen := a.s.driver.Observe(ctx, a.id)
	verdict := vm.Settle(vm.Stopped, vm.ReasonUnknown, seen)
	if verdict.End {
		return vm.Change{}, &vm.Fault{
			Code:   vm.CodeState,
			Detail: fmt.Sprintf("the process of VM %s (pid %d) has done its work", a.id, seen.PID),
			Hint:   "terminate it, then adopt the VM's files",
		}
	}
	v := vm.VM{
		ID: a.id, UUID: known, Template: t,
		State: verdict.State, Reason: verdict.Reason, Desired: vm.DesiredStopped, Restart: vm.RestartNever,
		Root: root, CreatedAt: now(),
	}
	if v.UUID == "" {
		v.UUID = uuid.NewString()
	}
	if v.Live() {
		v.Desired, v.StartedAt = vm.DesiredRunning, now()
	}
	// Which NICs it had is not known: most VMs have one, on the default network.
	if err := a.s.NICs.placeAll(ctx, &v, nil); err != nil && !errors.Is(err, vm.ErrInvalid) {
		return vm.Change{}, err
	}
	a.s.NICs.release(v.NICs) // no other operation places NICs of this VM, and the store refuses a taken address
	return vm.Change{NewVM: &v}, nil
}

func (a *vmAdoption) release() { a.s.Images.release(a.held...) }

// verifyBacking checks what the header of an adopted disk says it is based on, and completes
// f. QEMU can write the header, so it may name any file of the host: only the operator's own
// boot image and recorded images are accepted. It returns the image f is based on, held.
func (s *Images) verifyBacking(
	ctx context.Context, r *run, f *vm.DiskFile, resource vm.Resource,
) ([]heldImage, error) {
	if f.Base == "" || f.Base == s.o.Base.Base && f.BaseFormat == s.o.Base.BaseFormat {
		return nil, nil
	}
	sum, ok := f.Content()
	if !ok {
		return nil, &vm.Fault{
			Code: vm.CodeState,
			Detail: fmt.Sprintf("the disk of %s is based on %s, which is neither an image nor the configured default_boot_disk",
				resource, f.Base),
			Hint: "if that is right, configure it and adopt it then",
		}
	}
	s.contents.Lock()
	defer s.contents.Unlock()
	images, err := s.store.Images(ctx, vm.ImageFilter{SHA256: sum, State: vm.ImageAvailable}, vm.Page{Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(images) == 0 || string(images[0].Layout) != f.BaseFormat {
		return nil, &vm.Fault{
			Code: vm.CodeState,
			Detail: fmt.Sprintf("the disk of %s is based on content of format %s that no image has: %s",
				resource, f.BaseFormat, sum),
			Hint: "bring that image in again and adopt it then",
		}
	}
	f.Image = images[0].Name
	return []heldImage{s.holdLocked(r, images[0])}, nil
}

// Terminate ends a process that no record knows; its files stay.
func (s *Orphans) Terminate(ctx context.Context, resource vm.Resource) (vm.Operation, error) {
	if resource.Kind != vm.VMKind {
		return vm.Operation{}, vm.NotFound("orphan process", resource.String())
	}
	return s.work(ctx, &orphanTerminate, resource, &termination{s: s, resource: resource})
}

// A termination is one [Orphans.Terminate].
type termination struct {
	s        *Orphans
	resource vm.Resource
}

func (x *termination) act(ctx context.Context, r *run) (vm.Change, error) {
	id := x.resource.ID
	if !x.s.driver.Observe(ctx, id).Alive() {
		return vm.Change{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("%s has no process", x.resource)}
	}
	if err := x.s.driver.Shutdown(ctx, id, vm.StopOptions{Force: true}, r.report); err != nil {
		return vm.Change{}, err
	}
	return vm.Change{}, x.s.network.Disconnect(ctx, id)
}

// Delete removes files that no record knows. It fails while a process uses them.
func (s *Orphans) Delete(ctx context.Context, resource vm.Resource) (vm.Operation, error) {
	return s.work(ctx, &orphanDelete, resource, &orphanDeletion{s: s, resource: resource})
}

// An orphanDeletion is one [Orphans.Delete].
type orphanDeletion struct {
	s        *Orphans
	resource vm.Resource
}

func (x *orphanDeletion) act(ctx context.Context, _ *run) (vm.Change, error) {
	switch x.resource.Kind {
	case vm.VMKind:
		if x.s.driver.Observe(ctx, x.resource.ID).Alive() {
			return vm.Change{}, &vm.Fault{
				Code: vm.CodeState, Detail: fmt.Sprintf("%s still has a process", x.resource), Hint: "terminate it first",
			}
		}
	case vm.ImageKind:
		if err := x.s.checkUnneeded(ctx, x.resource.ID); err != nil {
			return vm.Change{}, err
		}
	}
	return vm.Change{}, x.s.remove(ctx, x.resource)
}

// checkUnneeded fails with [vm.CodeInUse] if another orphan is based on the content, because
// that orphan would become unreadable.
func (s *Orphans) checkUnneeded(ctx context.Context, sha256 string) error {
	seen, err := s.driver.Survey(ctx)
	if err != nil {
		return err
	}
	var others []vm.Resource
	for id := range seen.DiskFiles {
		others = append(others, vm.DiskResource(id))
	}
	for id := range seen.VMFiles {
		others = append(others, vm.VMResource(id))
	}
	for _, r := range others {
		recorded, err := s.recorded(ctx, r)
		if err != nil {
			return err
		}
		if recorded {
			continue
		}
		file, err := s.fileOf(ctx, r)
		if err != nil && seen.VMs[r.ID].Alive() { // a QEMU that does not answer may use it
			return err
		}
		// A file that cannot be read cannot be adopted either.
		if base, _ := file.Content(); err == nil && base == sha256 {
			return &vm.Fault{
				Code:   vm.CodeInUse,
				Detail: fmt.Sprintf("the disk of %s, another orphan, is based on content %s", r, sha256),
				Hint:   "delete that first, or bring the image in again and adopt it",
			}
		}
	}
	return nil
}

// fileOf returns the disk file of an orphan, as described by its header.
func (s *Orphans) fileOf(ctx context.Context, r vm.Resource) (vm.DiskFile, error) {
	if r.Kind == vm.DiskKind {
		return s.driver.AdoptDisk(ctx, r.ID)
	}
	_, root, err := s.driver.AdoptVM(ctx, r.ID)
	return root, err
}

// finishOrphanDelete is the cleanup of an interrupted deletion.
func finishOrphanDelete(ctx context.Context, e *Engine, op vm.Operation) error {
	return e.Orphans.remove(ctx, op.Resource)
}

// remove removes the files of an orphan, unless it was recorded meanwhile.
func (s *Orphans) remove(ctx context.Context, resource vm.Resource) error {
	known, err := s.known(ctx, resource)
	if err != nil || known {
		return err
	}
	switch resource.Kind {
	case vm.ImageKind:
		s.Images.contents.Lock()
		defer s.Images.contents.Unlock()
		return s.Images.dropContent(ctx, resource.ID)
	case vm.DiskKind:
		return s.driver.DeleteDisk(ctx, resource.ID)
	}
	// A kill may have come between the end of the process and this.
	if err := s.network.Disconnect(ctx, resource.ID); err != nil {
		return err
	}
	return s.driver.DeleteVM(ctx, resource.ID)
}
