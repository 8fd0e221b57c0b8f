package server

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Media types of answers.
const (
	jsonType    = "application/json"
	problemType = "application/problem+json"
	bytesType   = "application/octet-stream"
)

// An encoder encodes JSON into a buffer. Encoders are pooled: with a new encoder
// for each answer, GET /vms/{id} costs 5 us more CPU time, 12 % of the request
// (server/bench_test.go).
type encoder struct {
	buf  bytes.Buffer
	json *json.Encoder // writes to buf
}

var encoders = sync.Pool{New: func() any {
	e := &encoder{}
	e.json = json.NewEncoder(&e.buf)
	e.json.SetEscapeHTML(false) // answers are never embedded in HTML
	return e
}}

// maxKept is the capacity in bytes above which free discards an encoder.
const maxKept = 2 * taggedBytes

// getEncoder returns an empty encoder. The caller must free it.
func getEncoder() *encoder { return encoders.Get().(*encoder) }

// free returns e to the pool. The caller must not use e or its buffer after that.
func (e *encoder) free() {
	if e.buf.Cap() <= maxKept {
		e.buf.Reset()
		encoders.Put(e)
	}
}

// encode appends the JSON of v and a newline.
func (e *encoder) encode(v any) error {
	if a, ok := v.(jsonAppender); ok {
		e.buf.Write(append(a.appendJSON(e.buf.AvailableBuffer()), '\n'))
		return nil
	}
	return e.json.Encode(v)
}

// An answer is a complete answer: the [openapi.Response] of most operations. The
// compiler does not check that it fits its operation; the tests validate every
// answer against the contract.
type answer struct {
	status    int
	mediaType string // application/json if empty
	body      any    // nil for none
	etag      string
	location  string
	applied   bool // Preference-Applied: wait
}

// created returns a as the answer 201 to the request that created the resource at
// location.
func (a answer) created(location string) answer {
	a.status, a.location = http.StatusCreated, location
	return a
}

// sendTimeout is how long a client may take to read one write.
const sendTimeout = time.Minute

// limitSending sets the write deadline of the connection, so that a client that
// does not read is disconnected. Each write of an answer calls it first.
func limitSending(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sendTimeout)) // fails only for writers of tests
}

// Respond implements [openapi.Response]. It sends nothing if the body cannot be
// encoded.
func (a answer) Respond(w http.ResponseWriter) error {
	limitSending(w)
	h := w.Header()
	if a.etag != "" {
		h.Set("Etag", a.etag)
	}
	if a.location != "" {
		h.Set("Location", a.location)
	}
	if a.applied {
		h.Set("Preference-Applied", "wait")
	}
	if a.body == nil {
		w.WriteHeader(a.status)
		return nil
	}
	e := getEncoder()
	defer e.free()
	if err := e.encode(a.body); err != nil {
		return err
	}
	if a.mediaType == "" {
		a.mediaType = jsonType
	}
	h.Set("Content-Type", a.mediaType)
	h.Set("Content-Length", strconv.Itoa(e.buf.Len()))
	w.WriteHeader(a.status)
	_, err := w.Write(e.buf.Bytes())
	return err
}
