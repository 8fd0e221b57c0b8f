package cli

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"vmand/openapi/client"
)

const (
	// maxAnswer is the maximum size of an answer that is kept in memory, in bytes.
	maxAnswer = 64 << 20
	// restartPatience is how long a request waits, after its connection broke, for the daemon
	// to accept connections again.
	restartPatience = 10 * time.Second
	// readPatience is how long the daemon may take to answer a request that only reads.
	readPatience = 30 * time.Second
	// dialPause is the time between two attempts to connect.
	dialPause = 200 * time.Millisecond
)

// A reply is an answer of the daemon, decoded and as it arrived.
type reply[T any] struct {
	value  T
	raw    json.RawMessage
	status int
	header http.Header
}

// operation returns the id of the operation that goes on after the answer; empty for none.
func (r reply[T]) operation() string {
	const prefix = "/operations/"
	if location := r.header.Get("Location"); r.status == http.StatusAccepted && len(location) > len(prefix) {
		return location[len(prefix):]
	}
	return ""
}

// call returns a function that sends a request made by a generated builder, and decodes the
// answer:
//
//	call[client.VM](ctx, a)(client.NewGetVMRequest(server, id, nil))
//
// A request that only reads is repeated once if the connection breaks.
func call[T any](ctx context.Context, a *app) func(*http.Request, error) (reply[T], error) {
	return func(r *http.Request, err error) (reply[T], error) {
		return exchange[T](ctx, a, r, err, r != nil && r.Method == http.MethodGet)
	}
}

// change is call for a request that changes something and accepts an Idempotency-Key. The
// key makes its repetition safe.
func change[T any](ctx context.Context, a *app) func(*http.Request, error) (reply[T], error) {
	return func(r *http.Request, err error) (reply[T], error) {
		if err == nil {
			r.Header.Set("Idempotency-Key", uuid.NewString())
		}
		return exchange[T](ctx, a, r, err, true)
	}
}

func exchange[T any](ctx context.Context, a *app, r *http.Request, err error, again bool) (reply[T], error) {
	var out reply[T]
	if err != nil {
		return out, err
	}
	out, err = attempt[T](ctx, a, r)
	if !again || !broken(err) || ctx.Err() != nil {
		return out, explain(ctx, err)
	}
	patience := time.Now().Add(restartPatience)
	for {
		if r.GetBody != nil {
			if r.Body, err = r.GetBody(); err != nil {
				return out, err
			}
		}
		out, err = attempt[T](ctx, a, r)
		isAway := errors.As(err, new(*dialError))
		if !isAway || time.Now().After(patience) || !pause(ctx, dialPause) {
			return out, explain(ctx, err)
		}
	}
}

// pause waits and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// attempt sends a request once and decodes the answer.
func attempt[T any](ctx context.Context, a *app, r *http.Request) (reply[T], error) {
	var out reply[T]
	resp, err := a.roundTrip(ctx, r)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	out.status, out.header = resp.StatusCode, resp.Header
	out.raw, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return out, err
	case len(out.raw) > maxAnswer:
		return out, fmt.Errorf("the answer of vmand is larger than %s", formatSize(maxAnswer))
	case len(out.raw) == 0:
		return out, nil
	}
	if err := json.Unmarshal(out.raw, &out.value); err != nil {
		return out, failf(exitFailed, "the answer to %s %s is not what vmand sends: %v", r.Method, r.URL.Path, err).
			hint("is this the address of a vmand?")
	}
	return out, nil
}

// stream sends a request and returns the answer unread, which may take any time. The caller
// closes its body.
func (a *app) stream(ctx context.Context, r *http.Request, err error) (*http.Response, error) {
	if err != nil {
		return nil, err
	}
	resp, err := a.roundTrip(ctx, r)
	if err != nil {
		return nil, explain(ctx, err)
	}
	unlimited(resp)
	return resp, nil
}

// unlimited lets the body of an answer take any time.
func unlimited(resp *http.Response) {
	if body, ok := resp.Body.(*answerBody); ok {
		body.silence.end()
	}
}

// roundTrip is send that returns the problem in the answer as an error.
func (a *app) roundTrip(ctx context.Context, r *http.Request) (*http.Response, error) {
	resp, err := a.send(ctx, r)
	if err != nil || resp.StatusCode < 300 || resp.StatusCode == http.StatusNotModified {
		return resp, err
	}
	defer resp.Body.Close()
	return nil, problemOf(resp)
}

// send sends a request. The daemon must not be silent for longer than its patience until the
// body of the answer is read.
func (a *app) send(ctx context.Context, r *http.Request) (*http.Response, error) {
	c, e, err := a.connect()
	if err != nil {
		return nil, err
	}
	patience := a.patience(r)
	ctx, cancel := context.WithCancelCause(ctx)
	silent := newSilence(patience, func() {
		cancel(failf(exitTimedOut, "vmand at %s does not answer for %s", e, patience).
			hint("the request may still be carried out: vman op ls shows the operations"))
	})
	r = r.Clone(ctx)
	e.address(r, a.version)
	watchBody(r, silent)
	resp, err := c.Do(r)
	if err != nil {
		silent.end()
		cause := context.Cause(ctx)
		cancel(nil)
		if errors.As(cause, new(*failure)) {
			return nil, cause
		}
		return nil, err
	}
	resp.Body = &answerBody{resp.Body, ctx, cancel, silent}
	return resp, nil
}

// patience returns how long the daemon may be silent; 0 is without limit.
func (a *app) patience(r *http.Request) time.Duration {
	limit := a.timeout
	if r.Method == http.MethodGet && (limit == 0 || limit > readPatience) {
		limit = readPatience
	}
	if limit == 0 {
		return 0
	}
	// The daemon holds the answer for the time that the request prefers.
	text, _ := strings.CutPrefix(r.Header.Get("Prefer"), "wait=")
	seconds, _ := strconv.Atoi(text)
	return limit + time.Duration(min(max(seconds, 0), maxHold))*time.Second
}

// problemOf returns the problem in an answer as an error.
func problemOf(resp *http.Response) error {
	var p client.Problem
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err != nil {
		return err
	}
	if json.Unmarshal(text, &p) != nil || p.Detail == "" && p.Title == "" {
		return failf(statusOfProblem(resp.StatusCode), "the server answers %s without a reason", resp.Status).
			hint("is this the address of a vmand?")
	}
	return failureOf(p, resp.StatusCode, resp.Header.Get("X-Request-Id"))
}

// connect returns the connections to the daemon; the first call finds it.
func (a *app) connect() (*http.Client, *endpoint, error) {
	a.once.Do(func() {
		if a.endpoint, a.endpointErr = a.findEndpoint(); a.endpointErr == nil {
			a.http = &http.Client{
				Transport: a.endpoint.transport(),
				// The API has no redirects, and one could carry the token elsewhere.
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			}
		}
	})
	return a.http, a.endpoint, a.endpointErr
}

// broken reports whether a connection ended before the answer was complete.
func broken(err error) bool {
	var f *failure
	var d *dialError
	return err != nil && !errors.As(err, &f) && !errors.As(err, &d)
}

// explain returns the error that the user sees for an error of a request.
func explain(ctx context.Context, err error) error {
	var d *dialError
	var f *failure
	var untrusted *tls.CertificateVerificationError
	cause := context.Cause(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(cause, errInterrupted), errors.Is(cause, context.DeadlineExceeded):
		return cause
	case errors.As(err, &d):
		return d.failure()
	case errors.As(err, &f):
		return err
	case errors.As(err, &untrusted):
		return failf(exitNotAllowed, "the certificate of the server is not trusted: %v", untrusted.Err).
			hint("vman context add NAME URL --pin accepts exactly that certificate")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return failf(exitFailed, "vmand closed the connection before its answer was complete").
			hint("the request may have been carried out: vman op ls shows the operations")
	}
	return failf(exitFailed, "%v", err)
}
