package server

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

// Events reports new events.
type Events interface {
	NextEvent() <-chan struct{}
}

const (
	streamMedia = "text/event-stream"
	// heartbeat is the time between two comments in a stream, which show the client and
	// proxies that the connection is alive.
	heartbeat = 15 * time.Second
	// eventTimeout is how long a client of a stream may take to read one write.
	eventTimeout = 10 * time.Second
	// stopPatience is the same while the server stops.
	stopPatience = time.Second
)

// streamKey marks the context of a request that wants a stream.
type streamKey struct{}

// wantsStream reports whether the Accept header names the media type of streams.
// Wildcards do not count.
func wantsStream(h http.Header) bool {
	for _, line := range h["Accept"] {
		for media := range strings.SplitSeq(line, ",") {
			name, parameters, err := mime.ParseMediaType(media)
			if quality, given := parameters["q"]; err == nil && name == streamMedia {
				q, err := strconv.ParseFloat(quality, 64)
				return !given || err == nil && q > 0
			}
		}
	}
	return false
}

// ListEvents implements [openapi.StrictServerInterface].
func (s *Server) ListEvents(ctx context.Context, r openapi.ListEventsRequestObject) (openapi.Response, error) {
	f := vm.EventFilter{Type: value(r.Params.Type), Resource: vm.ParseResource(value(r.Params.Resource))}
	if ctx.Value(streamKey{}) != nil {
		return s.newStream(ctx, f, r.Params)
	}
	limit := defaultLimit
	if r.Params.Limit != nil {
		limit = *r.Params.Limit
	}
	after, err := s.knownEvent(ctx, value(r.Params.Since))
	if err != nil {
		return nil, err
	}
	l := list[vm.Event]{
		ctx:       ctx,
		noneMatch: r.Params.IfNoneMatch,

		seq: func(e *vm.Event) int64 { return e.Seq },
		api: func(e *vm.Event) any { return apiEvent(e) },
	}
	if l.page, err = s.reader.Events(ctx, f, vm.Page{After: after, Limit: limit + 1}); err != nil {
		return nil, err
	}
	if len(l.page) > limit {
		l.page = l.page[:limit]
		next := query("type", f.Type, "resource", f.Resource.String(), "limit", strconv.Itoa(limit), "since",
			strconv.FormatInt(l.page[limit-1].Seq, 10))
		l.link = fmt.Sprintf(`</events?%s>; rel="next"`, next.Encode())
	}
	return l, nil
}

// knownEvent returns seq, or 0 if seq is higher than the number of the last event:
// then it was assigned before a backup was restored.
func (s *Server) knownEvent(ctx context.Context, seq int64) (int64, error) {
	if seq == 0 {
		return 0, nil
	}
	last, err := s.reader.LastEvent(ctx)
	if seq > last {
		seq = 0
	}
	return seq, err
}

// A stream is the answer with a stream of Server-Sent Events. It reads the events from
// the tail or the store and buffers none, so a slow client misses no event.
type stream struct {
	s      *Server
	ctx    context.Context // of the request
	filter vm.EventFilter
	after  int64 // number of the last event that was sent
	leave  func()

	rc  *http.ResponseController
	w   http.ResponseWriter
	enc *encoder
}

// newStream returns a stream that starts after the last event that the client has
// received.
func (s *Server) newStream(ctx context.Context, f vm.EventFilter, p openapi.ListEventsParams) (*stream, error) {
	st := &stream{s: s, ctx: ctx, filter: f}
	since := p.LastEventID
	if since == nil {
		since = p.Since
	}
	leave, err := s.streams.enter(vm.CallerOf(ctx).Name)
	if err != nil {
		return nil, err
	}
	st.leave = leave
	if since == nil {
		st.after, err = s.reader.LastEvent(ctx)
	} else {
		st.after, err = s.knownEvent(ctx, *since)
	}
	if err != nil {
		leave()
		return nil, err
	}
	return st, nil
}

// Respond implements [openapi.Response]. It blocks until the client disconnects or
// the server stops. It returns an error if the events cannot be read.
func (st *stream) Respond(w http.ResponseWriter) error {
	st.w, st.rc, st.enc = w, http.NewResponseController(w), getEncoder()
	defer st.enc.free()
	defer st.leave()
	w.Header().Set("Content-Type", streamMedia)
	w.WriteHeader(http.StatusOK)
	defer context.AfterFunc(st.s.stopping, func() { _ = st.rc.SetWriteDeadline(time.Now().Add(stopPatience)) })()
	beat := time.NewTicker(st.s.heartbeat)
	defer beat.Stop()
	for {
		next := st.s.Events.NextEvent() // before the read, or an event can be missed
		if ok, err := st.catchUp(); !ok {
			return err
		}
		select {
		case <-next:
		case <-beat.C:
			st.enc.buf.WriteString(":\n\n")
		case <-st.ctx.Done():
			return nil
		case <-st.s.stopping.Done():
			return nil
		}
	}
}

// catchUp sends the buffered bytes and all new events. It reports whether the stream
// can continue.
func (st *stream) catchUp() (bool, error) {
	for {
		events, last, err := st.next()
		if st.ctx.Err() != nil || st.s.stopping.Err() != nil {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		for i := range events {
			st.enc.buf.Write(events[i].frame)
			st.after = events[i].Seq
			if st.enc.buf.Len() >= flushAt && !st.send() {
				return false, nil
			}
		}
		if !st.send() {
			return false, nil
		}
		if last {
			return true, nil
		}
	}
}

// next returns the next events of the stream: from the tail, or, if the client is too
// far behind, from the database. last reports whether there are no more.
func (st *stream) next() (events []sentEvent, last bool, err error) {
	newest, ok, err := st.s.tail.since(st.ctx, st.after)
	if err != nil {
		return nil, false, err
	}
	if ok {
		for _, e := range newest {
			if passes(st.filter, &e.Event) {
				events = append(events, e)
			}
		}
		if len(newest) > 0 && len(events) == 0 { // none for this stream
			st.after = newest[len(newest)-1].Seq
		}
		return events, true, nil
	}
	read, err := st.s.reader.Events(st.ctx, st.filter, vm.Page{After: st.after, Limit: wholePage})
	if err != nil {
		return nil, false, err
	}
	for i := range read {
		frame, err := frameOf(&read[i])
		if err != nil {
			return nil, false, err
		}
		events = append(events, sentEvent{read[i], frame})
	}
	return events, len(read) < wholePage, nil
}

// send sends the buffered bytes, and at the first call the header of the answer. It
// reports false if the client has disconnected or does not read.
func (st *stream) send() bool {
	begun := time.Now()
	_ = st.rc.SetWriteDeadline(begun.Add(st.s.eventTimeout)) // fails only for writers of tests
	if st.s.stopping.Err() != nil {                          // its shorter deadline may have been overwritten
		return false
	}
	_, err := st.w.Write(st.enc.buf.Bytes())
	if err == nil {
		err = st.rc.Flush()
	}
	st.enc.buf.Reset()
	if err == nil && st.ctx.Err() == nil { // net/http cancels ctx if a flush fails
		return true
	}
	if time.Since(begun) >= st.s.eventTimeout {
		st.s.log.Info("disconnect a client of the event stream that does not read", "request_id",
			vm.CallerOf(st.ctx).RequestID)
	}
	return false
}

func apiEvent(e *vm.Event) *openapi.Event {
	out := &openapi.Event{
		Seq:      e.Seq,
		At:       openapi.Time{Time: e.At},
		Type:     openapi.EventType(e.Type),
		Resource: e.Resource.String(),
		Data:     e.Data,
	}
	if len(out.Data) == 0 {
		out.Data = openapi.RawJSON("{}")
	}
	return out
}
