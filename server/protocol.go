package server

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"vmand/vm"
)

// net/http answers a request that it cannot parse itself, in plain text and without a
// handler, and closes the connection. These answers are replaced by problems on their way
// to the connection.

// protocolFault returns the fault for an answer of net/http. It reports false for a status
// that net/http is not known to send.
func protocolFault(status int, text string) (*vm.Fault, bool) {
	switch status {
	case http.StatusBadRequest:
		detail := "the request is not valid HTTP"
		if _, reason, ok := strings.Cut(text, ": "); ok { // such as: missing required Host header
			detail += ": " + printable(reason)
		}
		return &vm.Fault{Code: vm.CodeInvalid, Detail: detail}, true
	case http.StatusExpectationFailed:
		return &vm.Fault{
			Code:   codeExpectation,
			Detail: "the expectation in the header Expect is not supported",
			Hint:   "send Expect: 100-continue, or no such header",
		}, true
	case http.StatusRequestHeaderFieldsTooLarge:
		return &vm.Fault{
			Code:   codeHeaders,
			Detail: fmt.Sprintf("the request line and the headers are larger than %d bytes", maxHeaderBytes),
		}, true
	case http.StatusNotImplemented:
		return &vm.Fault{
			Code:   codeNotImplemented,
			Detail: "the Transfer-Encoding is not supported",
			Hint:   "send Content-Length, or for an upload Transfer-Encoding: chunked",
		}, true
	case http.StatusHTTPVersionNotSupported:
		return &vm.Fault{Code: codeVersion, Detail: "the version of HTTP is not supported", Hint: "use HTTP/1.1"}, true
	}
	return nil, false
}

// protocolProblem returns the answer to send instead of an answer of net/http, or the
// answer itself if its status is unknown.
func (s *Server) protocolProblem(text []byte) []byte {
	head, body, _ := bytes.Cut(text, []byte("\r\n\r\n"))
	_, rest, _ := strings.Cut(string(head), " ")
	number, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(number)
	fault, known := protocolFault(status, string(body))
	if err != nil || !known {
		return text
	}
	resp := &http.Response{StatusCode: kinds[fault.Code].status, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Close: true}
	id := newRequestID()
	s.setCommonHeaders(resp.Header, id)
	resp.Header.Set("Content-Type", problemType)
	p := problem(fault.Code, fault.Detail, fault.Hint)
	p.RequestID = id
	e := getEncoder()
	defer e.free()
	if err := e.encode(&p); err != nil {
		return text
	}
	resp.ContentLength, resp.Body = int64(e.buf.Len()), io.NopCloser(bytes.NewReader(e.buf.Bytes()))
	var out bytes.Buffer
	if err := resp.Write(&out); err != nil {
		return text
	}
	s.log.Debug("a request is refused that is not valid HTTP", "request_id", id, "status", resp.StatusCode, "details", fault.Detail)
	return out.Bytes()
}

// trackIdle is the ConnState of the HTTP server: what it writes to a connection while no
// handler has a request of it is an answer of net/http itself.
func trackIdle(c net.Conn, state http.ConnState) {
	if g, ok := c.(*gated); ok && state == http.StateIdle {
		g.handling.Store(false)
	}
}

// Write implements [net.Conn].
func (c *gated) Write(p []byte) (int, error) {
	if c.handling.Load() || c.gate.replace == nil {
		return c.Conn.Write(p)
	}
	if c.replaced.Swap(true) {
		return len(p), nil // the rest of an answer that was replaced
	}
	if _, err := c.Conn.Write(c.gate.replace(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
