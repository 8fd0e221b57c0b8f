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
	StatusDegraded = "degraded" // the last pass failed or the next is overdue; Error says which
)

// Status is the status and the findings of the observer.
type Status struct {
	Status        string
	Error         string // why Status is degraded
	Repair        string // [RepairAuto] or [RepairReport]
	CheckInterval time.Duration
	LastRunAt     time.Time // when the last pass began, zero before the first
	LastDuration  time.Duration
	// Issues are the findings of the last successful pass and the repairs since then,
	// ordered by resource and type.
	Issues []Issue
}

// An Issue is a disagreement between the records and the host.
type Issue struct {
	Type        IssueType
	Resource    vm.Resource
	Details     string // for people
	FirstSeenAt time.Time
	Repair      string    // the repair that was made; empty if none
	RepairedAt  time.Time // zero if it was not repaired
}

// Status returns a copy of the current status. It does not wait for a pass.
func (o *Observer) Status() Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.status
	s.Repair = o.o.Repair
	ended := s.LastRunAt.Add(s.LastDuration)
	if s.Status == StatusOK && time.Since(ended) > overdue(o.o.Interval) {
		s.Status = StatusDegraded
		s.Error = "the last pass ended at " + ended.UTC().Format(time.RFC3339) + ", and the next is overdue"
	}
	s.Issues = slices.Concat(s.Issues, o.repaired)
	slices.SortStableFunc(s.Issues, compareIssues)
	return s
}

// overdue returns the longest time between the ends of two passes, with every timeout of the
// host and of the repairs used up.
func overdue(interval time.Duration) time.Duration { return 2*interval + passTimeout + settleTimeout }

func compareIssues(a, b Issue) int {
	return cmp.Or(cmp.Compare(a.Resource.String(), b.Resource.String()), cmp.Compare(a.Type, b.Type))
}

func issueAttrs(i Issue) []any {
	return []any{"issue", i.Type, "resource", i.Resource, "details", i.Details, "repair", i.Repair}
}
