package server

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Header values that never change, ready for a header map. Nobody may write to
// them.
var (
	jsonType    = []string{"application/json"}
	problemType = []string{"application/problem+json"}
	waitApplied = []string{"wait"}
)

// An encoder writes JSON into a buffer that is used again and again.
type encoder struct {
	buf  bytes.Buffer
	json *json.Encoder
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

// An answer is one whole answer. It is every operation's response object: what
// the specification demands of each is asserted by the tests, which validate
// every answer against it.
type answer struct {
	status    int
	mediaType []string // application/json if nil
	body      any      // nil for none
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

// write sends a. Nothing is sent if the body cannot be encoded.
func (a answer) write(w http.ResponseWriter) error {
	limitSending(w)
	h := w.Header()
	if a.etag != "" {
		h["Etag"] = []string{a.etag}
	}
	if a.location != "" {
		h["Location"] = []string{a.location}
	}
	if a.applied {
		h["Preference-Applied"] = waitApplied
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
	if a.mediaType == nil {
		a.mediaType = jsonType
	}
	h["Content-Type"] = a.mediaType
	h["Content-Length"] = []string{strconv.Itoa(e.buf.Len())}
	w.WriteHeader(a.status)
	_, err := w.Write(e.buf.Bytes())
	return err
}

// The generated code has one interface for each operation.

func (a answer) VisitCreateTemplateResponse(w http.ResponseWriter) error      { return a.write(w) }
func (a answer) VisitGetTemplateResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a answer) VisitDeleteTemplateResponse(w http.ResponseWriter) error      { return a.write(w) }
func (a answer) VisitCreateVMResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a answer) VisitGetVMResponse(w http.ResponseWriter) error               { return a.write(w) }
func (a answer) VisitUpdateVMResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a answer) VisitWhyVMResponse(w http.ResponseWriter) error               { return a.write(w) }
func (a answer) VisitDeleteVMResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a answer) VisitStartVMResponse(w http.ResponseWriter) error             { return a.write(w) }
func (a answer) VisitStopVMResponse(w http.ResponseWriter) error              { return a.write(w) }
func (a answer) VisitRestartVMResponse(w http.ResponseWriter) error           { return a.write(w) }
func (a answer) VisitPauseVMResponse(w http.ResponseWriter) error             { return a.write(w) }
func (a answer) VisitResumeVMResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a answer) VisitResetVMResponse(w http.ResponseWriter) error             { return a.write(w) }
func (a answer) VisitCreateDiskResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a answer) VisitGetDiskResponse(w http.ResponseWriter) error             { return a.write(w) }
func (a answer) VisitUpdateDiskResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a answer) VisitDeleteDiskResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a answer) VisitAttachDiskResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a answer) VisitDetachDiskResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a answer) VisitGetOperationResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a answer) VisitCancelOperationResponse(w http.ResponseWriter) error     { return a.write(w) }
func (a answer) VisitGetHealthResponse(w http.ResponseWriter) error           { return a.write(w) }
func (a answer) VisitGetObserverStatusResponse(w http.ResponseWriter) error   { return a.write(w) }
func (a answer) VisitAdoptOrphanResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a answer) VisitTerminateOrphanResponse(w http.ResponseWriter) error     { return a.write(w) }
func (a answer) VisitDeleteOrphanResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a answer) VisitCreateNetworkResponse(w http.ResponseWriter) error       { return a.write(w) }
func (a answer) VisitGetNetworkResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a answer) VisitUpdateNetworkResponse(w http.ResponseWriter) error       { return a.write(w) }
func (a answer) VisitDeleteNetworkResponse(w http.ResponseWriter) error       { return a.write(w) }
func (a answer) VisitAttachNICResponse(w http.ResponseWriter) error           { return a.write(w) }
func (a answer) VisitListNICsResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a answer) VisitGetNICResponse(w http.ResponseWriter) error              { return a.write(w) }
func (a answer) VisitUpdateNICResponse(w http.ResponseWriter) error           { return a.write(w) }
func (a answer) VisitDetachNICResponse(w http.ResponseWriter) error           { return a.write(w) }
func (a answer) VisitAddPortForwardResponse(w http.ResponseWriter) error      { return a.write(w) }
func (a answer) VisitListPortForwardsResponse(w http.ResponseWriter) error    { return a.write(w) }
func (a answer) VisitGetPortForwardResponse(w http.ResponseWriter) error      { return a.write(w) }
func (a answer) VisitRemovePortForwardResponse(w http.ResponseWriter) error   { return a.write(w) }
func (a answer) VisitSetPasswordResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a answer) VisitTrimVMResponse(w http.ResponseWriter) error              { return a.write(w) }
func (a answer) VisitGetGuestResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a answer) VisitExecCommandResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a answer) VisitWriteFileResponse(w http.ResponseWriter) error           { return a.write(w) }
func (a answer) VisitCreateConsoleTicketResponse(w http.ResponseWriter) error { return a.write(w) }
func (a answer) VisitCreateImageResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a answer) VisitGetImageResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a answer) VisitUpdateImageResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a answer) VisitDeleteImageResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a answer) VisitContinueUploadResponse(w http.ResponseWriter) error      { return a.write(w) }
func (a answer) VisitAttachCDROMResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a answer) VisitListCDROMsResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a answer) VisitGetCDROMResponse(w http.ResponseWriter) error            { return a.write(w) }
func (a answer) VisitEjectCDROMResponse(w http.ResponseWriter) error          { return a.write(w) }
func (a answer) VisitGetCloudInitResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a answer) VisitSetCloudInitResponse(w http.ResponseWriter) error        { return a.write(w) }
