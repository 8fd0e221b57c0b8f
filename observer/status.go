package observer

import (
	"cmp"
	"slices"
	"time"

	"vmand/vm"
)

// The values of [Status].Status.
const (
	StatusStarting = "starting" // before the end of the first pass
	StatusOK       = "ok"
	StatusDegraded = "degraded" // the last pass could not look, or the next is overdue; Error says which
)

// Status is what the observer has to say for itself.
type Status struct {
	Status        string
	Error         string // why Status is degraded
	Repair        string // [RepairAuto] or [RepairReport]
	CheckInterval time.Duration
	LastRunAt     time.Time // when the last pass began, zero before the first
	LastDuration  time.Duration
	// Issues are what the last pass that could look found, in order of resource
	// and type, and what has been repaired since.
	Issues []Issue
}

// An Issue is a disagreement between the records and the host.
type Issue struct {
	Type        IssueType
	Resource    vm.Resource
	Details     string // for a person
	FirstSeenAt time.Time
	Repair      string    // what was done about it, empty if nothing was
	RepairedAt  time.Time // zero if it was not repaired
}

// Status returns a copy of the present status. It never blocks for long.
func (o *Observer) Status() Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.status
	s.Repair = o.o.Repair
	if s.Status == StatusOK && time.Since(s.LastRunAt.Add(s.LastDuration)) > overdue(o.o.Interval) {
		s.Status, s.Error = StatusDegraded, "the last pass ended at "+s.LastRunAt.Add(s.LastDuration).UTC().Format(time.RFC3339)+" and the next is overdue"
	}
	s.Issues = slices.Concat(s.Issues, o.repaired)
	slices.SortStableFunc(s.Issues, compareIssues)
	return s
}

// overdue is how long after the end of a pass the next must have ended, even if
// the host, and then repairs, took all the time they have.
func overdue(interval time.Duration) time.Duration { return 2*interval + passTimeout + settleTimeout }

func compareIssues(a, b Issue) int {
	return cmp.Or(cmp.Compare(a.Resource.String(), b.Resource.String()), cmp.Compare(a.Type, b.Type))
}

func issueAttrs(i Issue) []any {
	return []any{"issue", i.Type, "resource", i.Resource, "details", i.Details, "repair", i.Repair}
}
