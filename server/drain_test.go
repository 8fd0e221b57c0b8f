package server

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"vmand/vm"
)

// A client that sends its whole body before it reads the answer, as Python's does, must be
// able to send it, and then gets the answer.
func TestARefusedRequestIsAnsweredAfterItsBody(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/images?name=taken", "content", octets...)
	viewer := a.as(t, vm.RoleViewer)
	for name, c := range map[string]struct {
		head   string
		status int
	}{
		"an image that exists": {a.head("POST /images?name=taken"), 409},
		"an offset of nothing": {a.head("PATCH /images/taken/content?offset=3"), 409},
		"a name that is wrong": {a.head("POST /images?name=-"), 400},
		"another content type": {a.head("POST /images?name=other"), 415},
		"a viewer":             {strings.Replace(a.head("POST /images?name=other"), a.token, strings.TrimPrefix(viewer[3], "Bearer "), 1), 403},
	} {
		const size = 24 << 20
		kind := "application/octet-stream"
		if c.status == 415 {
			kind = "text/plain"
		}
		head := strings.Replace(c.head, "application/json", kind, 1)
		conn := a.dial(t)
		fmt.Fprintf(conn, "%sContent-Length: %d\r\n\r\n", head, size)
		piece := bytes.Repeat([]byte{'x'}, 64<<10)
		for sent := 0; sent < size; sent += len(piece) {
			if _, err := conn.Write(piece); err != nil {
				t.Errorf("%s: the connection broke after %d bytes: %v", name, sent, err)
				break
			}
		}
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Errorf("%s: no answer: %v", name, err)
			continue
		}
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != c.status {
			t.Errorf("%s: status %d: %s", name, resp.StatusCode, text)
		}
		// The connection is usable: the body was read to its end.
		fmt.Fprintf(conn, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode/100 == 4 {
			t.Errorf("%s: the next request on the connection: %+v, %v", name, resp, err)
		}
	}
}

func TestABodyThatWaitsForStatus100IsNotAskedForToBeDiscarded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/images?name=taken", "content", octets...)
	for name, size := range map[string]int64{"status 100": 1 << 20, "more than is drained": drainBytes + 1} {
		conn := a.dial(t)
		head := strings.Replace(a.head("POST /images?name=taken"), "application/json", "application/octet-stream", 1)
		expect := ""
		if name == "status 100" {
			expect = "Expect: 100-continue\r\n"
		}
		fmt.Fprintf(conn, "%s%sContent-Length: %d\r\n\r\n", head, expect, size)
		if resp, body := receive(t, conn); resp.StatusCode != 409 || !resp.Close {
			t.Errorf("%s: status %d, close %v: %s", name, resp.StatusCode, resp.Close, body)
		}
	}
}
