package server

import (
	"context"
	"io"

	"vmand/vm"
)

// Services carry out what is asked for, one per kind of resource.
type Services struct {
	Templates  Templates
	VMs        VMs
	Disks      Disks
	Images     Images
	Networks   Networks
	NICs       NICs
	Forwards   Forwards
	CDROMs     CDROMs
	CloudInits CloudInits
	Guests     Guests
	Consoles   Consoles
	Orphans    Orphans
	Operations Operations
	Events     Events
}

// Templates makes and deletes templates.
type Templates interface {
	Create(ctx context.Context, t vm.Template) (vm.Template, error)
	Delete(ctx context.Context, name string, match vm.Match) error
}

// VMs makes, changes, starts, stops and deletes VMs.
type VMs interface {
	Create(ctx context.Context, n vm.NewVM) (vm.VM, error)
	Update(ctx context.Context, id string, e vm.VMEdits, match vm.Match) (vm.VM, error)
	Delete(ctx context.Context, id string, match vm.Match) error
	Do(ctx context.Context, id string, op vm.Op, o vm.StopOptions) (vm.VM, vm.Operation, error)
	Await(ctx context.Context, id string, c vm.Condition) (vm.VM, error)
	CanAwait(ctx context.Context, id string, c vm.Condition) error
	Why(ctx context.Context, id string) (vm.Why, error)
}

// Disks makes, copies, resizes, plugs and deletes data disks.
type Disks interface {
	Create(ctx context.Context, n vm.NewDisk) (vm.Disk, error)
	Copy(ctx context.Context, n vm.NewDisk) (vm.Disk, vm.Operation, error)
	Resize(ctx context.Context, id string, sizeMiB int64, match vm.Match) (vm.Disk, error)
	Delete(ctx context.Context, id string, match vm.Match) error
	Attach(ctx context.Context, id, vmID, mountPoint string) (vm.Disk, vm.Operation, error)
	Detach(ctx context.Context, id string) (vm.Disk, vm.Operation, error)
}

// Images brings images in, and deletes them.
type Images interface {
	Create(ctx context.Context, n vm.NewImage) (vm.Image, vm.Operation, error)
	Upload(ctx context.Context, n vm.NewImage, r io.Reader, more bool) (vm.Image, vm.Operation, error)
	ContinueUpload(ctx context.Context, name string, offset int64, r io.Reader, more bool) (vm.Image, vm.Operation, error)
	Update(ctx context.Context, name string, e vm.ImageEdits, match vm.Match) (vm.Image, error)
	Delete(ctx context.Context, name string, match vm.Match) error
	Open(ctx context.Context, name string) (vm.Image, io.ReadSeekCloser, error)
}

// Networks makes, changes and deletes networks.
type Networks interface {
	Create(ctx context.Context, n vm.Network) (vm.Network, error)
	Update(ctx context.Context, name string, e vm.NetworkEdits, match vm.Match) (vm.Network, error)
	Delete(ctx context.Context, name string, match vm.Match) error
	Status(ctx context.Context, name string) (vm.NetworkReport, error)
}

// NICs plugs, unplugs and changes the NICs of VMs.
type NICs interface {
	Attach(ctx context.Context, vmID string, n vm.NewNIC) (vm.NIC, vm.Operation, error)
	Detach(ctx context.Context, vmID string, slot int, match vm.Match) (n vm.NIC, gone bool, op vm.Operation, err error)
	Update(ctx context.Context, vmID string, slot int, e vm.NICEdits, match vm.Match) (vm.NIC, error)
}

// Forwards adds and removes port forwards to VMs.
type Forwards interface {
	Add(ctx context.Context, vmID string, f vm.PortForward) (vm.PortForward, error)
	Remove(ctx context.Context, vmID, forwardID string, match vm.Match) error
}

// CDROMs gives VMs CD-ROM drives and takes them away.
type CDROMs interface {
	Attach(ctx context.Context, vmID string, n vm.NewCDROM) (vm.CDROM, error)
	Eject(ctx context.Context, vmID, id string, match vm.Match) error
}

// CloudInits keeps the cloud-init data of VMs.
type CloudInits interface {
	Get(ctx context.Context, vmID string) (vm.CloudInitView, error)
	Set(ctx context.Context, vmID string, c vm.CloudInit, reprovision bool, match vm.Match) (vm.CloudInitView, error)
}

// Guests talks to the guests of running VMs through their agents.
type Guests interface {
	Agent(id string) vm.Agent
	Info(ctx context.Context, id string) (vm.GuestInfo, error)
	Exec(ctx context.Context, id string, c vm.GuestCommand) (vm.GuestResult, error)
	ReadFile(ctx context.Context, id, path string, w io.Writer) error
	WriteFile(ctx context.Context, id, path string, r io.Reader) error
	SetPassword(ctx context.Context, id, user, password string) error
	Trim(ctx context.Context, id string) error
}

// Consoles connects to the serial consoles of VMs.
type Consoles interface {
	Open(ctx context.Context, id string, o vm.ConsoleOptions) (vm.Console, error)
	Log(ctx context.Context, id string, offset int64) (log io.ReadCloser, end int64, err error)
}

// Orphans adopts, terminates and deletes what the host has and no record knows.
type Orphans interface {
	Adopt(ctx context.Context, resource vm.Resource, template string) (vm.Operation, error)
	Terminate(ctx context.Context, resource vm.Resource) (vm.Operation, error)
	Delete(ctx context.Context, resource vm.Resource) (vm.Operation, error)
}

// Operations waits for operations and cancels them.
type Operations interface {
	Answer(kind vm.Kind) vm.Answer
	Wait(ctx context.Context, id string) (vm.Operation, error)
	Cancel(ctx context.Context, id string) (vm.Operation, error)
}

// Events says when there is a new event to read.
type Events interface {
	NextEvent() <-chan struct{}
}
