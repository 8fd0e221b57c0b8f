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

// An Answer is a response of the API.
type Answer struct {
	T       testing.TB
	Request string
	Status  int
	Header  http.Header
	Body    []byte
}

// Call sends a request; body may be nil, a string to send as it is, bytes that are
// no JSON, or anything to send as JSON. Headers are "Name: value".
func (d *Daemon) Call(method, path string, body any, headers ...string) Answer {
	d.T.Helper()
	a, err := d.Try(method, path, body, headers...)
	if err != nil {
		d.T.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// Try is call for goroutines of the test, which may not end it.
func (d *Daemon) Try(method, path string, body any, headers ...string) (Answer, error) {
	var r io.Reader
	media := "application/json"
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case []byte:
		r, media = bytes.NewReader(b), "application/octet-stream"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return Answer{}, err
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(d.T.Context(), method, "http://vmand"+path, r)
	if err != nil {
		return Answer{}, err
	}
	if r != nil {
		req.Header.Set("Content-Type", media)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := d.HTTP.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	a := Answer{T: d.T, Request: method + " " + path, Status: resp.StatusCode, Header: resp.Header}
	a.Body, err = io.ReadAll(resp.Body)
	return a, err
}

// Stream sends a request whose answer is read while it comes, which is not checked
// against the spec.
func (d *Daemon) Stream(req *http.Request) (*http.Response, error) {
	return d.checker.next.RoundTrip(req)
}

// Want fails the test if the status is another.
func (a Answer) Want(status int) Answer {
	a.T.Helper()
	if a.Status != status {
		a.T.Fatalf("%s answered %d; want %d\n%s", a.Request, a.Status, status, a.Body)
	}
	return a
}

// Problem fails the test if it is not one of this status and code, whose detail
// has the words.
func (a Answer) Problem(status int, code string, words ...string) openapi.Problem {
	a.T.Helper()
	a.Want(status)
	p := As[openapi.Problem](a)
	if string(p.Code) != code {
		a.T.Fatalf("%s answered the problem %s; want %s\n%s", a.Request, p.Code, code, a.Body)
	}
	for _, w := range words {
		if !strings.Contains(p.Detail, w) {
			a.T.Fatalf("%s: the detail %q does not say %q", a.Request, p.Detail, w)
		}
	}
	return p
}

// As decodes the answer's body.
func As[T any](a Answer) T {
	a.T.Helper()
	var v T
	if err := json.Unmarshal(a.Body, &v); err != nil {
		a.T.Fatalf("%s: %v\n%s", a.Request, err, a.Body)
	}
	return v
}

const Wait = "Prefer: wait=120"

// Deref returns what a nullable word is, empty if it is null.
func Deref[T ~string](s *T) string {
	if s == nil {
		return ""
	}
	return string(*s)
}
