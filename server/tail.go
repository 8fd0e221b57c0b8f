package server

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"

	"vmand/vm"
)

// maxTail is how many events a tail keeps.
const maxTail = 1024

// A tail holds the newest events for all streams, so that the database is read once for
// an event and not once for each stream. It is safe for concurrent use.
type tail struct {
	reader Records
	events Events

	mu    sync.Mutex
	begun bool
	fresh <-chan struct{} // not closed: there is no event after last
	from  int64           // the number before the first event of kept
	last  int64           // the number of the last event of kept
	kept  []sentEvent     // its elements never change
}

// A sentEvent is an event and its bytes in a stream.
type sentEvent struct {
	vm.Event
	frame []byte
}

// since returns the events after a number. It reports false if the tail no longer has
// them all: the caller must read them from the database.
func (t *tail) since(ctx context.Context, after int64) ([]sentEvent, bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.update(ctx); err != nil {
		return nil, false, err
	}
	if after < t.from {
		return nil, false, nil
	}
	at, _ := slices.BinarySearchFunc(t.kept, after+1, func(e sentEvent, seq int64) int { return int(e.Seq - seq) })
	return t.kept[at:], true, nil
}

// update reads the events after last, unless there are none. It must be called with mu
// held.
func (t *tail) update(ctx context.Context) error {
	if t.fresh != nil {
		select {
		case <-t.fresh:
		default:
			return nil
		}
	}
	fresh := t.events.NextEvent() // before the read, or an event can be missed
	last, err := t.reader.LastEvent(ctx)
	if err != nil {
		return err
	}
	if !t.begun || last-t.last > maxTail { // there was no stream for long
		t.begun, t.from, t.last, t.kept = true, last, last, nil
	}
	for {
		read, err := t.reader.Events(ctx, vm.EventFilter{}, vm.Page{After: t.last, Limit: wholePage})
		if err != nil {
			return err
		}
		if err := t.add(read); err != nil {
			return err
		}
		if len(read) < wholePage {
			t.fresh = fresh
			return nil
		}
	}
}

// add appends events, and forgets the oldest ones. It must be called with mu held.
func (t *tail) add(events []vm.Event) error {
	if len(events) == 0 {
		return nil
	}
	kept := t.kept // callers read only the events up to its old length
	for i := range events {
		frame, err := frameOf(&events[i])
		if err != nil {
			return err
		}
		kept = append(kept, sentEvent{events[i], frame})
	}
	if more := len(kept) - maxTail; more > 0 {
		t.from = kept[more-1].Seq
		kept = kept[more:]
	}
	t.kept, t.last = kept, events[len(events)-1].Seq
	return nil
}

// frameOf returns the bytes of an event in a stream.
func frameOf(e *vm.Event) ([]byte, error) {
	enc := getEncoder()
	defer enc.free()
	enc.buf.WriteString("id: " + strconv.FormatInt(e.Seq, 10) + "\nevent: " + e.Type + "\ndata: ")
	if err := enc.encode(apiEvent(e)); err != nil {
		return nil, err
	}
	enc.buf.WriteByte('\n')
	return bytes.Clone(enc.buf.Bytes()), nil
}

// passes reports whether a filter lets an event through, as [vm.Reader.Events] does.
func passes(f vm.EventFilter, e *vm.Event) bool {
	if f.Resource != (vm.Resource{}) && f.Resource != e.Resource {
		return false
	}
	if strings.HasSuffix(f.Type, ".") {
		return strings.HasPrefix(e.Type, f.Type)
	}
	return f.Type == "" || f.Type == e.Type
}
