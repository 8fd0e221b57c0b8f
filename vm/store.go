package vm

import (
	"context"
	"net/netip"
	"time"
)

// Reader reads the records. Lists are in order of creation, oldest first.
type Reader interface {
	// Template returns one template, or a [Fault] of class [ErrNotFound].
	Template(ctx context.Context, name string) (Template, error)
	// Templates returns a page of the templates.
	Templates(ctx context.Context, p Page) ([]Template, error)
	// VM returns one VM, or a [Fault] of class [ErrNotFound].
	VM(ctx context.Context, id string) (VM, error)
	// VMs returns a page of the VMs that match f.
	VMs(ctx context.Context, f VMFilter, p Page) ([]VM, error)
	// VMSummaries returns summaries of the VMs that match f, for callers that read every
	// VM: it takes a ninth of the CPU time and a fifteenth of the memory of VMs.
	VMSummaries(ctx context.Context, f VMFilter, p Page) ([]VMSummary, error)
	// Disk returns one data disk, or a [Fault] of class [ErrNotFound].
	Disk(ctx context.Context, id string) (Disk, error)
	// Disks returns a page of the data disks that match f.
	Disks(ctx context.Context, f DiskFilter, p Page) ([]Disk, error)
	// Image returns one image, or a [Fault] of class [ErrNotFound].
	Image(ctx context.Context, name string) (Image, error)
	// Images returns a page of the images that match f.
	Images(ctx context.Context, f ImageFilter, p Page) ([]Image, error)
	// Seed returns the cloud-init data of a VM, or a [Fault] of class [ErrNotFound] if it
	// has none.
	Seed(ctx context.Context, vmID string) (Seed, error)
	// Network returns one network, or a [Fault] of class [ErrNotFound].
	Network(ctx context.Context, name string) (Network, error)
	// Networks returns a page of the networks.
	Networks(ctx context.Context, p Page) ([]Network, error)
	// Leases returns the addresses on a network and their holders, in order of address.
	Leases(ctx context.Context, network string) ([]Lease, error)
	// ReservedIPs returns the number of addresses from first to last that no NIC on the network has,
	// and that belong to the extra addresses of a NIC.
	ReservedIPs(ctx context.Context, network string, first, last netip.Addr) (int, error)
	// FreeIP returns the lowest address from first to last that is neither recorded for a
	// NIC on the network nor in except, or a [Fault] of code [CodeAddressesExhausted].
	FreeIP(ctx context.Context, network string, first, last netip.Addr, except []netip.Addr) (netip.Addr, error)
	// Operation returns one operation, or a [Fault] of class [ErrNotFound].
	Operation(ctx context.Context, id string) (Operation, error)
	// Operations returns a page of the operations that match f.
	Operations(ctx context.Context, f OperationFilter, p Page) ([]Operation, error)
	// OperationByKey returns the operation that requestedBy began with an Idempotency-Key,
	// and its stored reply, nil if there is none yet; or a [Fault] of class [ErrNotFound].
	OperationByKey(ctx context.Context, requestedBy, key string) (Operation, *Reply, error)
	// Events returns the events after p.After, at most p.Limit.
	Events(ctx context.Context, f EventFilter, p Page) ([]Event, error)
	// Changes returns the names of the rows written since an earlier call, which
	// returned the mark since. It reads no rows, and its cost is proportional to the
	// number of changes. It must be called before the rows that it names are read: the
	// next call then returns the changes in between.
	Changes(ctx context.Context, since Mark) (Changes, error)
	// LastEvent returns the number of the newest event ever recorded, 0 if none was.
	LastEvent(ctx context.Context) (int64, error)
}

// Store reads and writes the records. A write is durable, also across a power cut, when its
// method returns nil.
type Store interface {
	Reader
	// Apply records everything in c in one transaction, or nothing, and returns
	// the rows it wrote.
	Apply(ctx context.Context, c Change) (Applied, error)
	// PruneOperations deletes the operations that ended before a time and returns their
	// number.
	PruneOperations(ctx context.Context, before time.Time) (int, error)
	// PruneEvents deletes the events before a time, and all but the newest keep events,
	// and returns the number of deleted ones.
	PruneEvents(ctx context.Context, before time.Time, keep int) (int, error)
	// KeepReply stores the reply to the request that began an operation.
	KeepReply(ctx context.Context, operationID string, r Reply) error
	// Note returns a value that the daemon stored with SetNote, such as the last boot of
	// the host; "" if there is none.
	Note(ctx context.Context, name string) (string, error)
	// SetNote stores a value under a name, in place of any earlier one.
	SetNote(ctx context.Context, name, value string) error
}

// A Page selects a part of a list: at most Limit entries (0 means all) with a Seq above
// After.
type Page struct {
	After int64
	Limit int
}

// A VMSummary is the part of a VM that shows whether the whole VM must be read.
type VMSummary struct {
	Seq      int64
	ID       string
	State    State
	Reason   Reason
	Revision int64
}

// A Mark is a point between two changes of the records. It is valid only in the process
// that received it. The zero Mark is before all changes.
type Mark int64

// Changes holds the names of the rows written or deleted since a [Mark].
type Changes struct {
	Mark Mark // for the next call
	// All is true if any row may have changed and the lists are empty: for the zero Mark,
	// after a write by another process, and after too many changes.
	All                          bool
	VMs, Disks, Images, Networks []string // each name once, in no order
}

// A VMFilter selects VMs; its zero value selects all. State, Template, Active, Autostart
// and Label have indexes: with one of them, the cost of a page is proportional to the rows
// that it returns. Network, and each further condition, also reads the rows it rejects.
type VMFilter struct {
	State    State
	Template string
	Network  string // of one of its NICs
	// Active selects the VMs that are not stopped, have a restart due, or have a NIC that
	// is attaching or detaching.
	Active bool
	// Autostart selects the VMs that start with the host and have the desired state
	// running.
	Autostart bool
	// Label and LabelValue select the VMs with that label, if Label is not
	// empty.
	Label, LabelValue string
}

// A DiskFilter selects data disks; its zero value selects all.
type DiskFilter struct {
	State DiskState
	VMID  string
}

// An ImageFilter selects images; its zero value selects all.
type ImageFilter struct {
	State       ImageState
	Unavailable bool // only images with a State other than [ImageAvailable]
	SHA256      string
	// Label and LabelValue are as in [VMFilter].
	Label, LabelValue string
}

// An OperationFilter selects operations; its zero value selects all.
type OperationFilter struct {
	Resource Resource
	Kind     Kind
	State    OpState
	Open     bool // only operations that have not ended
}

// An EventFilter selects events; its zero value selects all.
type EventFilter struct {
	Type     string // a whole type such as "vm.state", or a prefix up to a dot such as "vm."
	Resource Resource
}

// A Change is recorded in one transaction. States are written by compare-and-set: if a row
// is no longer in the state From, Apply writes nothing and fails with a [Fault] of class
// [ErrBusy]. Apply sets UpdatedAt and increments Revision of every row it updates.
//
// Apply fails with a [Fault] of code [CodeRepeated] if another operation has the same
// requester and key.
type Change struct {
	Operation *Operation // inserted if its id is new, else replaced
	Events    []Event    // appended; Seq is set by the store
	// NewTemplate fails with [CodeExists]. DeleteTemplate is the name of a template to
	// delete, empty for none; it fails with a [Fault] of class [ErrNotFound], or of code
	// [CodeInUse] ("in use by N VM(s)") while VMs use it.
	NewTemplate    *Template
	DeleteTemplate string

	NewVM    *VM // fails with [CodeExists], or with [ErrNotFound] if its template does not exist
	VM       *VMUpdate
	DeleteVM string // id; empty for none
	NewDisk  *Disk  // fails with [CodeExists]
	Disks    []DiskUpdate
	// DeleteDisk is the id of a disk to delete, empty for none.
	DeleteDisk string

	// NewImage fails with [CodeExists]. DeleteImage is the name of an image to delete,
	// empty for none; it fails with [ErrNotFound], or with [CodeInUse] ("in use by N VM(s)
	// and M disk(s)") while its content is the base of a disk or in a drive and no other
	// available image has that content.
	NewImage    *Image
	Image       *ImageUpdate
	DeleteImage string
	// Seed replaces the recorded seed of a VM, which must exist.
	Seed *Seed

	// NewNetwork fails with [CodeExists]. DeleteNetwork is the name of a network to
	// delete, empty for none; it fails with [ErrNotFound], or with [CodeInUse] ("in use by
	// N VM(s)") while NICs are on it.
	NewNetwork    *Network
	Network       *Network // replaces the network of the same name; name, mode and CreatedAt never change
	DeleteNetwork string
	// Learned records observations of guests. VMs may be in any state; VMs that do not
	// exist are ignored.
	Learned []Learned
}

// Empty reports whether c changes no VM, disk or image, the only records that settling a
// resource changes.
func (c Change) Empty() bool {
	return c.VM == nil && len(c.Disks) == 0 && c.DeleteDisk == "" && c.Image == nil && c.DeleteImage == ""
}

// Applied holds the rows that [Store.Apply] wrote, with the fields that the store sets (Seq,
// Revision, UpdatedAt). Rows that were not written, or were deleted, are nil.
type Applied struct {
	Template *Template // of NewTemplate
	VM       *VM       // of NewVM or VM, including the changes of Learned
	Disks    []Disk    // of NewDisk, then of Disks in their order
	Image    *Image    // of NewImage or Image
	Network  *Network  // of NewNetwork or Network
	Learned  []VM      // the VMs that Learned changed, in its order
}

// Learned holds observations of a guest. Each non-zero time in Boot is recorded if none is
// recorded yet; with Reset all recorded times are deleted first. Addresses, if not nil,
// replace the recorded learned addresses.
type Learned struct {
	VMID      string
	Reset     bool
	Boot      Boot
	Addresses *[]LearnedAddress
}

// A VMUpdate replaces the record of a VM that is still in state From. The id, the UUID, the
// template and CreatedAt never change; Boot and Learned are ignored. Like NewVM it fails with
// a [Fault] of code [CodeInUse] if another VM has the same address, MAC or host port, and
// with [ErrNotFound] if a network does not exist.
type VMUpdate struct {
	From State
	VM   VM
}

// A DiskUpdate replaces the record of a disk that is still in state From. The id and
// CreatedAt never change.
type DiskUpdate struct {
	From DiskState
	Disk Disk
}

// An ImageUpdate replaces the record of an image that is still in state From. The name, the
// source and CreatedAt never change.
type ImageUpdate struct {
	From  ImageState
	Image Image
}
