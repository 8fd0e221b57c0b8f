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

// Ended reports whether the operation is over.
func (s OpState) Ended() bool { return s == OpSucceeded || s == OpFailed || s == OpCancelled }

// Kind says what an operation does: the kind of resource, a dot, and an [Op] or
// one of the disk's verbs.
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

// An Operation is the record of one change: asked for, on its way, or over. It
// survives a kill of the daemon.
type Operation struct {
	Seq         int64  // order of creation, unique; set by the store
	ID          string // a UUID of version 7
	Kind        Kind
	Resource    Resource
	Target      Target // what it works on within Resource
	State       OpState
	Step        string   // what it does now, or did last
	Progress    *int     // percent, nil when unknown
	Problem     *Problem // why it failed or was cancelled
	RequestedBy string
	RequestID   string
	CreatedAt   time.Time
	StartedAt   time.Time // zero while pending
	FinishedAt  time.Time // zero until it is over
	Log         []LogLine

	// Key is the Idempotency-Key of the request it was begun by, empty for
	// none; with RequestedBy it is unique. Fingerprint tells whether another
	// request under the same key is the same request.
	Key         string
	Fingerprint string
}

// A Target is what an operation works on within its resource, for those that
// need more than the resource. Its zero value means the whole resource.
type Target struct {
	NIC      *int   `json:"nic,omitempty"`      // slot of a NIC of the VM
	Forward  string `json:"forward,omitempty"`  // id of a port forward of the VM
	CDROM    string `json:"cdrom,omitempty"`    // id of a CD-ROM drive of the VM
	Content  string `json:"content,omitempty"`  // SHA-256 of image content that is removed
	Recorded bool   `json:"recorded,omitempty"` // the intent's record is all there was to do
}

// A Reply is what a client was answered, kept for a repetition of its request.
type Reply struct {
	Status   int
	Location string
	ETag     string
	Body     []byte
}

// A LogLine is one step an operation took.
type LogLine struct {
	At      time.Time `json:"at"`
	Step    string    `json:"step"`
	Message string    `json:"message"`
}

// A Problem is why an operation did not succeed.
type Problem struct {
	Code   Code   `json:"code"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}
