package manager

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vmand/vm"

	"github.com/google/uuid"
)

// What the host has and nobody has recorded is an orphan. It may be a VM newer
// than a database that was restored, so it is only ever touched when somebody
// asks for exactly that, by one of these methods. Each takes the resource as the
// observer reports it: "vms/<id>" or "disks/<id>".

const orphanTimeout = 2 * time.Minute

// Adopt records what is there: a disk's file as an available disk, a VM's
// files and its process, if it has one, as a VM of the given template.
func (s *Orphans) Adopt(ctx context.Context, resource, template string) (vm.Operation, error) {
	kind, id, _ := strings.Cut(resource, "/")
	var held []vm.Image
	c := change{kind: vm.DiskAdopt, after: func() { s.Images.release(held) }, act: func(ctx context.Context, _ *run) (vm.Change, error) {
		file, err := s.driver.AdoptDisk(ctx, id)
		if err == nil {
			held, err = s.Images.verifyBacking(ctx, &file, resource)
		}
		return vm.Change{NewDisk: &vm.Disk{ID: id, DiskFile: file, State: vm.DiskAvailable, CreatedAt: now()}}, err
	}}
	if kind == "vms" {
		c.kind, c.act = vm.VMAdopt, func(ctx context.Context, _ *run) (vm.Change, error) { return s.adoptVM(ctx, id, template, &held) }
	}
	return s.run(ctx, resource, c)
}

// adoptVM returns the change that records the files of a VM. Its state is what
// the host shows. The images in held are held until it is recorded.
func (s *Orphans) adoptVM(ctx context.Context, id, template string, held *[]vm.Image) (vm.Change, error) {
	t, err := s.VMs.templateForVM(ctx, template)
	if err != nil {
		return vm.Change{}, err
	}
	known, root, err := s.driver.AdoptVM(ctx, id)
	if err != nil {
		return vm.Change{}, err
	}
	if *held, err = s.Images.verifyBacking(ctx, &root, vm.VMResource(id)); err != nil {
		return vm.Change{}, err
	}
	seen := s.driver.Observe(ctx, id)
	verdict := vm.Settle(vm.Stopped, vm.ReasonUnknown, seen)
	if verdict.End {
		return vm.Change{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("the process of VM %s (pid %d) has done its work", id, seen.PID),
			Hint: "terminate it, then adopt the VM's files"}
	}
	v := vm.VM{ID: id, UUID: known, Template: t, State: verdict.State, Reason: verdict.Reason, Desired: vm.DesiredStopped, Root: root,
		Restart: vm.RestartNever, CreatedAt: now()}
	if v.UUID == "" {
		v.UUID = uuid.NewString()
	}
	if vm.Live(v) {
		v.Desired, v.StartedAt = vm.DesiredRunning, now()
	}
	// Which NICs it had is not known: most have one, on the default network.
	if err := s.NICs.placeAll(ctx, &v, nil); err != nil && !errors.Is(err, vm.ErrInvalid) {
		return vm.Change{}, err
	}
	s.NICs.release(v.NICs) // nobody else places NICs of this VM, and the records refuse what is taken
	return vm.Change{NewVM: &v}, nil
}

// verifyBacking checks what the header of a disk that is to be adopted says it is based
// on, and completes it. The header is QEMU's to write, so it may name any file of
// the host: only the operator's own image and those that are recorded are believed.
// It returns the image that it is based on, held.
func (s *Images) verifyBacking(ctx context.Context, f *vm.DiskFile, resource string) ([]vm.Image, error) {
	if f.Base == "" || f.Base == s.o.Base.Base && f.BaseFormat == s.o.Base.BaseFormat {
		return nil, nil
	}
	sum, ok := f.Content()
	if !ok {
		return nil, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("the disk of %s is based on %s, which is neither an image nor the configured default_boot_disk", resource, f.Base),
			Hint: "if that is right, configure it and adopt it then"}
	}
	s.contents.mu.Lock()
	defer s.contents.mu.Unlock()
	images, err := s.store.Images(ctx, vm.ImageFilter{SHA256: sum, State: vm.ImageAvailable}, vm.Page{Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(images) == 0 || string(images[0].Layout) != f.BaseFormat {
		return nil, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("the disk of %s is based on content of format %s that no image has: %s", resource, f.BaseFormat, sum),
			Hint: "bring that image in again and adopt it then"}
	}
	f.Image = images[0].Name
	s.contents.hold(sum)
	return images, nil
}

// Terminate ends a process that no record knows; its files stay.
func (s *Orphans) Terminate(ctx context.Context, resource string) (vm.Operation, error) {
	kind, id, _ := strings.Cut(resource, "/")
	if kind != "vms" {
		return vm.Operation{}, vm.NotFound("orphan process", resource)
	}
	return s.run(ctx, resource, change{kind: vm.OrphanTerminate, act: func(ctx context.Context, r *run) (vm.Change, error) {
		if !s.driver.Observe(ctx, id).Alive() {
			return vm.Change{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("%s has no process", resource)}
		}
		if err := s.driver.Shutdown(ctx, id, vm.StopOptions{Force: true}, r.report); err != nil {
			return vm.Change{}, err
		}
		return vm.Change{}, s.network.Disconnect(ctx, id)
	}})
}

// Delete removes files that no record knows. Those of a process have to
// wait until that is terminated.
func (s *Orphans) Delete(ctx context.Context, resource string) (vm.Operation, error) {
	_, id, _ := strings.Cut(resource, "/")
	return s.run(ctx, resource, change{kind: vm.OrphanDelete, act: func(ctx context.Context, _ *run) (vm.Change, error) {
		if strings.HasPrefix(resource, "vms/") && s.driver.Observe(ctx, id).Alive() {
			return vm.Change{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("%s still has a process", resource), Hint: "terminate it first"}
		}
		if strings.HasPrefix(resource, "images/") {
			if err := s.checkUnneeded(ctx, id); err != nil {
				return vm.Change{}, err
			}
		}
		return vm.Change{}, s.finishDelete(ctx, resource)
	}})
}

// checkUnneeded reports the first orphan that is based on content, which the records
// do not tell: without the content nothing of it could be read any more.
func (s *Orphans) checkUnneeded(ctx context.Context, sha256 string) error {
	seen, err := s.driver.Survey(ctx)
	if err != nil {
		return err
	}
	files := map[string]func(context.Context, string) (vm.DiskFile, error){}
	for id := range seen.DiskFiles {
		files[vm.DiskResource(id)] = s.driver.AdoptDisk
	}
	for id := range seen.VMFiles {
		files[vm.VMResource(id)] = func(ctx context.Context, id string) (vm.DiskFile, error) {
			_, root, err := s.driver.AdoptVM(ctx, id)
			return root, err
		}
	}
	for resource, look := range files {
		if recorded, err := s.recorded(ctx, resource); err != nil || recorded {
			if err != nil {
				return err
			}
			continue
		}
		_, id, _ := strings.Cut(resource, "/")
		file, err := look(ctx, id)
		if err != nil && seen.VMs[id].Alive() { // it may be a QEMU that does not answer
			return err
		}
		// What else cannot be read is nothing that could be adopted.
		if base, _ := file.Content(); err == nil && base == sha256 {
			return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("the disk of %s, which is not recorded either, is based on content %s", resource, sha256),
				Hint: "delete that first, or bring the image in again and adopt it"}
		}
	}
	return nil
}

func (s *Orphans) finishDelete(ctx context.Context, resource string) error {
	recorded, err := s.recorded(ctx, resource)
	if err != nil || recorded {
		return err
	}
	kind, id, _ := strings.Cut(resource, "/")
	if kind == "images" {
		s.contents.mu.Lock()
		defer s.contents.mu.Unlock()
		return s.Images.dropContent(ctx, id)
	}
	if kind == "vms" {
		if err := s.network.Disconnect(ctx, id); err != nil { // a kill may have come between this and the process's end
			return err
		}
		return s.driver.DeleteVM(ctx, id)
	}
	return s.driver.DeleteDisk(ctx, id)
}

// run runs an operation on something that is there and not recorded.
func (s *Orphans) run(ctx context.Context, resource string, c change) (vm.Operation, error) {
	kind, id, _ := strings.Cut(resource, "/")
	known := (kind == "vms" || kind == "disks") && vm.ValidName(id) || kind == "images" && vm.ValidContent(id)
	if !known || kind == "images" && c.kind != vm.OrphanDelete {
		return vm.Operation{}, vm.NotFound("orphan", resource)
	}
	c.resources, c.timeout = []string{resource}, orphanTimeout
	c.intent = func(ctx context.Context, _ *run) (vm.Change, error) {
		recorded, err := s.recorded(ctx, resource)
		if err == nil && recorded {
			err = &vm.Fault{Code: vm.CodeState, Detail: resource + " is no orphan: it is recorded"}
		}
		if err == nil && !s.existsOnHost(ctx, kind, id) {
			err = vm.NotFound("orphan", resource)
		}
		return vm.Change{}, err
	}
	c.truth = func(context.Context) (vm.Change, error) { return vm.Change{}, nil }
	r, err := s.begin(ctx, c)
	if err != nil {
		return vm.Operation{}, err
	}
	return r.wait(ctx)
}

func (e *Engine) recorded(ctx context.Context, resource string) (bool, error) {
	kind, id, _ := strings.Cut(resource, "/")
	var err error
	switch kind {
	case "vms":
		_, err = e.store.VM(ctx, id)
	case "images": // by its content
		images, err := e.store.Images(ctx, vm.ImageFilter{SHA256: id}, vm.Page{Limit: 1})
		return len(images) > 0, err
	default:
		_, err = e.store.Disk(ctx, id)
	}
	if errors.Is(err, vm.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// existsOnHost reports whether the host has a process or files of the thing.
func (s *Orphans) existsOnHost(ctx context.Context, kind, id string) bool {
	if kind == "images" {
		has, err := s.driver.HasImage(ctx, id)
		return has || err != nil
	}
	if kind == "disks" {
		_, err := s.driver.DiskSize(ctx, id)
		return !errors.Is(err, vm.ErrNotFound)
	}
	has, err := s.driver.HasVM(ctx, id)
	return has || err != nil || s.driver.Observe(ctx, id).Alive()
}
