// Package vmtest has fakes of the interfaces of package vm, for tests of
// whatever stands on its Manager.
package vmtest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmand/vm"
)

// A Driver is a vm.Driver that starts nothing and remembers what it was told.
// Its zero value is ready.
type Driver struct {
	// Hook, when set, is called before every method that acts, with the
	// method's name and the id of its VM or disk. It may block, and the error
	// it returns is the method's.
	Hook func(ctx context.Context, method, id string) error
	// Run, when set, is what a program in a guest does. Without it cat echoes its
	// input, and everything else does nothing.
	Run func(id string, c vm.GuestCommand) vm.GuestResult

	mu    sync.Mutex
	procs map[string]*process
	vms   map[string]bool
	disks map[string]int64
	next  int
	calls []string

	images images

	interfaces []vm.GuestInterface // of every guest, besides lo

	agents map[string]vm.Agent      // as a test has set them
	wrote  map[string][]byte        // files of guests, by id and path
	logs   map[string][]byte        // of consoles
	typing map[string]*console      // who types
	news   map[string]chan struct{} // closed when something happens on a console
}

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

// Set makes the VM look as if its QEMU were in the given run state; "gone"
// takes the process away.
func (d *Driver) Set(id string, status vm.RunStatus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if status == "gone" {
		d.end(id)
		return
	}
	d.process(id).status = status
}

// SetFull makes the VM's guest look as if it had found a disk full, with the
// given room on it now.
func (d *Driver) SetFull(id string, freeMiB int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.process(id)
	p.status, p.full, p.freeMiB = "io-error", true, freeMiB
}

// LoseDisk takes a disk's file away.
func (d *Driver) LoseDisk(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.disks, id)
}

// AddVMFiles makes files of a VM appear that nobody recorded.
func (d *Driver) AddVMFiles(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files()[id] = true
}

// Calls returns the methods that acted, as "Method id", in order.
func (d *Driver) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

// Processes returns how many VMs have a process.
func (d *Driver) Processes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.procs)
}

// process returns the VM's process, making one if there is none. The caller
// holds mu.
func (d *Driver) process(id string) *process {
	if d.procs == nil {
		d.procs = map[string]*process{}
	}
	if d.procs[id] == nil {
		d.next++
		d.procs[id] = &process{since: time.Now().UTC(), pid: 1000 + d.next, plugged: []string{}, nics: []int{}, cdroms: []string{}}
	}
	return d.procs[id]
}

func (d *Driver) files() map[string]bool {
	if d.vms == nil {
		d.vms = map[string]bool{}
	}
	return d.vms
}

// do runs the hook, notes the call and then acts under the lock.
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

// Platform returns an invented platform.
func (d *Driver) Platform(ctx context.Context) (vm.Platform, error) {
	return vm.Platform{Version: "7.2.0", Machine: "pc-q35-7.2", Accel: vm.TCG}, nil
}

// Admit refuses a VM that has a process.
func (d *Driver) Admit(ctx context.Context, s vm.Spec) error {
	if d.Hook != nil {
		if err := d.Hook(ctx, "Admit", s.ID); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.procs[s.ID] != nil {
		return &vm.Fault{Code: vm.CodeState, Detail: "a process is left over"}
	}
	return nil
}

// Start makes a process, running, with the spec's disks plugged.
func (d *Driver) Start(ctx context.Context, s vm.Spec, report vm.Report) (boot vm.Boot, err error) {
	report("launch", "pretending")
	boot.Spawned = time.Now().UTC().Truncate(time.Millisecond)
	return boot, d.do(ctx, "Start", s.ID, func() error {
		if d.procs[s.ID] != nil {
			panic(fmt.Sprintf("two processes for vm %s", s.ID))
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

// Shutdown takes the process away.
func (d *Driver) Shutdown(ctx context.Context, id string, o vm.StopOptions, report vm.Report) error {
	method := "Shutdown"
	if o.Force {
		method = "Destroy"
	}
	report("quit", "pretending")
	return d.do(ctx, method, id, func() error {
		d.end(id)
		return nil
	})
}

func (d *Driver) guest(ctx context.Context, method, id string, to vm.RunStatus) error {
	return d.do(ctx, method, id, func() error {
		if d.procs[id] == nil {
			return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "no process"}
		}
		d.procs[id].status, d.procs[id].full = to, false
		return nil
	})
}

// Pause pauses the pretended guest.
func (d *Driver) Pause(ctx context.Context, id string) error {
	return d.guest(ctx, "Pause", id, vm.StatusPaused)
}

// Resume lets the pretended guest run.
func (d *Driver) Resume(ctx context.Context, id string) error {
	return d.guest(ctx, "Resume", id, vm.StatusRunning)
}

// Reset lets the pretended guest run.
func (d *Driver) Reset(ctx context.Context, id string) error {
	return d.guest(ctx, "Reset", id, vm.StatusRunning)
}

// AttachDisk plugs a disk.
func (d *Driver) AttachDisk(ctx context.Context, disk vm.Disk) error {
	return d.do(ctx, "AttachDisk", disk.ID, func() error {
		p := d.procs[disk.VMID]
		if p == nil {
			return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "no process"}
		}
		if !slices.Contains(p.plugged, disk.ID) {
			p.plugged = append(p.plugged, disk.ID)
		}
		return nil
	})
}

// DetachDisk unplugs a disk.
func (d *Driver) DetachDisk(ctx context.Context, disk vm.Disk) error {
	return d.do(ctx, "DetachDisk", disk.ID, func() error {
		if p := d.procs[disk.VMID]; p != nil {
			p.plugged = slices.DeleteFunc(p.plugged, func(id string) bool { return id == disk.ID })
		}
		return nil
	})
}

// ResizeDisk sets a disk's size.
func (d *Driver) ResizeDisk(ctx context.Context, disk vm.Disk, sizeMiB int64) error {
	return d.do(ctx, "ResizeDisk", disk.ID, func() error {
		d.disks[disk.ID] = sizeMiB
		return nil
	})
}

// HasVM reports whether the VM has files.
func (d *Driver) HasVM(ctx context.Context, id string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.vms[id], nil
}

// CreateVM makes the VM's files.
func (d *Driver) CreateVM(ctx context.Context, id string, root vm.DiskFile, from *vm.CopySource, progress func(done, total int64)) error {
	return d.do(ctx, "CreateVM", id, func() error {
		if d.vms[id] {
			return &vm.Fault{Code: vm.CodeExists, Detail: "files exist"}
		}
		d.files()[id] = true
		d.made(vm.VMResource(id).String(), root)
		return nil
	})
}

// DeleteVM removes the VM's files.
func (d *Driver) DeleteVM(ctx context.Context, id string) error {
	return d.do(ctx, "DeleteVM", id, func() error {
		delete(d.vms, id)
		return nil
	})
}

// CreateDisk makes a disk's file.
func (d *Driver) CreateDisk(ctx context.Context, id string, file vm.DiskFile, from *vm.CopySource, progress func(done, total int64)) error {
	return d.do(ctx, "CreateDisk", id, func() error {
		if d.disks == nil {
			d.disks = map[string]int64{}
		}
		d.disks[id] = file.SizeMiB
		d.made(vm.DiskResource(id).String(), file)
		return nil
	})
}

// DeleteDisk removes a disk's file.
func (d *Driver) DeleteDisk(ctx context.Context, id string) error {
	return d.do(ctx, "DeleteDisk", id, func() error {
		delete(d.disks, id)
		return nil
	})
}

// DiskSize returns the size of a disk's file.
func (d *Driver) DiskSize(ctx context.Context, id string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	size, ok := d.disks[id]
	if !ok {
		return 0, vm.NotFound("disk file", id)
	}
	return size, nil
}

// AdoptDisk returns a disk with the base it was made on.
func (d *Driver) AdoptDisk(ctx context.Context, id string) (vm.DiskFile, error) {
	size, err := d.DiskSize(ctx, id)
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.images.bases[vm.DiskResource(id).String()]
	return vm.DiskFile{SizeMiB: size, Base: f.Base, BaseFormat: f.BaseFormat}, err
}

// AdoptVM returns an invented root disk, with the base it was made on, and no UUID;
// that of a VM called "forged" names a file of the host as its base.
func (d *Driver) AdoptVM(ctx context.Context, id string) (string, vm.DiskFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.vms[id] {
		return "", vm.DiskFile{}, vm.NotFound("files of vm", id)
	}
	if id == "forged" {
		return "", vm.DiskFile{SizeMiB: 1024, Base: "/etc/shadow", BaseFormat: "raw"}, nil
	}
	f := d.images.bases[vm.VMResource(id).String()]
	return "", vm.DiskFile{SizeMiB: 1024, Base: f.Base, BaseFormat: f.BaseFormat}, nil
}

// Flight returns nothing.
func (d *Driver) Flight(ctx context.Context, id string) (vm.Flight, error) { return vm.Flight{}, nil }

// Observe returns what was set or done.
func (d *Driver) Observe(ctx context.Context, id string) vm.Observation {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.procs[id]
	if p == nil {
		return vm.Observation{Log: "last words"}
	}
	o := vm.Observation{PID: p.pid, Status: p.status, NoSpace: p.full, FreeMiB: p.freeMiB}
	if p.full {
		o.Trouble = "/disks/root is full"
	}
	if p.status != vm.StatusMute {
		o.Plugged, o.NICs, o.CDROMs = slices.Clone(p.plugged), slices.Clone(p.nics), slices.Clone(p.cdroms)
	}
	return o
}

// Survey returns everything there is.
func (d *Driver) Survey(ctx context.Context) (vm.Survey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := vm.Survey{VMs: map[string]vm.Observation{}, VMFiles: map[string]bool{}, DiskFiles: map[string]int64{}, Images: map[string]int64{}}
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
