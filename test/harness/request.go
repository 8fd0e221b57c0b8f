package harness

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"vmand/openapi"
)

// Wait is the header of a request whose answer is sent when the operation has ended,
// or after two minutes.
const Wait = "Prefer: wait=120"

// An Answer is the API's answer to a request.
type Answer struct {
	T       testing.TB
	Request string // method and path
	Status  int
	Header  http.Header
	Body    []byte
}

// Call sends a request and ends the test if there is no answer. The body is nil for
// none, a string to send as it is, a []byte of an image, or a value to send as JSON.
// Headers have the form "Name: value".
func (d *Daemon) Call(method, path string, body any, headers ...string) Answer {
	d.T.Helper()
	a, err := d.Try(method, path, body, headers...)
	if err != nil {
		d.T.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// Try is Call for goroutines of a test, which must not end it, and for requests that may
// have no answer.
func (d *Daemon) Try(method, path string, body any, headers ...string) (Answer, error) {
	var content io.Reader
	media := "application/json"
	switch b := body.(type) {
	case nil:
	case string:
		content = strings.NewReader(b)
	case []byte:
		content, media = bytes.NewReader(b), "application/octet-stream"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return Answer{}, err
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(d.T.Context(), method, "http://vmand"+path, content)
	if err != nil {
		return Answer{}, err
	}
	if content != nil {
		req.Header.Set("Content-Type", media)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	return d.Send(req)
}

// Send sends a request that the test has made itself.
func (d *Daemon) Send(req *http.Request) (Answer, error) {
	resp, err := d.HTTP.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	a := Answer{
		T:       d.T,
		Request: req.Method + " " + req.URL.RequestURI(),
		Status:  resp.StatusCode,
		Header:  resp.Header,
	}
	a.Body, err = io.ReadAll(resp.Body)
	return a, err
}

// Stream sends a request and returns its answer unread, for answers without an end. It
// does not check the answer against the spec.
func (d *Daemon) Stream(req *http.Request) (*http.Response, error) {
	return d.checker.next.RoundTrip(req)
}

// Want ends the test unless the answer has the status.
func (a Answer) Want(status int) Answer {
	a.T.Helper()
	if a.Status != status {
		a.T.Fatalf("%s answered %d, want %d\n%s", a.Request, a.Status, status, a.Body)
	}
	return a
}

// Problem ends the test unless the answer is a problem with the status, the code, and a
// detail that contains the words.
func (a Answer) Problem(status int, code string, words ...string) openapi.Problem {
	a.T.Helper()
	a.Want(status)
	p := As[openapi.Problem](a)
	if string(p.Code) != code {
		a.T.Fatalf("%s answered the problem %s, want %s\n%s", a.Request, p.Code, code, a.Body)
	}
	for _, w := range words {
		if !strings.Contains(p.Detail, w) {
			a.T.Fatalf("%s answered the detail %q, which does not contain %q", a.Request, p.Detail, w)
		}
	}
	return p
}

// As decodes the body of an answer.
func As[T any](a Answer) T {
	a.T.Helper()
	var v T
	if err := json.Unmarshal(a.Body, &v); err != nil {
		a.T.Fatalf("decode the answer to %s: %v\n%s", a.Request, err, a.Body)
	}
	return v
}

// Get returns what the API shows at a path, and ends the test unless the status is 200.
func Get[T any](d *Daemon, path string) T {
	d.T.Helper()
	return As[T](d.Call("GET", path, nil).Want(200))
}

// Deref returns the string that s points at, or an empty one if s is nil.
func Deref[T ~string](s *T) string {
	if s == nil {
		return ""
	}
	return string(*s)
}
