package server

import (
	"context"
	"net/http"
	"strings"

	"vmand/openapi"
	"vmand/vm"
)

const (
	// maxMessage is the maximum number of bytes of a monitor message.
	maxMessage = 2 << 10
	// maxMessages is the maximum number of monitor messages.
	maxMessages = 200
)

// WhyVM implements [openapi.StrictServerInterface].
func (s *Server) WhyVM(ctx context.Context, r openapi.WhyVMRequestObject) (openapi.Response, error) {
	w, err := s.manager.Why(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return answer{status: http.StatusOK, body: apiWhy(&w)}, nil
}

func apiWhy(w *vm.Why) *openapi.Why {
	v, seen := &w.Recorded, &w.Seen
	out := &openapi.Why{
		Recorded: openapi.WhyRecorded{
			State:        openapi.VMState(v.State),
			Reason:       optional((*string)(&v.Reason)),
			Detail:       optional(&v.ReasonDetail),
			DesiredState: openapi.WhyRecordedDesiredState(v.Desired),
		},
		Process: openapi.WhyProcess{Alive: seen.Alive(), Pid: optionalPID(seen.PID)},
		WhyQMP:  openapi.WhyQMP{Status: optional((*string)(&seen.Status)), Trouble: optional(&seen.Trouble)},
		Verdict: openapi.WhyVerdict{
			State:  openapi.VMState(w.Verdict.State),
			Reason: optional((*string)(&w.Verdict.Reason)),
			Agrees: w.Agrees,
		},
		Busy:       optional(&w.Busy),
		Disks:      make([]openapi.Disk, len(w.Disks)),
		Operations: make([]openapi.Operation, len(w.Operations)),
		Events:     make([]openapi.Event, len(w.Events)),
		Recorder: openapi.Recorder{
			Now:     apiRecording(&w.Flight.Now),
			Crashes: make([]openapi.Recording, len(w.Flight.Crashes)),
		},
		Words: append([]string{}, w.Words...),
	}
	if seen.Plugged != nil {
		out.WhyQMP.Plugged = &seen.Plugged
	}
	for i := range w.Disks {
		out.Disks[i] = *apiDisk(&w.Disks[i])
	}
	for i := range w.Operations {
		out.Operations[i] = *apiOperation(&w.Operations[i])
	}
	for i := range w.Events {
		out.Events[i] = *apiEvent(&w.Events[i])
	}
	for i := range w.Flight.Crashes {
		out.Recorder.Crashes[i] = apiRecording(&w.Flight.Crashes[i])
	}
	return out
}

func apiRecording(r *vm.Recording) openapi.Recording {
	last := r.Messages[max(0, len(r.Messages)-maxMessages):]
	out := openapi.Recording{
		At:       optionalTime(r.At),
		Pid:      optionalPID(r.PID),
		Exit:     optional(&r.Exit),
		Messages: make([]openapi.RecordedMessage, len(last)),
		Serial:   r.Serial,
		Stderr:   r.Stderr,
	}
	for i, m := range last {
		if len(m.Text) > maxMessage {
			m.Text = strings.ToValidUTF8(m.Text[:maxMessage], "")
		}
		out.Messages[i] = openapi.RecordedMessage{
			At:   openapi.Time{Time: m.At},
			Dir:  openapi.RecordedMessageDir(m.Dir),
			Text: m.Text,
		}
	}
	return out
}

func optionalPID(pid int) *int {
	if pid == 0 {
		return nil
	}
	return &pid
}
