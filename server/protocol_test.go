package server

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"vmand/openapi"
)

func TestAnswersOfNetHTTPAreProblems(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.o.DryRun = true })
	doc, _ := specification()
	for name, test := range map[string]struct {
		request string
		status  int
		code    string
		detail  string
	}{
		"request line":      {"nonsense\r\n\r\n", 400, "invalid-request", "not valid HTTP"},
		"no Host":           {"GET /health HTTP/1.1\r\n\r\n", 400, "invalid-request", "missing required Host header"},
		"two Hosts":         {"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid-request", "not valid HTTP"},
		"header name":       {"GET /health HTTP/1.1\r\nHost: a\r\nB ad: b\r\n\r\n", 400, "invalid-request", "not valid HTTP"},
		"header value":      {"GET /health HTTP/1.1\r\nHost: a\r\nBad: \x00\r\n\r\n", 400, "invalid-request", "not valid HTTP"},
		"two lengths":       {"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "invalid-request", "not valid HTTP"},
		"path encoding":     {"GET /vms/%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid-request", "not valid HTTP"},
		"large headers":     {"GET /health HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", 431, "headers-too-large", "32768"},
		"transfer encoding": {"GET /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "not-implemented", "Transfer-Encoding"},
		"HTTP/2":            {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http-version-not-supported", "version"},
		"HTTP/3":            {"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505, "http-version-not-supported", "version"},
		"expectation":       {"GET /health HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n", 417, "expectation-failed", "Expect"},
	} {
		for _, before := range []string{"", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"} { // on a new and on a used connection
			c := a.dial(t)
			r := bufio.NewReader(c)
			if before != "" {
				io.WriteString(c, before)
				if resp := read(t, r); resp.StatusCode != 200 || resp.Close {
					t.Fatalf("the first request: %v", resp.Response)
				}
			}
			go io.WriteString(c, test.request) // the server may close before it has read all of it
			resp := read(t, r)
			var p openapi.Problem
			var v any
			if err := json.Unmarshal(resp.body, &p); err != nil || json.Unmarshal(resp.body, &v) != nil {
				t.Errorf("%s: status %d: %s", name, resp.StatusCode, resp.body)
				continue
			}
			if err := doc.Components.Schemas["Problem"].Value.VisitJSON(v); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if resp.StatusCode != test.status || string(p.Code) != test.code || !strings.Contains(p.Detail, test.detail) || p.Status != test.status {
				t.Errorf("%s: status %d: %+v", name, resp.StatusCode, p)
			}
			h := resp.Header
			if !resp.Close || h.Get("Content-Type") != problemType || h.Get("Server") != "vmand/1.2.3" || h.Get("X-Vman-Dry-Run") != "true" ||
				h.Get(headerRequestID) != p.RequestID || p.RequestID == "" || h.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: close %v, %v", name, resp.Close, h)
			}
			if rest, _ := io.ReadAll(r); len(rest) != 0 {
				t.Errorf("%s: followed by %q", name, rest)
			}
			c.Close()
		}
	}
}

// read reads one answer.
func read(t *testing.T, r *bufio.Reader) reply {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp, body}
}

// The content of an image may look like an answer of net/http, at any place of a write.
func TestContentThatLooksLikeAnAnswerOfNetHTTPIsNotReplaced(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const fake = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
	content := []byte(strings.Repeat(fake+strings.Repeat(" ", 512-len(fake)), 64))
	a.upload(t, "looks", string(content))
	for _, header := range [][]string{nil, {"Range", "bytes=512-"}, {"Range", "bytes=512-626"}} {
		r := a.ask(t, "GET", "/images/looks/content", "", header...)
		if want := content[512*min(len(header), 1):]; !bytes.HasPrefix(want, r.body) || len(r.body) == 0 {
			t.Errorf("%v: %d bytes differ", header, len(r.body))
		}
	}
}
