package server

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3filter"

	"vmand/vm"
)

// FuzzRequest sends arbitrary requests. No answer may be a 500, every answer must
// conform to the contract, and openapi3filter must consider every accepted request
// valid.
func FuzzRequest(f *testing.F) {
	a := newAPI(f)
	methods := []string{"GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS", "X"}
	f.Add(uint8(1), "/templates", "", "application/json", "", "", smallTemplate)
	f.Add(uint8(1), "/vms", "", "application/json", "", "", webVM)
	f.Add(uint8(1), "/vms/web-1/actions/stop", "", "application/json", "Prefer", "wait=1",
		`{"force":true,"timeout_seconds":0}`)
	f.Add(uint8(1), "/disks", "", "application/json; charset=utf-8", "", "", `{"size":0.5,"mount_point":"/dev/sdc"}`)
	f.Add(uint8(1), "/disks/d/attach", "", "application/json", "", "", `{"vm_id":"web-1"}`)
	f.Add(uint8(2), "/disks/d", "", "application/json", "If-Match", `"1-1", W/"2-2"`, `{"size":1e3}`)
	f.Add(uint8(0), "/vms", "limit=2&state=running&template_name=small&cursor=AQE", "", "", "", "")
	f.Add(uint8(0), "/operations", "resource=vms/web-1&kind=vm.start&state=failed", "", "", "", "")
	f.Add(uint8(0), "/vms/web-1", "", "", "If-None-Match", `W/"1-1"`, "")
	f.Add(uint8(2), "/vms/web-1", "", "application/json", "If-Match", "*",
		`{"labels":{"a/b":"c"},"autostart_order":3,"desired_state":"running"}`)
	f.Add(uint8(1), "/disks", "", "application/json", "Idempotency-Key", "k", `{"size":1}`)
	f.Add(uint8(0), "/events", "since=1&limit=2&type=vm.&resource=vms/web-1", "", "Last-Event-ID", "1", "")
	f.Add(uint8(0), "/vms", "label=a/b=c%20d", "", "", "", "")
	f.Add(uint8(0), "/vms/web-1/why", "", "", "", "", "")
	f.Add(uint8(1), "/observer/orphans/vms:x/adopt", "", "application/json", "Idempotency-Key", "k",
		`{"template_name":"small"}`)
	f.Add(uint8(1), "/networks", "", "application/json", "", "",
		`{"name":"lab","mode":"nat","subnet":"10.0.0.0/24","dns":["9.9.9.9"],
		"routes":[{"destination":"10.1.0.0/16","gateway":"10.0.0.3"}]}`)
	f.Add(uint8(2), "/networks/vman0", "", "application/json", "If-Match", `"1-1.0123456789abcdef"`,
		`{"ipv6_subnet":"","mtu":1280,"vlan_id":0}`)
	f.Add(uint8(1), "/vms/web-1/nics", "", "application/json", "", "",
		`{"network":"vman0","ip":"192.168.100.9","mac":"52:00:00:00:00:01","link":"down"}`)
	f.Add(uint8(2), "/vms/web-1/nics/0", "", "application/json", "", "", `{"rate_in":1}`)
	f.Add(uint8(1), "/vms/web-1/port_forwards", "", "application/json", "", "",
		`{"host_port":2222,"guest_port":22,"host_address":"127.0.0.1"}`)
	f.Add(uint8(1), "/vms/web-1/actions/start", "wait_for=port:22", "", "Prefer", "wait=1", "")
	f.Add(uint8(1), "/vms", "wait_for=agent", "application/json", "Prefer", "wait=1",
		`{"template_name":"small","start":true}`)
	f.Add(uint8(1), "/vms/web-1/exec", "", "application/json", "", "",
		`{"command":["cat","-"],"env":{"A":"b"},"stdin_base64":"eA==","timeout_seconds":1}`)
	f.Add(uint8(4), "/vms/web-1/files", "path=/a%20b", "application/octet-stream", "", "", "content")
	f.Add(uint8(0), "/vms/web-1/files", "path=/a", "", "", "", "")
	f.Add(uint8(1), "/vms/web-1/actions/set-password", "", "application/json", "", "", `{"user":"root","password":"x"}`)
	f.Add(uint8(0), "/vms/web-1/console", "write=1&take_over=1&scrollback=9", "", "Upgrade", "vman-console", "")
	f.Add(uint8(0), "/vms/web-1/console/log", "tail=3", "", "", "", "")
	f.Add(uint8(1), "/vms/web-1/console/tickets", "", "application/json", "", "", `{"write":true}`)
	f.Add(uint8(1), "/images", "", "application/json", "Prefer", "wait=1",
		`{"name":"a","url":"http://x/","sha256":"00","format":"iso","labels":{"a":"b"}}`)
	f.Add(uint8(1), "/images", "name=a&more=true&format=raw", "application/octet-stream", "", "", "raw")
	f.Add(uint8(2), "/images/a/content", "offset=3&more=false", "application/octet-stream", "", "", "raw")
	f.Add(uint8(0), "/images/a/content", "", "", "Range", "bytes=1-2", "")
	f.Add(uint8(0), "/images", "state=available&label=a%3Db&sha256=00&limit=1", "", "", "", "")
	f.Add(uint8(2), "/images/a", "", "application/json", "If-Match", `"1-1"`, `{"description":"x"}`)
	f.Add(uint8(1), "/vms", "", "application/json", "", "",
		`{"template_name":"small","image":"a","full_clone":true,
		"cdroms":[{"image":"a","boot_index":1}],"cloud_init":{"users":[{"name":"a"}]}}`)
	f.Add(uint8(1), "/vms/web-1/cdroms", "", "application/json", "", "", `{"image":"a","boot_index":1}`)
	f.Add(uint8(3), "/vms/web-1/cdroms/cd-1", "", "", "If-Match", `"1-1"`, "")
	f.Add(uint8(4), "/vms/web-1/cloud_init", "", "application/json", "", "",
		`{"hostname":"a","ssh_authorized_keys":["x"],"user_data":"#!/bin/sh","reprovision":true}`)
	f.Add(uint8(0), "/vms/web-1/cloud_init", "", "", "", "", "")
	f.Add(uint8(1), "/disks", "", "application/json", "Prefer", "wait=1", `{"from_disk":"web-1","size":2}`)
	f.Add(uint8(3), "/templates/small", "", "", "If-Match", "*", "")
	f.Add(uint8(0), "/openapi.json", "", "", "X-Request-Id", "\x7f", "")
	f.Add(uint8(4), "/vms/%2e%2e", "%zz", "text/plain", "Origin", "null", "\x00")
	f.Fuzz(func(t *testing.T, method uint8, path, query, media, name, value, body string) {
		u, err := url.ParseRequestURI("/" + strings.TrimPrefix(path, "/"))
		if err != nil || strings.ContainsAny(path, "?#") {
			t.Skip()
		}
		if strings.Contains(query, "follow") {
			t.Skip() // the answer may not end
		}
		u.RawQuery = query
		r := httptest.NewRequest(methods[int(method)%len(methods)], "/", strings.NewReader(body))
		r.URL, r.Host = u, "localhost"
		r.Header.Set("Authorization", "Bearer "+a.token)
		if media != "" {
			r.Header.Set("Content-Type", media)
		}
		// Accept could start a stream, which does not end.
		if name != "" && !strings.EqualFold(name, "Authorization") && !strings.EqualFold(name, "Accept") {
			r.Header.Add(name, value)
		}
		w := httptest.NewRecorder()
		second := secondOpinion(r, body)
		a.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%s %s: %s\n%s", r.Method, u, w.Body, a.log)
		}
		if err := conforms(r.Method, u, w.Code, w.Header(), w.Body.Bytes()); err != nil {
			t.Fatalf("%s %s: status %d: %v", r.Method, u, w.Code, err)
		}
		if accepted(w.Code) && second != nil {
			t.Fatalf("%s %s: status %d, but openapi3filter returns: %v", r.Method, u, w.Code, second)
		}
	})
}

// accepted reports whether a status means that the request was valid.
func accepted(status int) bool {
	return status < 400 || status == 409 || status == 412 || status >= 500
}

// secondOpinion validates a request with openapi3filter.
func secondOpinion(r *http.Request, body string) error {
	_, router := specification()
	route, params, err := router.FindRoute(r)
	if err != nil || r.Method == http.MethodHead {
		return nil // its router does not support HEAD and OPTIONS
	}
	copied := r.Clone(r.Context())
	copied.Body = http.NoBody
	if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); body == "" &&
		media == "application/octet-stream" {
		return nil // an empty binary body is valid
	}
	if body != "" {
		copied.Body = &readCloser{bytes.NewReader([]byte(body))}
	}
	return openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request:    copied,
		Route:      route,
		PathParams: params,
		Options: &openapi3filter.Options{
			SkipSettingDefaults: true,
			AuthenticationFunc:  openapi3filter.NoopAuthenticationFunc,
		},
	})
}

type readCloser struct{ *bytes.Reader }

func (*readCloser) Close() error { return nil }

// FuzzUpgrade sends arbitrary console requests, and arbitrary bytes after them. The
// server must answer with valid HTTP or upgrade the connection, and every connection
// must end after its client has closed it.
func FuzzUpgrade(f *testing.F) {
	a := newAPI(f)
	a.boot(f)
	key := "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	f.Add("?write=true&take_over=true", "Connection: Upgrade\r\nUpgrade: websocket\r\n"+key,
		[]byte{0x82, 0x81, 1, 2, 3, 4, 'x' ^ 1})
	f.Add("?write=true&take_over=true", "Connection: Upgrade\r\nUpgrade: websocket\r\n"+key,
		[]byte{0x02, 0x80, 0, 0, 0, 0, 0x89, 0x80, 1, 2, 3, 4, 0x80, 0x80, 0, 0, 0, 0})
	f.Add("", "Connection: Upgrade\r\nUpgrade: websocket\r\n"+key, []byte{0x88, 0x82, 0, 0, 0, 0, 3, 0xe8})
	f.Add("", "Connection: Upgrade\r\nUpgrade: websocket\r\n"+key,
		[]byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Add("?scrollback=0", "Connection: keep-alive, Upgrade\r\nUpgrade: vman-console\r\n", []byte("ls\r\n\x00\xff"))
	f.Add("?ticket=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"Upgrade: websocket, vman-console\r\nContent-Length: 3\r\n", []byte("abc"))
	f.Add("?write=1",
		"Connection: Upgrade\r\nUpgrade: vman-console\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n",
		[]byte("0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, query, header string, sent []byte) {
		c, err := net.Dial("tcp", strings.TrimPrefix(a.base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		request := "GET /vms/web-1/console" + query + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " +
			a.token + "\r\n" + header + "\r\n"
		if _, err := c.Write(append([]byte(request), sent...)); err != nil {
			return // the server has closed the connection
		}
		_ = c.(*net.TCPConn).CloseWrite()
		answer, err := io.ReadAll(io.LimitReader(c, 1<<20))
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			t.Fatalf("%q %q: the connection does not end", request, sent)
		}
		if bytes.HasPrefix(answer, []byte("HTTP/1.1 500")) ||
			len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.")) {
			t.Fatalf("%q: %q", request, answer)
		}
		if log := a.log.take(); strings.Contains(log, "panic") || strings.Contains(log, "a defect") {
			t.Fatalf("%q %q: %s", request, sent, log)
		}
	})
}

// FuzzUpload sends arbitrary uploads of images: in parts, to arbitrary offsets,
// truncated, with arbitrary names. No answer may be a 500, every answer must conform to
// the contract, and the records must agree with the stored content afterwards.
func FuzzUpload(f *testing.F) {
	a := newAPI(f, func(f *fixture) { f.o.BodyTimeout = 100 * time.Millisecond })
	f.Add("name=a", "offset=0", "", "", []byte("raw"), []byte(""), false)
	f.Add("name=a&more=true", "offset=3", "", "", []byte("iso"), []byte("more"), false)
	f.Add("name=a&more=true&sha256="+sumOf("isomore"), "offset=3&more=false", "Range", "bytes=0-", []byte("iso"),
		[]byte("more"), true)
	f.Add("name=debian_12.x&format=iso&more=1", "offset=9223372036854775807", "Idempotency-Key", "k", []byte("bad"),
		[]byte("x"), false)
	f.Add("name=..%2fa&sha512=00", "offset=-1", "Content-Encoding", "gzip", []byte("\x1f\x8b"), []byte("x"), true)
	f.Add("name=a&description=%00", "offset=0x3", "Content-Type", "application/octet-stream; charset=utf-8",
		[]byte{}, []byte{}, false)
	f.Add("name=a", "offset=0", "Expect", "100-continue", []byte("raw"), []byte("raw"), true)
	f.Fuzz(func(t *testing.T, query, next, header, value string, first, second []byte, cut bool) {
		for _, part := range []struct {
			method, path, query string
			body                []byte
		}{{"POST", "/images", query, first}, {"PATCH", "/images/a/content", next, second}} {
			r := httptest.NewRequest(part.method, "/", fuzzBody(part.body, cut && part.method == "POST"))
			r.URL, r.Host, r.ContentLength = &url.URL{Path: part.path, RawQuery: part.query}, "localhost", -1
			r.Header.Set("Content-Type", "application/octet-stream")
			if header != "" && !strings.EqualFold(header, "Accept") {
				r.Header.Add(header, value)
			}
			r.Header.Set("Authorization", "Bearer "+a.token)
			w := httptest.NewRecorder()
			a.ServeHTTP(w, r)
			if w.Code == http.StatusInternalServerError {
				t.Fatalf("%s %s: %s\n%s", part.method, r.URL, w.Body, a.log.take())
			}
			if err := conforms(part.method, r.URL, w.Code, w.Header(), w.Body.Bytes()); err != nil {
				t.Fatalf("%s %s: status %d: %v", part.method, r.URL, w.Code, err)
			}
			a.agree(t)
		}
		a.log.take()
		a.clear(t)
	})
}

// fuzzBody returns a body with the bytes b. If cut, it fails after them.
func fuzzBody(b []byte, cut bool) io.Reader {
	if cut {
		return io.MultiReader(bytes.NewReader(b), failsWith{io.ErrUnexpectedEOF})
	}
	return bytes.NewReader(b)
}

// agree fails the test if the records of images differ from the stored content.
func (a *api) agree(t *testing.T) {
	t.Helper()
	images, err := a.store.Images(t.Context(), vm.ImageFilter{}, vm.Page{})
	if err != nil {
		t.Fatal(err)
	}
	recorded := map[string]bool{}
	for _, i := range images {
		stored, err := a.driver.Uploaded(t.Context(), i.Name)
		switch {
		case err != nil:
			t.Fatal(err)
		case i.State == vm.ImageAvailable && i.SHA256 != "" && stored == 0:
			recorded[i.SHA256] = true
		case i.State != vm.ImageUploading || i.SHA256 != "" || i.Uploaded != stored:
			t.Fatalf("%+v, but %d bytes are stored", i, stored)
		}
	}
	contents := a.driver.Contents()
	for _, sum := range contents {
		if !recorded[sum] {
			t.Fatalf("no image has the content %s", sum)
		}
	}
	if len(contents) != len(recorded) {
		t.Fatalf("stored %v, recorded %v", contents, recorded)
	}
}

// clear deletes all images.
func (a *api) clear(t *testing.T) {
	t.Helper()
	images, err := a.store.Images(t.Context(), vm.ImageFilter{}, vm.Page{})
	for _, i := range images {
		if err == nil {
			err = a.manager.Images.Delete(t.Context(), i.Name, nil, false)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if left := a.driver.Contents(); len(left) > 0 {
		t.Fatalf("content is left: %v", left)
	}
}
