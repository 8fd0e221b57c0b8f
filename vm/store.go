package vm

import (
	"context"
	"net/netip"
	"time"
)

// Reader is the recorded state, to look at. Lists are in order of creation,
// oldest first.
type Reader interface {
	// Template returns one template, or a [Fault] of class [ErrNotFound].
	Template(ctx context.Context, name string) (Template, error)
	Templates(ctx context.Context, p Page) ([]Template, error)
	// VM returns one VM, or a [Fault] of class [ErrNotFound].
	VM(ctx context.Context, id string) (VM, error)
	VMs(ctx context.Context, f VMFilter, p Page) ([]VM, error)
	// VMSummaries is VMs in brief, for a caller that looks at every VM: a ninth of the
	// CPU time and a fifteenth of the memory of VMs.
	VMSummaries(ctx context.Context, f VMFilter, p Page) ([]VMSummary, error)
	// Disk returns one data disk, or a [Fault] of class [ErrNotFound].
	Disk(ctx context.Context, id string) (Disk, error)
	Disks(ctx context.Context, f DiskFilter, p Page) ([]Disk, error)
	// Image returns one image, or a [Fault] of class [ErrNotFound].
	Image(ctx context.Context, name string) (Image, error)
	Images(ctx context.Context, f ImageFilter, p Page) ([]Image, error)
	// Seed returns what is recorded of a VM's cloud-init data, or a [Fault] of class
	// [ErrNotFound] if nothing is.
	Seed(ctx context.Context, vmID string) (Seed, error)
	// Network returns one network, or a [Fault] of class [ErrNotFound].
	Network(ctx context.Context, name string) (Network, error)
	Networks(ctx context.Context, p Page) ([]Network, error)
	// Leases returns who is on a network, in order of their addresses.
	Leases(ctx context.Context, network string) ([]Lease, error)
	// FreeIP returns the lowest address from first to last that no NIC on the
	// network has and that is not in except, or a [Fault] of code
	// [CodeAddressesExhausted].
	FreeIP(ctx context.Context, network string, first, last netip.Addr, except []netip.Addr) (netip.Addr, error)
	// Operation returns one operation, or a [Fault] of class [ErrNotFound].
	Operation(ctx context.Context, id string) (Operation, error)
	Operations(ctx context.Context, f OperationFilter, p Page) ([]Operation, error)
	// OperationByKey returns the operation that requestedBy began under an
	// Idempotency-Key, and the reply that was kept of it, nil if none was yet;
	// or a [Fault] of class [ErrNotFound].
	OperationByKey(ctx context.Context, requestedBy, key string) (Operation, *Reply, error)
	// Events returns the events after p.After, at most p.Limit.
	Events(ctx context.Context, f EventFilter, p Page) ([]Event, error)
	// Changes returns the names of what was written since an earlier call, which
	// returned the mark since. It reads no rows and costs what was written. Call it
	// before reading the rows it names: a change in between shows up in the next call.
	Changes(ctx context.Context, since Mark) (Changes, error)
	// LastEvent returns the number of the newest event there ever was, 0 for none.
	LastEvent(ctx context.Context) (int64, error)
}

// Store is the recorded state, durable: what a method that writes has returned
// without an error survives a power cut.
type Store interface {
	Reader
	// Apply records everything in c in one transaction, or nothing, and returns
	// the rows it wrote.
	Apply(ctx context.Context, c Change) (Applied, error)
	// PruneOperations forgets the operations that were over before a time and
	// returns how many.
	PruneOperations(ctx context.Context, before time.Time) (int, error)
	// PruneEvents forgets the events from before a time, and the oldest beyond
	// the newest keep ones, and returns how many.
	PruneEvents(ctx context.Context, before time.Time, keep int) (int, error)
	// KeepReply keeps what was answered to the request that began an operation.
	KeepReply(ctx context.Context, operationID string, r Reply) error
	// Note and SetNote read and write a small fact the daemon keeps about
	// itself, such as the host's boot it last saw; "" if it was never written.
	Note(ctx context.Context, name string) (string, error)
	SetNote(ctx context.Context, name, value string) error
}

// A Page is a part of a list: at most Limit entries (0: all of them) after the
// one whose Seq is After.
type Page struct {
	After int64
	Limit int
}

// A VMSummary is the part of a VM that says whether it needs a closer look.
type VMSummary struct {
	Seq      int64
	ID       string
	State    State
	Reason   Reason
	Revision int64
}

// A Mark is a point between two changes of the records. It is valid in the process
// that got it. Its zero value is before all changes.
type Mark int64

// Changes is what was written since a [Mark]. Deleted rows are named, too.
type Changes struct {
	Mark Mark // for the next call
	// All means that any row may have changed and the lists are empty: since the zero
	// mark, after a write by another process, and after too many changes.
	All                          bool
	VMs, Disks, Images, Networks []string // each name once, in no order
}

// A VMFilter selects VMs; its zero value selects all. With one of State, Template,
// Active, Autostart and Label, a page costs what it returns. Each further condition,
// and Network, also costs what it rejects.
type VMFilter struct {
	State    State
	Template string
	Network  string // of one of its NICs
	// Active selects the VMs that are not stopped, have a restart due, or have a NIC that
	// is attaching or detaching.
	Active bool
	// Autostart selects the VMs that start with the host and whose desired state is
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
	Unavailable bool // only those whose State is not [ImageAvailable]
	SHA256      string
	// Label and LabelValue are as in [VMFilter].
	Label, LabelValue string
}

// An OperationFilter selects operations; its zero value selects all.
type OperationFilter struct {
	Resource Resource
	Kind     Kind
	State    OpState
	Open     bool // only those that are not over
}

// An EventFilter selects events; its zero value selects all.
type EventFilter struct {
	Type     string // a whole type such as "vm.state", or a prefix up to a dot such as "vm."
	Resource Resource
}

// A Change is what one transaction records. State is written compare-and-set:
// if a row is no longer in the state it is said to come from, nothing at all is
// written and Apply fails with a [Fault] of class [ErrBusy]. Apply sets
// UpdatedAt and raises Revision of every row it updates.
//
// An operation whose requester and key are those of another one is not
// inserted: Apply fails with a [Fault] of code [CodeRepeated].
type Change struct {
	Operation *Operation // inserted if its id is new, else replaced
	Events    []Event    // appended; Seq is set by the store
	// NewTemplate fails with [CodeExists]. DeleteTemplate is the name of a
	// template to forget, empty for none; it fails with a [Fault] of class
	// [ErrNotFound], or of code [CodeInUse] ("in use by N VM(s)") while VMs are
	// made of it.
	NewTemplate    *Template
	DeleteTemplate string

	NewVM    *VM // fails with [CodeExists], or with [ErrNotFound] if its template is gone
	VM       *VMUpdate
	DeleteVM string // id; empty for none
	NewDisk  *Disk  // fails with [CodeExists]
	Disks    []DiskUpdate
	// DeleteDisk is the id of a disk to forget, empty for none.
	DeleteDisk string

	// NewImage fails with [CodeExists]. DeleteImage is the name of an image to
	// forget, empty for none; it fails with [ErrNotFound], or with [CodeInUse] ("in
	// use by N VM(s) and M disk(s)") while its content is the base of a disk or in a
	// drive and no other image that is available has it.
	NewImage    *Image
	Image       *ImageUpdate
	DeleteImage string
	// Seed replaces what is recorded of the seed of a VM, which must be there.
	Seed *Seed

	// NewNetwork fails with [CodeExists]. DeleteNetwork is the name of a network
	// to forget, empty for none; it fails with [ErrNotFound], or with
	// [CodeInUse] ("in use by N VM(s)") while NICs are on it.
	NewNetwork    *Network
	Network       *Network // replaces the one of its name; name, mode and CreatedAt never change
	DeleteNetwork string
	// Learned records what was seen of guests, of VMs in any state; of a VM that
	// is gone, nothing.
	Learned []Learned
}

// Empty reports whether c changes no VM, disk or image: what settling a resource can
// change.
func (c Change) Empty() bool {
	return c.VM == nil && len(c.Disks) == 0 && c.DeleteDisk == "" && c.Image == nil && c.DeleteImage == ""
}

// Applied is what [Store.Apply] wrote: the rows as they are recorded at the end of
// its transaction, with all that the store sets (Seq, Revision, UpdatedAt). What
// the change did not write, or deleted, is nil.
type Applied struct {
	Template *Template // of NewTemplate
	VM       *VM       // of NewVM or VM, with what Learned says of it
	Disks    []Disk    // of NewDisk, then of Disks in their order
	Image    *Image    // of NewImage or Image
	Network  *Network  // of NewNetwork or Network
	Learned  []VM      // of Learned, in its order: those that it changed
}

// Learned is what was seen of a guest. Each time in Boot that is not zero is
// recorded unless there is one already; with Reset all there were are forgotten
// first. Addresses, if not nil, replace those that were learned before.
type Learned struct {
	VMID      string
	Reset     bool
	Boot      Boot
	Addresses *[]LearnedAddress
}

// A VMUpdate replaces what is recorded of a VM, if it is still in state From.
// The id, the UUID, the template and CreatedAt never change; Boot and Learned are
// not recorded by it. An address, a MAC or a host port that another VM has makes
// it fail with a [Fault] of code [CodeInUse], as it does a NewVM; a network that is
// not there, with [ErrNotFound].
type VMUpdate struct {
	From State
	VM   VM
}

// A DiskUpdate replaces what is recorded of a disk, if it is still in state
// From. The id and CreatedAt never change.
type DiskUpdate struct {
	From DiskState
	Disk Disk
}

// An ImageUpdate replaces what is recorded of an image, if it is still in state
// From. The name, the source and CreatedAt never change.
type ImageUpdate struct {
	From  ImageState
	Image Image
}
