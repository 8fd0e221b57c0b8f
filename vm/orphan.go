package vm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// What the host has and nobody has recorded is an orphan. It may be a VM newer
// than a database that was restored, so it is only ever touched when somebody
// asks for exactly that, by one of these methods. Each takes the resource as the
// observer reports it: "vms/<id>" or "disks/<id>".

const orphanTimeout = 2 * time.Minute

// AdoptOrphan records what is there: a disk's file as an available disk, a VM's
// files and its process, if it has one, as a VM of the given template.
func (m *Manager) AdoptOrphan(ctx context.Context, resource, template string) (Operation, error) {
	kind, id, _ := strings.Cut(resource, "/")
	var held []Image
	c := change{kind: DiskAdopt, after: func() { m.letGo(held) }, act: func(ctx context.Context, _ *run) (Change, error) {
		file, err := m.driver.AdoptDisk(ctx, id)
		if err == nil {
			held, err = m.believe(ctx, &file, resource)
		}
		return Change{NewDisk: &Disk{ID: id, DiskFile: file, State: DiskAvailable, CreatedAt: now()}}, err
	}}
	if kind == "vms" {
		c.kind, c.act = VMAdopt, func(ctx context.Context, _ *run) (Change, error) { return m.adoptVM(ctx, id, template, &held) }
	}
	return m.orphan(ctx, resource, c)
}

// adoptVM returns the change that records the files of a VM. Its state is what
// the host shows. The images in held are held until it is recorded.
func (m *Manager) adoptVM(ctx context.Context, id, template string, held *[]Image) (Change, error) {
	t, err := m.templateForVM(ctx, template)
	if err != nil {
		return Change{}, err
	}
	known, root, err := m.driver.AdoptVM(ctx, id)
	if err != nil {
		return Change{}, err
	}
	if *held, err = m.believe(ctx, &root, VMResource(id)); err != nil {
		return Change{}, err
	}
	seen := m.driver.Observe(ctx, id)
	verdict := Settle(Stopped, ReasonUnknown, seen)
	if verdict.End {
		return Change{}, &Fault{Code: CodeState, Detail: fmt.Sprintf("the process of VM %s (pid %d) has done its work", id, seen.PID),
			Hint: "terminate it, then adopt the VM's files"}
	}
	v := VM{ID: id, UUID: known, Template: t, State: verdict.State, Reason: verdict.Reason, Desired: DesiredStopped, Root: root,
		Restart: RestartNever, CreatedAt: now()}
	if v.UUID == "" {
		v.UUID = uuid.NewString()
	}
	if live(v) {
		v.Desired, v.StartedAt = DesiredRunning, now()
	}
	// Which NICs it had is not known: most have one, on the default network.
	if err := m.placeNICs(ctx, &v, nil); err != nil && !errors.Is(err, ErrInvalid) {
		return Change{}, err
	}
	m.release(v.NICs) // nobody else places NICs of this VM, and the records refuse what is taken
	return Change{NewVM: &v}, nil
}

// believe checks what the header of a disk that is to be adopted says it is based
// on, and completes it. The header is QEMU's to write, so it may name any file of
// the host: only the operator's own image and those that are recorded are believed.
// It returns the image that it is based on, held.
func (m *Manager) believe(ctx context.Context, f *DiskFile, resource string) ([]Image, error) {
	if f.Base == "" || f.Base == m.o.Base.Base && f.BaseFormat == m.o.Base.BaseFormat {
		return nil, nil
	}
	sum, ok := f.Content()
	if !ok {
		return nil, &Fault{Code: CodeState, Detail: fmt.Sprintf("the disk of %s is based on %s, which is neither an image nor the configured default_boot_disk", resource, f.Base),
			Hint: "if that is right, configure it and adopt it then"}
	}
	m.contents.mu.Lock()
	defer m.contents.mu.Unlock()
	images, err := m.store.Images(ctx, ImageFilter{SHA256: sum, State: ImageAvailable}, Page{Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(images) == 0 || string(images[0].Layout) != f.BaseFormat {
		return nil, &Fault{Code: CodeState, Detail: fmt.Sprintf("the disk of %s is based on content of format %s that no image has: %s", resource, f.BaseFormat, sum),
			Hint: "bring that image in again and adopt it then"}
	}
	f.Image = images[0].Name
	m.contents.hold(sum)
	return images, nil
}

// TerminateOrphan ends a process that no record knows; its files stay.
func (m *Manager) TerminateOrphan(ctx context.Context, resource string) (Operation, error) {
	kind, id, _ := strings.Cut(resource, "/")
	if kind != "vms" {
		return Operation{}, NotFound("orphan process", resource)
	}
	return m.orphan(ctx, resource, change{kind: OrphanTerminate, act: func(ctx context.Context, r *run) (Change, error) {
		if !m.driver.Observe(ctx, id).Alive() {
			return Change{}, &Fault{Code: CodeState, Detail: fmt.Sprintf("%s has no process", resource)}
		}
		if err := m.driver.Shutdown(ctx, id, StopOptions{Force: true}, r.report); err != nil {
			return Change{}, err
		}
		return Change{}, m.network.Disconnect(ctx, id)
	}})
}

// DeleteOrphan removes files that no record knows. Those of a process have to
// wait until that is terminated.
func (m *Manager) DeleteOrphan(ctx context.Context, resource string) (Operation, error) {
	_, id, _ := strings.Cut(resource, "/")
	return m.orphan(ctx, resource, change{kind: OrphanDelete, act: func(ctx context.Context, _ *run) (Change, error) {
		if strings.HasPrefix(resource, "vms/") && m.driver.Observe(ctx, id).Alive() {
			return Change{}, &Fault{Code: CodeState, Detail: fmt.Sprintf("%s still has a process", resource), Hint: "terminate it first"}
		}
		if strings.HasPrefix(resource, "images/") {
			if err := m.checkUnneeded(ctx, id); err != nil {
				return Change{}, err
			}
		}
		return Change{}, m.finishOrphanDelete(ctx, resource)
	}})
}

// checkUnneeded reports the first orphan that is based on content, which the records
// do not tell: without the content nothing of it could be read any more.
func (m *Manager) checkUnneeded(ctx context.Context, sha256 string) error {
	seen, err := m.driver.Survey(ctx)
	if err != nil {
		return err
	}
	files := map[string]func(context.Context, string) (DiskFile, error){}
	for id := range seen.DiskFiles {
		files[DiskResource(id)] = m.driver.AdoptDisk
	}
	for id := range seen.VMFiles {
		files[VMResource(id)] = func(ctx context.Context, id string) (DiskFile, error) {
			_, root, err := m.driver.AdoptVM(ctx, id)
			return root, err
		}
	}
	for resource, look := range files {
		if recorded, err := m.recorded(ctx, resource); err != nil || recorded {
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
			return &Fault{Code: CodeInUse, Detail: fmt.Sprintf("the disk of %s, which is not recorded either, is based on content %s", resource, sha256),
				Hint: "delete that first, or bring the image in again and adopt it"}
		}
	}
	return nil
}

func (m *Manager) finishOrphanDelete(ctx context.Context, resource string) error {
	recorded, err := m.recorded(ctx, resource)
	if err != nil || recorded {
		return err
	}
	kind, id, _ := strings.Cut(resource, "/")
	if kind == "images" {
		m.contents.mu.Lock()
		defer m.contents.mu.Unlock()
		return m.dropContent(ctx, id)
	}
	if kind == "vms" {
		if err := m.network.Disconnect(ctx, id); err != nil { // a kill may have come between this and the process's end
			return err
		}
		return m.driver.DeleteVM(ctx, id)
	}
	return m.driver.DeleteDisk(ctx, id)
}

// orphan runs an operation on something that is there and not recorded.
func (m *Manager) orphan(ctx context.Context, resource string, c change) (Operation, error) {
	kind, id, _ := strings.Cut(resource, "/")
	known := (kind == "vms" || kind == "disks") && ValidName(id) || kind == "images" && ValidContent(id)
	if !known || kind == "images" && c.kind != OrphanDelete {
		return Operation{}, NotFound("orphan", resource)
	}
	c.resources, c.timeout = []string{resource}, orphanTimeout
	c.intent = func(ctx context.Context, _ *run) (Change, error) {
		recorded, err := m.recorded(ctx, resource)
		if err == nil && recorded {
			err = &Fault{Code: CodeState, Detail: resource + " is no orphan: it is recorded"}
		}
		if err == nil && !m.there(ctx, kind, id) {
			err = NotFound("orphan", resource)
		}
		return Change{}, err
	}
	c.truth = func(context.Context) (Change, error) { return Change{}, nil }
	r, err := m.begin(ctx, c)
	if err != nil {
		return Operation{}, err
	}
	return r.wait(ctx)
}

func (m *Manager) recorded(ctx context.Context, resource string) (bool, error) {
	kind, id, _ := strings.Cut(resource, "/")
	var err error
	switch kind {
	case "vms":
		_, err = m.store.VM(ctx, id)
	case "images": // by its content
		images, err := m.store.Images(ctx, ImageFilter{SHA256: id}, Page{Limit: 1})
		return len(images) > 0, err
	default:
		_, err = m.store.Disk(ctx, id)
	}
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// there reports whether the host has a process or files of the thing.
func (m *Manager) there(ctx context.Context, kind, id string) bool {
	if kind == "images" {
		has, err := m.driver.HasImage(ctx, id)
		return has || err != nil
	}
	if kind == "disks" {
		_, err := m.driver.DiskSize(ctx, id)
		return !errors.Is(err, ErrNotFound)
	}
	has, err := m.driver.HasVM(ctx, id)
	return has || err != nil || m.driver.Observe(ctx, id).Alive()
}
