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

// An encoder writes JSON into a buffer that is used again and again.
type encoder struct {
	buf  bytes.Buffer
	json *json.Encoder // writes to buf
}

var encoders = sync.Pool{New: func() any {
	e := &encoder{}
	e.json = json.NewEncoder(&e.buf)
	e.json.SetEscapeHTML(false) // it is never part of a page
	return e
}}

// maxKept is how large a buffer may have grown to be kept for another answer.
const maxKept = 256 << 10

func getEncoder() *encoder { return encoders.Get().(*encoder) }

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

// An answer is a whole answer: the [openapi.Response] of most operations. Nothing
// ties it to an operation; the tests validate every answer against the contract.
type answer struct {
	status    int
	mediaType string // application/json if empty
	body      any    // nil for none
	etag      string
	location  string
	applied   bool // Preference-Applied: wait
}

// created makes a the answer of the request that made what it shows.
func (a answer) created(location string) answer {
	a.status, a.location = http.StatusCreated, location
	return a
}

// sendTimeout is how long a client may take to read what is sent to it at once.
const sendTimeout = time.Minute

// limitSending ends the connection of a client that does not read: an answer
// waits for nobody, whoever asked. It holds until the next answer sets it anew.
func limitSending(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sendTimeout)) // a test's writer has none
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
