package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"vmand/vm"
)

// maxBody is the maximum size in bytes of a JSON body.
const maxBody = 1 << 20

// maxDepth is the maximum nesting of JSON: far above every schema, far below a depth
// that needs much stack.
const maxDepth = 32

// readBody reads the body of r and replaces it by a reader of the same bytes. It
// rejects a body above maxBody; if the length was announced, without reading it.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	tooLarge := &vm.Fault{Code: codeTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", maxBody)}
	if r.ContentLength > maxBody {
		w.Header().Set("Connection", "close") // the rest of the body is not read
		return nil, tooLarge
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return nil, tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		return nil, &vm.Fault{Code: codeTimeout, Detail: "the body did not arrive in time"}
	case err != nil:
		return nil, &vm.Fault{Code: codeMalformed, Detail: "the body ended early", Err: err}
	}
	// The deadline is for the body only: the answer may be held for longer.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	r.Body = bufferedBody{bytes.NewReader(data)}
	return data, nil
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

// parseJSON decodes the JSON value in data into maps, slices, strings, booleans, nil
// and [json.Number]. It is stricter than encoding/json: it rejects duplicate member
// names, invalid UTF-8 and data after the value, since parsers interpret them
// differently (RFC 8259, 4 and 8.1).
func parseJSON(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, malformed("the body is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := parseValue(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed("the body has data after the JSON value, at byte %d", d.InputOffset())
	}
	return v, nil
}

func malformed(format string, args ...any) error {
	return &vm.Fault{Code: codeMalformed, Detail: fmt.Sprintf(format, args...)}
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, malformed("the body is nested deeper than %d levels", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, badToken(d, err)
	}
	switch t {
	case json.Delim('{'):
		return parseObject(d, depth)
	case json.Delim('['):
		return parseArray(d, depth)
	}
	return t, nil
}

func parseObject(d *json.Decoder, depth int) (any, error) {
	object := map[string]any{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, badToken(d, err)
		}
		name, _ := t.(string) // the decoder accepts only strings as names
		if _, twice := object[name]; twice {
			return nil, malformed("an object has a duplicate member name, at byte %d", d.InputOffset())
		}
		if object[name], err = parseValue(d, depth+1); err != nil {
			return nil, err
		}
	}
	return object, end(d)
}

func parseArray(d *json.Decoder, depth int) (any, error) {
	array := []any{}
	for d.More() {
		v, err := parseValue(d, depth+1)
		if err != nil {
			return nil, err
		}
		array = append(array, v)
	}
	return array, end(d)
}

// end reads the closing bracket.
func end(d *json.Decoder) error {
	if _, err := d.Token(); err != nil {
		return badToken(d, err)
	}
	return nil
}

func badToken(d *json.Decoder, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("the body is not JSON: unexpected end")
	}
	return malformed("the body is not JSON, at byte %d", d.InputOffset())
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
