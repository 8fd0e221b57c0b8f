package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

var (
	errChanged = errors.New("the connection broke, and the server cannot resume with the same content")
	errStalled = errors.New("the server stopped sending")
)

// download reads content over one or more connections. It resumes a broken connection
// at the offset where it broke.
type download struct {
	ctx context.Context
	f   *Fetcher
	url string

	body      io.ReadCloser
	cancel    context.CancelCauseFunc
	stall     *time.Timer
	at        int64  // bytes read
	total     int64  // 0 before the first answer, -1 if it is not known
	validator string // identifies the content in a request to resume
	failures  int    // consecutive connections that brought less than progressBytes
	mark      int64  // value of at when the last connection broke
	broken    error  // the error that ended the connection, handled by the next Read
}

// Read implements [io.Reader].
func (d *download) Read(p []byte) (int, error) {
	for {
		if err := d.broken; err != nil {
			d.broken = nil
			if err := d.retry(err); err != nil {
				return 0, err
			}
		}
		if d.body == nil {
			if d.broken = d.connect(); d.broken != nil {
				continue
			}
		}
		d.stall.Reset(d.f.opts.Stall)
		n, err := d.body.Read(p)
		d.stall.Stop()
		d.at += int64(n)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, io.EOF) && (d.total < 0 || d.at == d.total):
			return n, io.EOF
		}
		if d.broken = bare(err); n > 0 {
			return n, nil
		}
	}
}

// retry waits with back-off before the next attempt. It returns err if there is no
// next attempt.
func (d *download) retry(err error) error {
	if d.ctx.Err() == nil && errors.Is(err, context.Canceled) {
		err = errStalled
	}
	if d.at-d.mark >= progressBytes {
		d.failures = 0
	}
	d.mark = d.at
	d.close()
	if !isTemporary(err) || d.ctx.Err() != nil {
		return err
	}
	if d.failures++; d.failures >= d.f.opts.Attempts {
		return fmt.Errorf("gave up after %d attempts: %w", d.failures, err)
	}
	wait := time.NewTimer(min(d.f.opts.Backoff<<min(d.failures-1, 16), maxBackoff))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	}
}

// isTemporary reports whether a download that failed with err may succeed when it is
// retried: a connection that was refused or broke, a server that is busy. What the server
// or the URL will answer again, such as 404, a name that does not exist, an address that
// is refused or an answer that is not HTTP, is final.
func isTemporary(err error) bool {
	var status *StatusError
	var name *net.DNSError
	var network net.Error // timeouts, too
	switch {
	case errors.As(err, new(*Refused)),
		errors.As(err, new(*TooLarge)),
		errors.As(err, new(*tls.CertificateVerificationError)),
		errors.As(err, new(tls.AlertError)),
		errors.As(err, new(tls.RecordHeaderError)),
		errors.Is(err, errChanged):
		return false
	case errors.As(err, &status):
		return status.temporary()
	case errors.As(err, &name):
		return !name.IsNotFound
	}
	return errors.As(err, &network) || errors.Is(err, errStalled) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// temporary reports whether the server may answer otherwise later.
func (e *StatusError) temporary() bool {
	switch e.Status {
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	case http.StatusTooManyRequests, http.StatusRequestTimeout:
		return true
	}
	return e.Status >= http.StatusInternalServerError
}

// A bareError is an error of the network without the addresses that package net adds to
// it: those of this host, of its name server, and those that a name leads to. They would
// show a client of the API the inside of a network.
type bareError struct {
	text string
	err  error
}

func (e *bareError) Error() string { return e.text }
func (e *bareError) Unwrap() error { return e.err }

// bare returns err without addresses. Its class is that of err.
func bare(err error) error {
	var refused *Refused
	var name *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.As(err, &name):
		return &bareError{"the name of the server cannot be resolved: " + name.Err, err}
	case errors.As(err, &op):
		return &bareError{op.Op + ": " + op.Err.Error(), err}
	}
	return err
}

func (d *download) close() {
	if d.body == nil {
		return
	}
	d.stall.Stop()
	d.cancel(nil) // first, because closing a body may read the rest of it
	d.body.Close()
	d.body = nil
}

// connect requests the content from offset d.at on.
func (d *download) connect() (err error) {
	ctx, cancel := context.WithCancelCause(d.ctx)
	defer func() {
		if err != nil {
			cancel(nil)
		}
	}()
	r, err := d.request(ctx)
	if err != nil {
		return err
	}
	resp, err := d.f.client.Do(r)
	if err != nil {
		var outer *url.Error // names the URL, which the error of Fetch does too
		if errors.As(err, &outer) {
			err = outer.Err
		}
		if strings.Contains(err.Error(), "Location header") {
			// The error of net/http quotes the header, which may hold a secret.
			err = refusef("a redirect to an invalid URL")
		}
		return bare(err)
	}
	if err := d.accept(resp); err != nil {
		cancel(nil)
		resp.Body.Close()
		return err
	}
	d.body, d.cancel = resp.Body, cancel
	d.stall = time.AfterFunc(d.f.opts.Stall, func() { cancel(errStalled) })
	return nil
}

func (d *download) request(ctx context.Context) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "vmand")
	r.Header.Set("Accept-Encoding", "identity")
	if d.at > 0 {
		if d.validator == "" {
			return nil, errChanged
		}
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.at))
		r.Header.Set("If-Range", d.validator)
	}
	return r, nil
}

// accept checks that an answer is the content, or the rest of the same content.
func (d *download) accept(resp *http.Response) error {
	validator := validatorOf(resp.Header)
	switch {
	case d.at == 0 && resp.StatusCode == http.StatusOK:
		d.validator, d.total = validator, resp.ContentLength
		if most := d.f.importer.opts.MaxBytes; d.total > most {
			return &TooLarge{Max: most}
		}
		return nil
	case d.at > 0 && resp.StatusCode == http.StatusPartialContent:
		var from, to, total int64
		n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &total)
		if n < 2 || from != d.at || d.total > 0 && total != d.total {
			return errChanged
		}
		if validator != "" && validator != d.validator {
			return errChanged
		}
		return nil
	case d.at > 0 && resp.StatusCode == http.StatusOK,
		d.at > 0 && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return errChanged
	}
	return &StatusError{resp.StatusCode}
}

// validatorOf returns the strong validator of an answer, or else its modification
// time, or "".
func validatorOf(h http.Header) string {
	if tag := h.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	return h.Get("Last-Modified")
}
