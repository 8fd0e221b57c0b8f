package server

import (
	"context"
	"strings"
	"time"

	"vmand/openapi"
)

// An ObserverStatus is what the observer does and found.
type ObserverStatus struct {
	Status        string // "starting", "ok" or "degraded"
	CheckInterval time.Duration
	LastRunAt     time.Time // zero before the first pass
	LastDuration  time.Duration
	Issues        []Issue
}

// An Issue is one disagreement between what is recorded and what the host shows.
type Issue struct {
	Type        string
	Resource    string // "vms/<id>" or "disks/<id>"
	Details     string
	FirstSeenAt time.Time
	Repair      string // what was done about it, empty if nothing was
}

// GetObserverStatus implements [openapi.StrictServerInterface].
func (s *Server) GetObserverStatus(context.Context, openapi.GetObserverStatusRequestObject) (openapi.GetObserverStatusResponseObject, error) {
	st := s.observer()
	out := &openapi.ObserverStatus{
		Status:          openapi.ObserverStatusStatus(st.Status),
		CheckInterval:   st.CheckInterval.Seconds(),
		LastIssuesCount: len(st.Issues),
		LastIssues:      make([]openapi.Issue, len(st.Issues)),
	}
	if !st.LastRunAt.IsZero() {
		ms := float64(st.LastDuration.Microseconds()) / 1000
		out.LastRunAt, out.LastDurationMs = optionalTime(st.LastRunAt), &ms
	}
	for i, issue := range st.Issues {
		_, id, _ := strings.Cut(issue.Resource, "/")
		out.LastIssues[i] = openapi.Issue{IssueType: openapi.IssueType(issue.Type), ResourceID: id, Details: issue.Details,
			FirstSeenAt: openapi.Time{Time: issue.FirstSeenAt}, Repair: optional(&issue.Repair)}
	}
	return answer{status: 200, body: out}, nil
}
