package vm

import (
	"context"
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
	// Disk returns one data disk, or a [Fault] of class [ErrNotFound].
	Disk(ctx context.Context, id string) (Disk, error)
	Disks(ctx context.Context, f DiskFilter, p Page) ([]Disk, error)
	// Operation returns one operation, or a [Fault] of class [ErrNotFound].
	Operation(ctx context.Context, id string) (Operation, error)
	Operations(ctx context.Context, f OperationFilter, p Page) ([]Operation, error)
}

// Store is the recorded state, durable: what a method that writes has returned
// without an error survives a power cut.
type Store interface {
	Reader
	// CreateTemplate records t and returns it with what the store sets. It
	// fails with a [Fault] of code [CodeExists].
	CreateTemplate(ctx context.Context, t Template) (Template, error)
	// DeleteTemplate fails with a [Fault] of class [ErrNotFound], or of code
	// [CodeInUse] ("in use by N VM(s)") while VMs are made of it.
	DeleteTemplate(ctx context.Context, name string) error
	// Apply records everything in c in one transaction, or nothing.
	Apply(ctx context.Context, c Change) error
	// PruneOperations forgets the operations that were over before a time and
	// returns how many.
	PruneOperations(ctx context.Context, before time.Time) (int, error)
}

// A Page is a part of a list: at most Limit entries (0: all of them) after the
// one whose Seq is After.
type Page struct {
	After int64
	Limit int
}

// A VMFilter selects VMs; its zero value selects all.
type VMFilter struct {
	State    State
	Template string
}

// A DiskFilter selects data disks; its zero value selects all.
type DiskFilter struct {
	State DiskState
	VMID  string
}

// An OperationFilter selects operations; its zero value selects all.
type OperationFilter struct {
	Resource string
	Kind     Kind
	State    OpState
	Open     bool // only those that are not over
}

// A Change is what one transaction records. State is written compare-and-set:
// if a row is no longer in the state it is said to come from, nothing at all is
// written and Apply fails with a [Fault] of class [ErrBusy]. Apply sets
// UpdatedAt and raises Revision of every row it updates.
type Change struct {
	Operation *Operation // inserted if its id is new, else replaced
	NewVM     *VM        // fails with [CodeExists], or with [ErrNotFound] if its template is gone
	VM        *VMUpdate
	DeleteVM  string // id; empty for none
	NewDisk   *Disk  // fails with [CodeExists]
	Disks     []DiskUpdate
	// DeleteDisk is the id of a disk to forget, empty for none.
	DeleteDisk string
}

// A VMUpdate replaces what is recorded of a VM, if it is still in state From.
// The id, the UUID, the template and CreatedAt never change.
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
