package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/semaphore"

	"vmand/vm"
)

// maxBody is the maximum size in bytes of a JSON body.
const maxBody = 1 << 20

// maxBodies is the maximum size in bytes of all bodies that are read and validated at
// the same time.
const maxBodies = 32 * maxBody

// A bodyBudget bounds the memory of the bodies that are read and validated at the same
// time. It is safe for concurrent use.
type bodyBudget struct{ left *semaphore.Weighted }

func newBodyBudget() *bodyBudget { return &bodyBudget{semaphore.NewWeighted(maxBodies)} }

// bodyPatience is how long a request waits for room for its body.
const bodyPatience = 5 * time.Second

// reserve blocks until there is room for a body of size bytes. The caller must call
// release when the body is validated.
func (b *bodyBudget) reserve(ctx context.Context, size int64) (release func(), err error) {
	size = min(size, maxBody)
	ctx, cancel := context.WithTimeout(ctx, bodyPatience)
	defer cancel()
	if b.left.Acquire(ctx, size) != nil {
		return nil, &vm.Fault{
			Code:   vm.CodeUnavailable,
			Detail: fmt.Sprintf("other requests send bodies of %d bytes in all, the maximum", maxBodies),
			Hint:   "send fewer requests with large bodies at the same time",
		}
	}
	return func() { b.left.Release(size) }, nil
}

// readBody reads the body of r, whose length must be known, and replaces it by a reader
// of the same bytes. It rejects a body above maxBody without reading it.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	if r.ContentLength > maxBody {
		w.Header().Set("Connection", "close") // the rest of the body is not read
		return nil, &vm.Fault{Code: codeTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", maxBody)}
	}
	data := make([]byte, r.ContentLength)
	_, err := io.ReadFull(r.Body, data)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		return nil, &vm.Fault{Code: codeTimeout, Detail: "the body did not arrive in time"}
	case err != nil:
		return nil, &vm.Fault{Code: codeMalformed, Detail: "the body ended early", Err: err}
	}
	// The deadline is for the body only: the answer may be held for longer.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	data = bytes.TrimPrefix(data, []byte(byteOrderMark))
	r.Body = bufferedBody{bytes.NewReader(data)}
	return data, nil
}

// byteOrderMark is what some editors and PowerShell put before JSON. A parser may ignore
// it (RFC 8259, 8.1).
const byteOrderMark = "\ufeff"

// checkCoding refuses a body with a content coding, such as gzip: its length says nothing
// about the length of the content, and no request needs it. A compressed image has a media
// type of its own and no coding.
func checkCoding(r *http.Request) error {
	for _, line := range r.Header["Content-Encoding"] {
		for coding := range strings.SplitSeq(line, ",") {
			if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
				return &vm.Fault{
					Code:   codeMediaType,
					Detail: fmt.Sprintf("the Content-Encoding %.40q of the body is not accepted", coding),
					Hint:   "send the body plain, without Content-Encoding; an image that is a compressed file needs none",
				}
			}
		}
	}
	return nil
}

// A bufferedBody is a body that was read completely.
type bufferedBody struct{ *bytes.Reader }

// Close implements [io.Closer].
func (bufferedBody) Close() error { return nil }

// stream replaces the body of a request by a streamedBody of at most limit bytes (0:
// no limit). Each read has a deadline of BodyTimeout.
func (s *Server) stream(c echo.Context, limit uint64) error {
	r, w := c.Request(), c.Response()
	b := &streamedBody{ReadCloser: r.Body, control: http.NewResponseController(w.Writer), timeout: s.o.BodyTimeout}
	if limit > 0 {
		b.tooLarge = &vm.Fault{Code: codeTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", limit)}
		if r.ContentLength > int64(limit) {
			w.Header().Set("Connection", "close") // the rest of the body is not read
			return b.tooLarge
		}
		b.ReadCloser = http.MaxBytesReader(w, r.Body, int64(limit))
	}
	r.Body = b
	return nil
}

// A streamedBody is a body that the handler reads while it arrives.
type streamedBody struct {
	io.ReadCloser
	control  *http.ResponseController
	timeout  time.Duration // of each read
	tooLarge *vm.Fault
	fault    *vm.Fault // why it ended early
	begun    bool      // the handler has begun to read it
	ended    bool      // it was read completely
}

func (b *streamedBody) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(time.Now().Add(b.timeout)) // fails only for writers of tests
	b.begun = true
	n, err := b.ReadCloser.Read(p)
	var big *http.MaxBytesError
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		b.ended = true
		_ = b.control.SetReadDeadline(time.Time{}) // see readBody
		return n, err
	case errors.As(err, &big):
		b.fault = b.tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.fault = &vm.Fault{Code: codeTimeout, Detail: "the body did not arrive in time"}
	default:
		b.fault = &vm.Fault{Code: codeMalformed, Detail: "the body ended early", Err: err}
	}
	return n, b.fault
}

// Limits of drainBody.
const (
	drainBytes   = 64 << 20
	drainTimeout = 10 * time.Second
)

// drainBody reads the rest of the body of a request before it is refused, and discards it. Many
// clients read no answer before they have sent the whole body, and fail if the connection is
// closed meanwhile. It reports whether the body has ended. A body that is larger than
// drainBytes, or takes longer than drainTimeout, is not read to its end, and one that the
// client only sends after an answer of status 100 is not asked for.
func drainBody(c echo.Context) bool {
	r := c.Request()
	_, buffered := r.Body.(bufferedBody)
	body, streamed := r.Body.(*streamedBody)
	from := io.Reader(r.Body)
	if streamed {
		from = body.ReadCloser
	}
	switch {
	case r.Body == nil || r.Body == http.NoBody || buffered || streamed && body.ended:
		return true
	case r.ContentLength > drainBytes, streamed && body.fault != nil,
		strings.EqualFold(r.Header.Get("Expect"), "100-continue") && !(streamed && body.begun):
		return false
	}
	control := http.NewResponseController(c.Response().Writer)
	_ = control.SetReadDeadline(time.Now().Add(drainTimeout)) // fails only for writers of tests
	n, err := io.Copy(io.Discard, io.LimitReader(from, drainBytes))
	if err != nil || n == drainBytes {
		return false
	}
	_ = control.SetReadDeadline(time.Time{}) // see readBody
	return true
}

// expectNoBody returns a fault if r has a body. It reads at most one byte: some
// requests without a body need no authentication, so their bodies must not use
// memory.
func expectNoBody(w http.ResponseWriter, r *http.Request) ([]vm.FieldFault, error) {
	if r.ContentLength <= 0 { // the length is not known
		switch n, err := r.Body.Read(make([]byte, 1)); {
		case n == 0 && errors.Is(err, io.EOF):
			_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // see readBody
			return nil, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			w.Header().Set("Connection", "close")
			return nil, &vm.Fault{Code: codeTimeout, Detail: "the body did not arrive in time"}
		case n == 0 && err != nil:
			return nil, &vm.Fault{Code: codeMalformed, Detail: "the body ended early", Err: err}
		}
	}
	w.Header().Set("Connection", "close") // the rest of the body is not read
	return []vm.FieldFault{{Detail: "this request must not have a body"}}, nil
}

// binder decodes the body, which is in memory and validated, into the generated
// types. The binder of echo supports fewer media types and also binds parameters.
type binder struct{}

// Bind implements [echo.Binder].
func (binder) Bind(into any, c echo.Context) error {
	data, err := io.ReadAll(c.Request().Body)
	if err != nil || len(data) == 0 {
		return err
	}
	err = json.Unmarshal(data, into)
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		// 2.0 and 1e2 are integers in JSON Schema, and not in Go.
		return invalid(vm.FieldFault{
			Field:  pointerOf(wrong.Field),
			Detail: "must be a whole number without a fraction or an exponent",
		})
	}
	if err != nil {
		return malformed("the body is not JSON")
	}
	return nil
}
