package server

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// compressAbove is the size in bytes of the smallest answer that is not compressed: a
// smaller one fits into one packet anyway.
const compressAbove = 1 << 10

// gzipWriters holds idle writers. Level 1 makes a list of VMs a tenth of its size, and
// takes a third of the CPU time of the default level.
var gzipWriters = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // fails only for an unknown level
	return w
}}

// wantsGzip reports whether the client accepts gzip (RFC 9110, 12.5.3).
func wantsGzip(h http.Header) bool {
	accepted := false
	for _, line := range h["Accept-Encoding"] {
		for coding := range strings.SplitSeq(line, ",") {
			name, parameters, _ := strings.Cut(coding, ";")
			name = strings.ToLower(strings.TrimSpace(name))
			if name != "gzip" && name != "x-gzip" && name != "*" {
				continue
			}
			q := 1.0
			if _, value, ok := strings.Cut(parameters, "="); ok {
				q, _ = strconv.ParseFloat(strings.TrimSpace(value), 64)
			}
			if name != "*" {
				return q > 0
			}
			accepted = q > 0
		}
	}
	return accepted
}

// compressible reports whether to compress an answer with these headers. Only JSON is: events and
// logs must arrive at once, images are large and often compressed, and the contract is compressed
// once (document).
func compressible(status int, h http.Header) bool {
	if status < http.StatusOK || status == http.StatusNoContent || status == http.StatusNotModified {
		return false
	}
	if length := h.Get("Content-Length"); length != "" {
		if n, err := strconv.ParseInt(length, 10, 64); err != nil || n <= compressAbove {
			return false
		}
	}
	media := h.Get("Content-Type")
	return (media == jsonType || media == problemType) && h.Get("Content-Encoding") == ""
}

// A compressor compresses the answer to a client that accepts gzip, if it is worth it. The
// caller must close it.
type compressor struct {
	http.ResponseWriter
	gzip *gzip.Writer // nil if the answer is sent plain
}

// WriteHeader implements [http.ResponseWriter].
func (c *compressor) WriteHeader(status int) {
	if h := c.Header(); c.gzip == nil && compressible(status, h) {
		h.Del("Content-Length")
		h.Set("Content-Encoding", "gzip")
		if etag := h.Get("Etag"); etag != "" {
			h.Set("Etag", withCoding(etag))
		}
		c.gzip = gzipWriters.Get().(*gzip.Writer)
		c.gzip.Reset(c.ResponseWriter)
	}
	c.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (c *compressor) Write(p []byte) (int, error) {
	if c.gzip != nil {
		return c.gzip.Write(p)
	}
	return c.ResponseWriter.Write(p)
}

// Unwrap is for [http.ResponseController].
func (c *compressor) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// close sends the rest of the answer. An answer that broke off must not be closed, or it
// would look complete.
func (c *compressor) close() error {
	if c.gzip == nil {
		return nil
	}
	err := c.gzip.Close()
	c.gzip.Reset(nil)
	gzipWriters.Put(c.gzip)
	c.gzip = nil
	return err
}

// compressed returns content compressed with gzip.
func compressed(content []byte) []byte {
	var out bytes.Buffer
	w, _ := gzip.NewWriterLevel(&out, gzip.BestCompression) // fails only for an unknown level
	_, _ = w.Write(content)                                 // never fails for a buffer
	_ = w.Close()
	return out.Bytes()
}
