// Package vmtest provides fakes of [vm.Driver] and [vm.HostNetwork] for tests.
package vmtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"vmand/vm"
)

// A Driver is a [vm.Driver] that keeps its processes and files in memory and records the calls
// of its methods. The zero value is ready for use. It is safe for concurrent use.
type Driver struct {
	// Hook, if set, is called at the begin of every method that changes something, with the
	// name of the method and the id of the VM or disk. It may block. The method returns its
	// error.
	Hook func(ctx context.Context, method, id string) error
	// Run, if set, computes the result of a program in a guest. Without it, the program cat
	// echoes its input and all others do nothing.
	Run func(id string, c vm.GuestCommand) vm.GuestResult

	// Max are the limits of the host; it must not change while the driver is used.
	Max vm.Limits

	mu    sync.Mutex
	procs map[string]*process
	vms   map[string]bool
	disks map[string]int64
	next  int
	calls []string

	images images

	interfaces []vm.GuestInterface // of every guest, in addition to lo

	agents  map[string]vm.Agent        // set by SetAgent
	mounts  map[string][]vm.GuestMount // set by SetMounts, by disk id
	wrote   map[string][]byte          // files of guests, by id and path
	logs    map[string][]byte          // output to the consoles
	writers map[string]*console        // the connections that have the write side
	changed map[string]chan struct{}   // closed at the next change of a console
}

// A process is the fake QEMU process of a VM.
type process struct {
	since   time.Time
	pid     int
	status  vm.RunStatus
	plugged []string
	nics    []int
	cdroms  []string
	full    bool
	freeMiB int64
}

var _ vm.Driver = (*Driver)(nil)

// Set sets the run state of a VM and creates its process if it has none. The status "gone"
// removes the process.
func (d *Driver) Set(id string, status vm.RunStatus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if status == "gone" {
		d.end(id)
		return
	}
	d.process(id).status = status
}

// SetFull pauses the guest of a VM as QEMU does when a file system is full. freeMiB is the
// current free space.
func (d *Driver) SetFull(id string, freeMiB int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.process(id)
	p.status, p.full, p.freeMiB = "io-error", true, freeMiB
}

// LoseDisk removes the file of a disk.
func (d *Driver) LoseDisk(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.disks, id)
}

// AddVMFiles adds files of a VM that has no record.
func (d *Driver) AddVMFiles(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files()[id] = true
}

// Calls returns the calls of methods that change something, as "Method id", in order.
func (d *Driver) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

// Processes returns the number of VMs that have a process.
func (d *Driver) Processes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.procs)
}

// process returns the process of a VM and creates it if there is none. It must be called with
// d.mu held.
func (d *Driver) process(id string) *process {
	if d.procs == nil {
		d.procs = map[string]*process{}
	}
	if d.procs[id] == nil {
		d.next++
		d.procs[id] = &process{
			since:   time.Now().UTC(),
			pid:     1000 + d.next,
			plugged: []string{},
			nics:    []int{},
			cdroms:  []string{},
		}
	}
	return d.procs[id]
}

// files returns the set of VMs that have files. It must be called with d.mu held.
func (d *Driver) files() map[string]bool {
	if d.vms == nil {
		d.vms = map[string]bool{}
	}
	return d.vms
}

// do calls the hook, records the call and then calls act with d.mu held.
func (d *Driver) do(ctx context.Context, method, id string, act func() error) error {
	if d.Hook != nil {
		if err := d.Hook(ctx, method, id); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, method+" "+id)
	return act()
}

// Platform returns a fixed platform.
func (d *Driver) Platform(ctx context.Context) (vm.Platform, error) {
	return vm.Platform{Version: "7.2.0", Machine: "pc-q35-7.2", Accel: vm.TCG}, nil
}

// Limits returns d.Max.
func (d *Driver) Limits(ctx context.Context) vm.Limits { return d.Max }

// Admit fails if the VM has a process.
func (d *Driver) Admit(ctx context.Context, s vm.Spec) error {
	if d.Hook != nil {
		if err := d.Hook(ctx, "Admit", s.ID); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.procs[s.ID] != nil {
		return &vm.Fault{Code: vm.CodeState, Detail: "a process of VM " + s.ID + " is left"}
	}
	return nil
}

// Start creates a running process with the disks, NICs and drives of s.
func (d *Driver) Start(ctx context.Context, s vm.Spec, report vm.Report) (boot vm.Boot, err error) {
	report("launch", "simulated")
	boot.Spawned = time.Now().UTC().Truncate(time.Millisecond)
	return boot, d.do(ctx, "Start", s.ID, func() error {
		if d.procs[s.ID] != nil {
			panic(fmt.Sprintf("second process for VM %s", s.ID))
		}
		p := d.process(s.ID)
		p.status = vm.StatusRunning
		d.print(s.ID, []byte("login: "))
		for _, disk := range s.Disks {
			p.plugged = append(p.plugged, disk.ID)
		}
		for _, port := range s.Ports {
			p.nics = append(p.nics, port.Slot)
		}
		p.cdroms = cdromIDs(s.CDROMs)
		return nil
	})
}

// Shutdown removes the process.
func (d *Driver) Shutdown(ctx context.Context, id string, o vm.StopOptions, report vm.Report) error {
	method := "Shutdown"
	if o.Force {
		method = "Destroy"
	}
	report("quit", "simulated")
	return d.do(ctx, method, id, func() error {
		d.end(id)
		return nil
	})
}

// noProcess returns the fault of a method that needs a process.
func noProcess(id string) error {
	return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "VM " + id + " has no process"}
}

// guest sets the run state of a VM that has a process.
func (d *Driver) guest(ctx context.Context, method, id string, to vm.RunStatus) error {
	return d.do(ctx, method, id, func() error {
		if d.procs[id] == nil {
			return noProcess(id)
		}
		d.procs[id].status, d.procs[id].full = to, false
		return nil
	})
}

// Control sets the run state that op leads to. [Driver.Break] and the other methods name this
// call by op with a capital letter, for example "Pause".
func (d *Driver) Control(ctx context.Context, id string, op vm.Op) error {
	status := vm.StatusRunning
	if op == vm.OpPause {
		status = vm.StatusPaused
	}
	return d.guest(ctx, strings.ToUpper(string(op[:1]))+string(op[1:]), id, status)
}

// AttachDisk adds a disk to the process of its VM.
func (d *Driver) AttachDisk(ctx context.Context, disk vm.Disk) error {
	return d.do(ctx, "AttachDisk", disk.ID, func() error {
		p := d.procs[disk.VMID]
		if p == nil {
			return noProcess(disk.VMID)
		}
		if !slices.Contains(p.plugged, disk.ID) {
			p.plugged = append(p.plugged, disk.ID)
		}
		return nil
	})
}

// DetachDisk removes a disk from the process of its VM.
func (d *Driver) DetachDisk(ctx context.Context, disk vm.Disk) error {
	return d.do(ctx, "DetachDisk", disk.ID, func() error {
		if p := d.procs[disk.VMID]; p != nil {
			p.plugged = slices.DeleteFunc(p.plugged, func(id string) bool { return id == disk.ID })
		}
		return nil
	})
}

// ResizeDisk sets the size of a disk.
func (d *Driver) ResizeDisk(ctx context.Context, disk vm.Disk, sizeMiB int64) error {
	return d.do(ctx, "ResizeDisk", disk.ID, func() error {
		d.disks[disk.ID] = sizeMiB
		return nil
	})
}

// HasVM reports whether a VM has files.
func (d *Driver) HasVM(ctx context.Context, id string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.vms[id], nil
}

// CreateVM adds the files of a VM.
func (d *Driver) CreateVM(ctx context.Context, id string, root vm.DiskFile, from *vm.CopySource,
	progress func(done, total int64),
) error {
	return d.do(ctx, "CreateVM", id, func() error {
		if d.vms[id] {
			return &vm.Fault{Code: vm.CodeExists, Detail: "files of VM " + id + " exist"}
		}
		d.files()[id] = true
		d.made(vm.VMResource(id).String(), root)
		return nil
	})
}

// DeleteVM removes the files of a VM.
func (d *Driver) DeleteVM(ctx context.Context, id string) error {
	return d.do(ctx, "DeleteVM", id, func() error {
		delete(d.vms, id)
		return nil
	})
}

// CreateDisk adds the file of a disk.
func (d *Driver) CreateDisk(ctx context.Context, id string, file vm.DiskFile, from *vm.CopySource,
	progress func(done, total int64),
) error {
	return d.do(ctx, "CreateDisk", id, func() error {
		if d.disks == nil {
			d.disks = map[string]int64{}
		}
		d.disks[id] = file.SizeMiB
		d.made(vm.DiskResource(id).String(), file)
		return nil
	})
}

// DeleteDisk removes the file of a disk.
func (d *Driver) DeleteDisk(ctx context.Context, id string) error {
	return d.do(ctx, "DeleteDisk", id, func() error {
		delete(d.disks, id)
		return nil
	})
}

// DiskSize returns the size of the file of a disk.
func (d *Driver) DiskSize(ctx context.Context, id string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	size, ok := d.disks[id]
	if !ok {
		return 0, vm.NotFound("disk file", id)
	}
	return size, nil
}

// AdoptDisk returns the size and the base of the file of a disk.
func (d *Driver) AdoptDisk(ctx context.Context, id string) (vm.DiskFile, error) {
	size, err := d.DiskSize(ctx, id)
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.images.bases[vm.DiskResource(id).String()]
	return vm.DiskFile{SizeMiB: size, Base: f.Base, BaseFormat: f.BaseFormat}, err
}

// AdoptVM returns a root disk of 1 GiB with the base it was created with, and no UUID. The base
// of VM forged is a file of the host.
func (d *Driver) AdoptVM(ctx context.Context, id string) (string, vm.DiskFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.vms[id] {
		return "", vm.DiskFile{}, vm.NotFound("files of VM", id)
	}
	if id == "forged" {
		return "", vm.DiskFile{SizeMiB: 1024, Base: "/etc/shadow", BaseFormat: "raw"}, nil
	}
	f := d.images.bases[vm.VMResource(id).String()]
	return "", vm.DiskFile{SizeMiB: 1024, Base: f.Base, BaseFormat: f.BaseFormat}, nil
}

// Flight returns an empty recording.
func (d *Driver) Flight(ctx context.Context, id string) (vm.Flight, error) {
	return vm.Flight{}, nil
}

// Watch delivers nothing.
func (d *Driver) Watch(ctx context.Context, sink vm.Sink) { <-ctx.Done() }

// Observe returns the state that earlier calls set.
func (d *Driver) Observe(ctx context.Context, id string) vm.Observation {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.procs[id]
	if p == nil {
		return vm.Observation{Log: "last words"}
	}
	o := vm.Observation{
		PID:     p.pid,
		Status:  p.status,
		NoSpace: p.full,
		FreeMiB: p.freeMiB,
	}
	if p.full {
		o.Trouble = "/disks/root is full"
	}
	if p.status != vm.StatusMute {
		o.Plugged = slices.Clone(p.plugged)
		o.NICs = slices.Clone(p.nics)
		o.CDROMs = slices.Clone(p.cdroms)
	}
	return o
}

// SurveyProcesses returns all processes, and the files of their VMs.
func (d *Driver) SurveyProcesses(ctx context.Context) (vm.Survey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := vm.Survey{
		VMs:     map[string]vm.Observation{},
		VMFiles: map[string]bool{},
	}
	for id, p := range d.procs {
		s.VMs[id] = vm.Observation{PID: p.pid, Status: p.status}
		s.VMFiles[id] = d.vms[id]
	}
	return s, nil
}

// FilesVersion returns the names of all files.
func (d *Driver) FilesVersion(ctx context.Context) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := slices.Concat(
		slices.Collect(maps.Keys(d.vms)),
		slices.Collect(maps.Keys(d.disks)),
		slices.Collect(maps.Keys(d.images.contents)),
	)
	slices.Sort(names)
	return strings.Join(names, " "), nil
}

// Survey returns all processes and files.
func (d *Driver) Survey(ctx context.Context) (vm.Survey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := vm.Survey{
		VMs:       map[string]vm.Observation{},
		VMFiles:   map[string]bool{},
		DiskFiles: map[string]int64{},
		Images:    map[string]int64{},
	}
	for id, p := range d.procs {
		s.VMs[id] = vm.Observation{PID: p.pid, Status: p.status}
	}
	for id := range d.vms {
		s.VMFiles[id] = true
	}
	for id, size := range d.disks {
		s.DiskFiles[id] = size
	}
	for sum, content := range d.images.contents {
		s.Images[sum] = int64(len(content))
	}
	return s, nil
}
