package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

var (
	errChanged = errors.New("the connection broke, and the server cannot go on with the same content")
	errStalled = errors.New("the server sends nothing more")
)

// download reads content over as many connections as it takes.
type download struct {
	ctx context.Context
	f   *Fetcher
	url string

	body      io.ReadCloser
	cancel    context.CancelCauseFunc
	stall     *time.Timer
	at        int64  // bytes read
	total     int64  // 0 before the first answer, -1 for unknown
	validator string // what to ask the server for the same content with
	failures  int    // connections in a row that brought next to nothing
	mark      int64  // at when the last connection broke
	broken    error  // what ended the connection, after the bytes that were read
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
		if d.broken = err; n > 0 {
			return n, nil
		}
	}
}

// retry waits before the next attempt, or returns err if there is none.
func (d *download) retry(err error) error {
	if d.ctx.Err() == nil && errors.Is(err, context.Canceled) {
		err = errStalled
	}
	if d.at-d.mark >= progressBytes {
		d.failures = 0
	}
	d.mark = d.at
	d.close()
	if !passing(err) || d.ctx.Err() != nil {
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

// passing reports whether a failure may be over when it is tried again.
func passing(err error) bool {
	var refused *Refused
	var status *StatusError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &refused), errors.As(err, &certificate), errors.Is(err, errChanged):
		return false
	case errors.As(err, &status):
		return status.Status >= 500 || status.Status == http.StatusTooManyRequests || status.Status == http.StatusRequestTimeout
	}
	var large *TooLarge
	return !errors.As(err, &large)
}

func (d *download) close() {
	if d.body == nil {
		return
	}
	d.stall.Stop()
	d.cancel(nil) // first: closing a body may read the rest of it
	d.body.Close()
	d.body = nil
}

// connect asks for the content from where it broke off.
func (d *download) connect() (err error) {
	ctx, cancel := context.WithCancelCause(d.ctx)
	defer func() {
		if err != nil {
			cancel(nil)
		}
	}()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return err
	}
	r.Header.Set("User-Agent", "vmand")
	r.Header.Set("Accept-Encoding", "identity")
	if d.at > 0 {
		if d.validator == "" {
			return errChanged
		}
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.at))
		r.Header.Set("If-Range", d.validator)
	}
	resp, err := d.f.client.Do(r)
	if err != nil {
		var outer *url.Error // says the URL, which our caller does
		if errors.As(err, &outer) {
			err = outer.Err
		}
		if strings.Contains(err.Error(), "Location header") { // net/http quotes it
			err = refusef("a redirect to what is no URL")
		}
		return err
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
		if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &total); n < 2 || from != d.at || d.total > 0 && total != d.total {
			return errChanged
		}
		if validator != "" && validator != d.validator {
			return errChanged
		}
		return nil
	case d.at > 0 && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusRequestedRangeNotSatisfiable):
		return errChanged
	}
	return &StatusError{resp.StatusCode}
}

// validatorOf returns the strong validator of an answer, or the next best.
func validatorOf(h http.Header) string {
	if tag := h.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	return h.Get("Last-Modified")
}
