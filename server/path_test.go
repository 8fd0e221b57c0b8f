package server

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"vmand/openapi"
)

func TestPercentEncodedPathNamesTheSameResource(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	for _, path := range []string{"/vms/%77eb-1", "/%76ms/web%2D1", "/vms/web%2d1/", "/vms/%77%65%62%2d%31"} {
		r := a.want(t, 200, "GET", path, "")
		if v := into[openapi.VM](t, r); v.ID != "web-1" {
			t.Errorf("%s is VM %s", path, v.ID)
		}
		path = strings.TrimSuffix(path, "/")
		if p := a.want(t, 409, "POST", path+"/actions/stop", "").problem(t); p.Instance != "/vms/web-1/actions/stop" {
			t.Errorf("%s: instance %s", path, p.Instance)
		}
	}
	// The whole repetition of a request has the same key, whatever its spelling.
	a.want(t, 204, "DELETE", "/vms/web%2D1", "", "Idempotency-Key", "k")
	if r := a.want(t, 204, "DELETE", "/vms/web-1/", "", "Idempotency-Key", "k"); r.Header.Get(headerReplayed) != "true" {
		t.Errorf("the repetition is answered with %v", r.Header)
	}
	a.want(t, 404, "POST", "/observer/orphans/disks%3Adisk-1/delete", "") // a colon needs no encoding, and may have one
}

func TestPathWithAnEncodedSlashIsRefused(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	for _, path := range []string{
		"/vms/web%2F1", "/vms/web-1%2f", "/templates/a%2Fb", "/vms%2Fweb-1", "/images/a%2Fb/content", "/nowhere%2F",
		"/vms/%2e%2e%2fweb-1",
	} {
		p := a.want(t, 400, "GET", path, "").problem(t)
		if p.Code != "invalid-request" || !strings.Contains(p.Detail, "%2F") || p.Hint == "" {
			t.Errorf("%s: %+v", path, p)
		}
	}
	// Other characters that no name has are refused by the pattern of the name.
	for _, path := range []string{"/vms/%2e%2e", "/vms/a%25b", "/vms/a%00b", "/vms/%C3%A4"} {
		if p := a.want(t, 400, "GET", path, "").problem(t); len(p.Errors) != 1 || p.Errors[0].Field != "id" {
			t.Errorf("%s: %+v", path, p)
		}
	}
}

func TestTrailingSlashChangesNoAnswer(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	for key := range a.operations {
		name := "none" // so that a request without effect is sent twice
		if key.method == http.MethodGet {
			name = "web-1"
		}
		for _, method := range []string{key.method, http.MethodOptions, http.MethodPut} {
			path := strings.NewReplacer(":id", name, ":name", name, ":slot", "0", ":forward_id", "pf-1", ":cdrom_id", "cd-1").Replace(key.path)
			want, got := a.ask(t, method, path, ""), a.ask(t, method, path+"/", "")
			if want.StatusCode != got.StatusCode || want.Header.Get("Allow") != got.Header.Get("Allow") ||
				want.Header.Get("Content-Type") != got.Header.Get("Content-Type") {
				t.Errorf("%s %s: status %d, with a slash %d", method, path, want.StatusCode, got.StatusCode)
			}
		}
	}
	for _, path := range []string{"/docs/", "/openapi.yaml/", "/openapi.json/"} {
		a.want(t, 200, "GET", path, "")
	}
	a.want(t, 404, "GET", "/vms//", "")
	a.want(t, 404, "GET", "/", "")
}

func TestHEADIsAllowedAndAnsweredWhereverGETIs(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	example := strings.NewReplacer(":id", "web-1", ":name", "small", ":slot", "0", ":forward_id", "pf-1", ":cdrom_id", "cd-1")
	paths := map[string]bool{"/docs": true, "/openapi.yaml": true, "/openapi.json": true}
	for key := range a.operations {
		paths[key.path] = paths[key.path] || key.method == http.MethodGet
	}
	for path, gets := range paths {
		path = example.Replace(path)
		for method, status := range map[string]int{"OPTIONS": 204, "TRACE": 405} {
			allow := a.want(t, status, method, path, "").Header.Get("Allow")
			methods := strings.Split(allow, ", ")
			if slices.Contains(methods, "GET") != gets || slices.Contains(methods, "HEAD") != gets {
				t.Errorf("%s %s: Allow %q", method, path, allow)
			}
		}
		if !gets || strings.HasSuffix(path, "/console") {
			continue
		}
		get, head := a.ask(t, "GET", path, ""), a.ask(t, "HEAD", path, "")
		if get.StatusCode != head.StatusCode || get.Header.Get("Content-Type") != head.Header.Get("Content-Type") {
			t.Errorf("%s: GET %d, HEAD %d", path, get.StatusCode, head.StatusCode)
		}
	}
}

func TestOPTIONSOfTheServerIsAnsweredByTheServer(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c := a.dial(t)
	io.WriteString(c, a.head("OPTIONS *")+"\r\n")
	resp, body := receive(t, c)
	if resp.StatusCode != 204 || resp.Header.Get("Allow") != serverMethods || resp.Header.Get("Server") != "vmand/1.2.3" ||
		resp.Header.Get(headerRequestID) == "" {
		t.Errorf("status %d, %v: %s", resp.StatusCode, resp.Header, body)
	}
	c = a.dial(t)
	io.WriteString(c, a.head("GET *")+"\r\n")
	if resp, body := receive(t, c); resp.StatusCode != 404 || !strings.Contains(body, "not-found") {
		t.Errorf("GET *: status %d: %s", resp.StatusCode, body)
	}
}

func TestBodyWithAContentCodingIsRefused(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, coding := range []string{"gzip", "GZIP", "deflate", "identity, gzip", "x\" y"} {
		for path, media := range map[string]string{"/templates": jsonType, "/images?name=a": bytesType} {
			r := a.want(t, 415, "POST", path, smallTemplate, "Content-Type", "", "Content-Type", media, "Content-Encoding", coding)
			p := r.problem(t)
			if p.Code != "unsupported-media-type" || !strings.Contains(p.Detail, "Content-Encoding") ||
				!strings.Contains(p.Hint, "plain") || r.Header.Get("Accept-Encoding") != "identity" {
				t.Errorf("%s, %s: %+v, %v", path, coding, p, r.Header)
			}
		}
	}
	a.want(t, 201, "POST", "/templates", smallTemplate, "Content-Encoding", "Identity")
}

func TestByteOrderMarkBeforeJSONIsIgnored(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", byteOrderMark+smallTemplate)
	a.wantCode(t, 400, "malformed-body", "POST", "/templates", byteOrderMark+byteOrderMark+smallTemplate)
	a.wantCode(t, 400, "malformed-body", "POST", "/templates", byteOrderMark)
	a.wantCode(t, 400, "malformed-body", "POST", "/templates", "\xff\xfe{\x00}\x00")
}

// What follows a chunked body must not be read as a request: a proxy may have taken the
// Content-Length for the end of the body.
func TestConnectionIsClosedAfterATransferEncoding(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	smuggled := a.head("GET /vms") + "\r\n"
	for name, test := range map[string]struct {
		request, more string
		status        int
	}{
		"with a length, refused": {"POST /templates", "Content-Length: 4\r\n", 411},
		"empty body":             {"GET /health", "", 200},
		"empty, with a length":   {"GET /vms", "Content-Length: 5\r\n", 200},
		"upload":                 {"POST /images?name=a", "Content-Length: 3\r\n", 0},
		"console":                {"GET /vms/a/console", "Connection: keep-alive\r\n", 426},
	} {
		c := a.dial(t)
		head := a.head("%s", test.request)
		if test.status == 0 {
			head = strings.Replace(head, jsonType, bytesType, 1)
		}
		fmt.Fprintf(c, "%s%sTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", head, test.more, smuggled)
		all, _ := io.ReadAll(c) // until the server closes the connection
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(all)), nil)
		if err != nil || test.status != 0 && resp.StatusCode != test.status || !resp.Close || bytes.Count(all, []byte("HTTP/1.1 ")) != 1 {
			t.Errorf("%s: %v, %s", name, err, all)
		}
	}
}
