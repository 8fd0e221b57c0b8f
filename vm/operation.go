package vm

import "time"

// OpState is where an operation is in its life.
type OpState string

// The states of an operation. The last three are final.
const (
	OpPending   OpState = "pending"
	OpRunning   OpState = "running"
	OpSucceeded OpState = "succeeded"
	OpFailed    OpState = "failed"
	OpCancelled OpState = "cancelled"
)

// Ended reports whether the operation has ended.
func (s OpState) Ended() bool { return s == OpSucceeded || s == OpFailed || s == OpCancelled }

// Kind is the kind of an operation: the kind of resource, a dot and a verb, for example
// "vm.start".
type Kind string

// The kinds of operations.
const (
	TemplateCreate  Kind = "template.create"
	TemplateDelete  Kind = "template.delete"
	VMEdit          Kind = "vm.update"
	VMAdopt         Kind = "vm.adopt"
	DiskAdopt       Kind = "disk.adopt"
	OrphanTerminate Kind = "orphan.terminate"
	OrphanDelete    Kind = "orphan.delete"

	VMCreate   Kind = "vm.create"
	VMDelete   Kind = "vm.delete"
	VMStart    Kind = "vm.start"
	VMStop     Kind = "vm.stop"
	VMRestart  Kind = "vm.restart"
	VMPause    Kind = "vm.pause"
	VMResume   Kind = "vm.resume"
	VMReset    Kind = "vm.reset"
	VMNMI      Kind = "vm.nmi"
	DiskCreate Kind = "disk.create"
	DiskDelete Kind = "disk.delete"
	DiskAttach Kind = "disk.attach"
	DiskDetach Kind = "disk.detach"
	DiskResize Kind = "disk.resize"

	ImageCreate  Kind = "image.create"
	ImageUpload  Kind = "image.upload"
	ImageEdit    Kind = "image.update"
	ImageDelete  Kind = "image.delete"
	CDROMAttach  Kind = "cdrom.attach" // of the VM
	CDROMEject   Kind = "cdrom.eject"
	CloudInitSet Kind = "cloud_init.update"

	NetworkCreate Kind = "network.create"
	NetworkUpdate Kind = "network.update"
	NetworkDelete Kind = "network.delete"
	NICAttach     Kind = "nic.attach" // of the VM
	NICDetach     Kind = "nic.detach"
	NICUpdate     Kind = "nic.update"
	ForwardAdd    Kind = "port_forward.create" // of the VM
	ForwardRemove Kind = "port_forward.delete"
)

// Kinds lists every kind of operation.
var Kinds = []Kind{
	TemplateCreate, TemplateDelete, VMEdit, VMAdopt, DiskAdopt, OrphanTerminate, OrphanDelete,
	VMCreate, VMDelete, VMStart, VMStop, VMRestart, VMPause, VMResume, VMReset, VMNMI, DiskCreate,
	DiskDelete, DiskAttach, DiskDetach, DiskResize, ImageCreate, ImageUpload, ImageEdit,
	ImageDelete, CDROMAttach, CDROMEject, CloudInitSet, NetworkCreate, NetworkUpdate,
	NetworkDelete, NICAttach, NICDetach, NICUpdate, ForwardAdd, ForwardRemove,
}

// An Operation is the record of one change that is requested, running or ended. It survives a
// kill of the daemon.
type Operation struct {
	Seq         int64  // order of creation, unique; set by the store
	ID          string // a UUID of version 7
	Kind        Kind
	Resource    Resource
	Target      Target // the part of Resource that it changes
	State       OpState
	Step        string   // the current or last step
	Progress    *int     // percent, nil when unknown
	Problem     *Problem // the reason of a failure or a cancellation
	RequestedBy string
	RequestID   string
	CreatedAt   time.Time
	StartedAt   time.Time // zero while pending
	FinishedAt  time.Time // zero until it has ended
	Log         []LogLine

	// Key is the Idempotency-Key of the request that began the operation, empty for
	// none; with RequestedBy it is unique. Requests with the same key are the same
	// request if their Fingerprint is equal.
	Key         string
	Fingerprint string
}

// A Target names the part of the resource that an operation changes. Its zero value means the
// whole resource.
type Target struct {
	NIC      *int   `json:"nic,omitempty"`      // slot of a NIC of the VM
	Forward  string `json:"forward,omitempty"`  // id of a port forward of the VM
	CDROM    string `json:"cdrom,omitempty"`    // id of a CD-ROM drive of the VM
	Content  string `json:"content,omitempty"`  // SHA-256 of image content that is removed
	Recorded bool   `json:"recorded,omitempty"` // recording the intent is the whole operation
}

// A Reply is the stored answer to a request, for its repetition.
type Reply struct {
	Status   int
	Location string
	ETag     string
	Body     []byte
}

// A LogLine is one step of an operation.
type LogLine struct {
	At      time.Time `json:"at"`
	Step    string    `json:"step"`
	Message string    `json:"message"`
}

// A Problem is the reason why an operation failed or was cancelled.
type Problem struct {
	Code   Code   `json:"code"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}
