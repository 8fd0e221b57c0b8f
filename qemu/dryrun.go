package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"vmand/host"
	"vmand/qemu/image"
	"vmand/vm"
)

// DryRun implements [vm.Driver] without QEMU: it starts nothing, and disks are
// small placeholder files. Images are real. A running VM is a marker file in the
// runtime directory, so a restarted vmand finds it running.
type DryRun struct {
	*contents
	*news
	layout layout
	state  *os.Root
	files  *fileSurvey

	mu       sync.Mutex // guards consoles and all files
	consoles map[string]*serialHub
}

var _ vm.Driver = (*DryRun)(nil)

// pretended is the content of a marker: the state of a VM that seems to run.
type pretended struct {
	Status  vm.RunStatus `json:"status"`
	Plugged []string     `json:"plugged"`
	NICs    []int        `json:"nics"`
	CDROMs  []string     `json:"cdroms"`
}

// placeholder is the content of a disk's file.
type placeholder struct {
	Note       string `json:"note"`
	SizeMiB    int64  `json:"size_mib"`
	ShortBytes int64  `json:"short_bytes,omitempty"`
	Base       string `json:"base,omitempty"`
	BaseFormat string `json:"base_format,omitempty"`
}

// NewDryRun prepares the directories of a dry run.
func NewDryRun(o Options) (*DryRun, error) {
	l, err := newLayout(o.StateDir, o.RuntimeDir)
	if err == nil {
		err = l.create(host.Account{})
	}
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	state, err := os.OpenRoot(l.state)
	if err != nil {
		return nil, fmt.Errorf("qemu: open state directory: %w", err)
	}
	d := &DryRun{layout: l, state: state, news: newNews()}
	if d.contents, err = openContents(l, host.Account{}, o.Images); err != nil {
		state.Close()
		return nil, fmt.Errorf("qemu: %w", err)
	}
	d.files = newFileSurvey(state, func(id string) (int64, error) { return d.DiskSize(context.Background(), id) })
	return d, nil
}

// Close releases the directories.
func (d *DryRun) Close() error {
	d.endConsoles()
	return errors.Join(d.contents.close(), d.state.Close())
}

// Platform implements [vm.Machines].
func (d *DryRun) Platform(context.Context) (vm.Platform, error) {
	return vm.Platform{
		Version: "0.0.0",
		Machine: "dry-run",
		Accel:   vm.TCG,
		Warning: "dry run: no VM is really started",
	}, nil
}

// Limits implements [vm.Machines] with the limits of QEMU under TCG.
func (d *DryRun) Limits(context.Context) vm.Limits {
	return vm.Limits{CPUs: maxCPUs, RAMMiB: maxRAMMiB(tcgPhysBits)}
}

// GuestUID returns -1: no process runs a guest.
func (d *DryRun) GuestUID() int { return -1 }

// CheckTools reports that no program is missing, because none is needed.
func (d *DryRun) CheckTools(ctx context.Context) Tools {
	p, _ := d.Platform(ctx)
	return Tools{QEMU: Tool{Version: "dry-run"}, Img: Tool{Version: "dry-run"}, Accel: p.Accel, Warning: p.Warning}
}

// Admit implements [vm.Machines].
func (d *DryRun) Admit(_ context.Context, s vm.Spec) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.marker(s.ID) != nil {
		return fault(vm.CodeState, nil, "VM %s already runs", s.ID)
	}
	if _, err := d.state.Stat(vmRootDisk(s.ID)); err != nil {
		return fault(vm.CodeOperationFailed, err, "the root disk of VM %s is missing", s.ID)
	}
	return nil
}

// Start implements [vm.Machines].
func (d *DryRun) Start(_ context.Context, s vm.Spec, report vm.Report) (vm.Boot, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := pretended{Status: vm.StatusRunning, Plugged: []string{}, NICs: []int{}, CDROMs: idsOf(s.CDROMs)}
	for _, disk := range s.Disks {
		m.Plugged = append(m.Plugged, disk.ID)
	}
	for _, p := range s.Ports {
		m.NICs = append(m.NICs, p.Slot)
	}
	say(report, "launch", "dry run: nothing is started")
	boot := vm.Boot{Spawned: time.Now().UTC().Truncate(time.Millisecond)}
	err := d.writeMarker(s.ID, m)
	d.nudge(s.ID)
	return boot, err
}

// Shutdown implements [vm.Machines]. The guest of a dry run obeys at once.
func (d *DryRun) Shutdown(_ context.Context, id string, o vm.StopOptions, report vm.Report) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.marker(id) == nil {
		return nil
	}
	if !o.Force {
		say(report, "acpi", "dry run: the guest powers off")
	}
	say(report, "quit", "dry run: there is no process to end")
	d.endConsole(id, io.EOF)
	err := os.Remove(d.layout.inRun(id, drySuffix))
	d.nudge(id)
	return fileFault(err, "end VM %s", id)
}

// Control implements [vm.Machines].
func (d *DryRun) Control(_ context.Context, id string, op vm.Op) error {
	status := vm.StatusRunning
	if op == vm.OpPause {
		status = vm.StatusPaused
	}
	return d.become(id, status)
}

// become changes the run state of a VM that has a marker.
func (d *DryRun) become(id string, s vm.RunStatus) error {
	return d.change(id, func(m *pretended) { m.Status = s })
}

// AttachDisk implements [vm.Plugger].
func (d *DryRun) AttachDisk(_ context.Context, disk vm.Disk) error {
	return d.change(disk.VMID, func(m *pretended) {
		if !slices.Contains(m.Plugged, disk.ID) {
			m.Plugged = append(m.Plugged, disk.ID)
		}
	})
}

// DetachDisk implements [vm.Plugger].
func (d *DryRun) DetachDisk(_ context.Context, disk vm.Disk) error {
	err := d.change(disk.VMID, func(m *pretended) {
		m.Plugged = slices.DeleteFunc(m.Plugged, func(id string) bool { return id == disk.ID })
	})
	if errors.Is(err, vm.ErrState) {
		return nil
	}
	return err
}

// AttachNIC implements [vm.Plugger].
func (d *DryRun) AttachNIC(_ context.Context, vmID string, p vm.Port) error {
	return d.change(vmID, func(m *pretended) {
		if !slices.Contains(m.NICs, p.Slot) {
			m.NICs = append(m.NICs, p.Slot)
			slices.Sort(m.NICs)
		}
	})
}

// DetachNIC implements [vm.Plugger]. The guest of a dry run releases it at once.
func (d *DryRun) DetachNIC(_ context.Context, vmID string, slot int) error {
	err := d.change(vmID, func(m *pretended) {
		m.NICs = slices.DeleteFunc(m.NICs, func(n int) bool { return n == slot })
	})
	if errors.Is(err, vm.ErrState) {
		return nil
	}
	return err
}

// SetLink implements [vm.Plugger].
func (d *DryRun) SetLink(_ context.Context, vmID string, _ int, _ bool) error {
	return d.change(vmID, func(*pretended) {})
}

// SetForwards implements [vm.Plugger]. Nothing listens.
func (d *DryRun) SetForwards(_ context.Context, vmID string, _ int, _, _ []vm.PortForward) error {
	return d.change(vmID, func(*pretended) {})
}

// SetCDROMs implements [vm.Plugger].
func (d *DryRun) SetCDROMs(_ context.Context, vmID string, want []vm.CDROM) error {
	return d.change(vmID, func(m *pretended) { m.CDROMs = idsOf(want) })
}

// change rewrites the marker of a VM, which must have one.
func (d *DryRun) change(id string, f func(*pretended)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.marker(id)
	if m == nil {
		return fault(vm.CodeState, nil, "VM %s does not run", id)
	}
	f(m)
	return d.writeMarker(id, *m)
}

// marker returns the marker of a VM, nil if it has none. d.mu must be held.
func (d *DryRun) marker(id string) *pretended {
	b, err := os.ReadFile(d.layout.inRun(id, drySuffix))
	if err != nil {
		return nil
	}
	m := &pretended{Plugged: []string{}, NICs: []int{}, CDROMs: []string{}}
	if json.Unmarshal(b, m) != nil {
		return nil
	}
	return m
}

// writeMarker writes the marker of a VM. d.mu must be held.
func (d *DryRun) writeMarker(id string, m pretended) error {
	b, err := json.Marshal(m)
	if err == nil {
		err = os.WriteFile(d.layout.inRun(id, drySuffix), b, 0o600)
	}
	return fileFault(err, "write the marker of VM %s", id)
}

// HasVM implements [vm.Files].
func (d *DryRun) HasVM(_ context.Context, id string) (bool, error) {
	_, err := d.state.Lstat(vmDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, fileFault(err, "look for files of VM %s", id)
}

// CreateVM implements [vm.Files]. A copy is an empty placeholder, made at once.
func (d *DryRun) CreateVM(
	_ context.Context, id string, root vm.DiskFile, _ *vm.CopySource, _ func(done, total int64),
) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.state.Mkdir(vmDir(id), 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fault(vm.CodeExists, nil, "files of a VM %s already exist", id)
		}
		return fileFault(err, "make the directory of VM %s", id)
	}
	return d.write(vmRootDisk(id), placeholder{SizeMiB: root.SizeMiB, ShortBytes: root.ShortBytes, Base: root.Base, BaseFormat: root.BaseFormat})
}

// DeleteVM implements [vm.Files].
func (d *DryRun) DeleteVM(_ context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endConsole(id, io.EOF)
	d.layout.removeRun(id, drySuffix)
	return fileFault(d.state.RemoveAll(vmDir(id)), "remove the files of VM %s", id)
}

// CreateDisk implements [vm.Files], as CreateVM does.
func (d *DryRun) CreateDisk(
	_ context.Context, id string, file vm.DiskFile, _ *vm.CopySource, _ func(done, total int64),
) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.state.Lstat(dataDisk(id)); err == nil {
		return fault(vm.CodeExists, nil, "the file of a disk %s already exists", id)
	}
	return d.write(dataDisk(id), placeholder{SizeMiB: file.SizeMiB, ShortBytes: file.ShortBytes, Base: file.Base, BaseFormat: file.BaseFormat})
}

// WriteSeed implements [vm.Files].
func (d *DryRun) WriteSeed(_ context.Context, vmID string, files map[string][]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fileFault(writeSeed(d.state, host.Account{}, vmID, files), "write the cloud-init seed of VM %s", vmID)
}

// ImageOfDisk implements [vm.Images]. The image is that of an empty disk of the size
// of from.
func (d *DryRun) ImageOfDisk(ctx context.Context, from vm.CopySource, i vm.Import) (vm.ImageContent, error) {
	temp := d.importer.TempName()
	f, err := makeTemp(d.contents.root, temp, host.Account{})
	if err != nil {
		return vm.ImageContent{}, fileFault(err, "make an image of %s", from.Resource)
	}
	if err := errors.Join(image.WriteQcow2(f, from.File.Bytes(), "", ""), f.Close()); err != nil {
		return vm.ImageContent{}, imageFault(errors.Join(err, d.contents.discard(temp)), "make an image of %s", from.Resource)
	}
	got, err := d.importer.Adopt(ctx, temp, want(i))
	if err != nil {
		return vm.ImageContent{}, imageFault(err, "make an image of %s", from.Resource)
	}
	return contentOf(got), nil
}

// write writes the placeholder of a disk.
func (d *DryRun) write(name string, p placeholder) error {
	p.Note = "dry run: not a disk"
	b, err := json.Marshal(p)
	if err == nil {
		err = d.state.WriteFile(name, b, 0o600)
	}
	return fileFault(err, "write %s", path.Base(name))
}

// read reads the placeholder of a disk.
func (d *DryRun) read(name string) (placeholder, error) {
	b, err := d.state.ReadFile(name)
	if err != nil {
		return placeholder{}, fileFault(err, "read %s", name)
	}
	var p placeholder
	if err := json.Unmarshal(b, &p); err != nil {
		return placeholder{}, fault(vm.CodeOperationFailed, err, "%s is no placeholder of a dry run", name)
	}
	return p, nil
}

// DeleteDisk implements [vm.Files].
func (d *DryRun) DeleteDisk(_ context.Context, id string) error {
	err := d.state.Remove(dataDisk(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fileFault(err, "remove the file of disk %s", id)
}

// DiskSize implements [vm.Files].
func (d *DryRun) DiskSize(_ context.Context, id string) (int64, error) {
	p, err := d.read(dataDisk(id))
	return p.SizeMiB, err
}

// AdoptDisk implements [vm.Files].
func (d *DryRun) AdoptDisk(_ context.Context, id string) (vm.DiskFile, error) {
	p, err := d.read(dataDisk(id))
	return vm.DiskFile{SizeMiB: p.SizeMiB, ShortBytes: p.ShortBytes, Base: p.Base, BaseFormat: p.BaseFormat}, err
}

// AdoptVM implements [vm.Files]. A VM of a dry run has no process that knows a UUID.
func (d *DryRun) AdoptVM(_ context.Context, id string) (string, vm.DiskFile, error) {
	p, err := d.read(vmRootDisk(id))
	if err != nil {
		return "", vm.DiskFile{}, err
	}
	return "", vm.DiskFile{SizeMiB: p.SizeMiB, ShortBytes: p.ShortBytes, Base: p.Base, BaseFormat: p.BaseFormat}, nil
}

// Flight implements [vm.Host]. There is no monitor that messages could be of.
func (d *DryRun) Flight(ctx context.Context, id string) (vm.Flight, error) {
	return vm.Flight{Now: vm.Recording{PID: d.Observe(ctx, id).PID}}, nil
}

// ResizeDisk implements [vm.Files].
func (d *DryRun) ResizeDisk(ctx context.Context, disk vm.Disk, sizeMiB int64) error {
	now, err := d.DiskSize(ctx, disk.ID)
	if err != nil {
		return err
	}
	if sizeMiB < now {
		return fault(vm.CodeInvalid, nil, "disk %s has %d MiB and cannot shrink to %d MiB", disk.ID, now, sizeMiB)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.write(dataDisk(disk.ID), placeholder{SizeMiB: sizeMiB, Base: disk.Base, BaseFormat: disk.BaseFormat})
}

// Observe implements [vm.Host]. The process of a VM is vmand itself.
func (d *DryRun) Observe(_ context.Context, id string) vm.Observation {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.marker(id)
	if m == nil {
		return vm.Observation{}
	}
	return vm.Observation{PID: os.Getpid(), Status: m.Status, Plugged: m.Plugged, NICs: m.NICs, CDROMs: m.CDROMs}
}

// Survey implements [vm.Host].
func (d *DryRun) Survey(ctx context.Context) (vm.Survey, error) {
	seen, err := d.surveyProcesses(ctx)
	if err == nil {
		err = d.files.survey(ctx, &seen)
	}
	if err == nil {
		seen.Images, err = d.importer.Contents()
	}
	if err != nil {
		return vm.Survey{}, fault(vm.CodeOperationFailed, err, "survey the host")
	}
	return seen, nil
}

// SurveyProcesses implements [vm.Host].
func (d *DryRun) SurveyProcesses(ctx context.Context) (vm.Survey, error) {
	seen, err := d.surveyProcesses(ctx)
	if err == nil {
		err = d.files.surveyStorage(&seen)
	}
	if err != nil {
		return vm.Survey{}, fault(vm.CodeOperationFailed, err, "survey the host")
	}
	d.files.rootDisksOf(&seen)
	return seen, nil
}

// FilesVersion implements [vm.Host].
func (d *DryRun) FilesVersion(context.Context) (string, error) { return d.files.version() }

// surveyProcesses returns the VMs that pretend to run.
func (d *DryRun) surveyProcesses(ctx context.Context) (vm.Survey, error) {
	ids, err := d.layout.vmIDs(drySuffix)
	if err != nil {
		return vm.Survey{}, err
	}
	seen := vm.Survey{VMs: make(map[string]vm.Observation)}
	for _, id := range ids {
		if o := d.Observe(ctx, id); o.Alive() {
			seen.VMs[id] = o
		}
	}
	return seen, nil
}
