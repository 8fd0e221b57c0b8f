package server

import (
	"cmp"
	"context"
	"strings"
	"time"

	"vmand/openapi"
)

// An ObserverStatus is the status and the findings of the observer.
type ObserverStatus struct {
	Status        string // "starting", "ok" or "degraded"
	RepairMode    string // "auto" or "report"; "auto" if empty
	CheckInterval time.Duration
	LastRunAt     time.Time // zero before the first pass
	LastDuration  time.Duration
	Issues        []Issue
}

// An Issue is a disagreement between the records and the host.
type Issue struct {
	Type        string
	Resource    string // "vms/<id>", "disks/<id>" or "storage/<path>"
	Details     string
	FirstSeenAt time.Time
	RepairedAt  time.Time // zero if it was not repaired
	Repair      string    // the repair that was made, or empty
}

// GetObserverStatus implements [openapi.StrictServerInterface].
func (s *Server) GetObserverStatus(context.Context, openapi.GetObserverStatusRequestObject) (openapi.Response, error) {
	st := s.observer()
	out := &openapi.ObserverStatus{
		Status:          openapi.ObserverStatusStatus(st.Status),
		RepairMode:      openapi.ObserverStatusRepairMode(cmp.Or(st.RepairMode, "auto")),
		CheckInterval:   st.CheckInterval.Seconds(),
		LastIssuesCount: len(st.Issues),
		LastIssues:      make([]openapi.Issue, len(st.Issues)),
	}
	if !st.LastRunAt.IsZero() {
		ms := milliseconds(st.LastDuration)
		out.LastRunAt, out.LastDurationMs = optionalTime(st.LastRunAt), &ms
	}
	for i, issue := range st.Issues {
		_, id, _ := strings.Cut(issue.Resource, "/")
		out.LastIssues[i] = openapi.Issue{
			IssueType:   openapi.IssueType(issue.Type),
			ResourceID:  id,
			Details:     issue.Details,
			FirstSeenAt: openapi.Time{Time: issue.FirstSeenAt},
			RepairedAt:  optionalTime(issue.RepairedAt),
			Repair:      optional(&issue.Repair),
		}
	}
	return answer{status: 200, body: out}, nil
}

// milliseconds returns d with a resolution of 1 µs.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
