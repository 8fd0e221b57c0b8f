package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

func sumOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}

// upload creates an image with this content.
func (a *api) upload(t *testing.T, name, content string) openapi.Image {
	t.Helper()
	return into[openapi.Image](t, a.want(t, 201, "POST", "/images?name="+name, content, octets...))
}

func TestAnImageIsUploadedShownChangedAndDeleted(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const content = "bytes of a disk"
	sum512 := sha512.Sum512([]byte(content))
	r := a.want(t, 201, "POST",
		"/images?name=debian_12.x&sha256="+strings.ToUpper(sumOf(content))+"&sha512="+hex.EncodeToString(sum512[:])+
			"&format=raw&description=a%0Ab&more=false", content, octets...)
	i := into[openapi.Image](t, r)
	if i.Name != "debian_12.x" || i.State != "available" || *i.Format != "raw" || *i.SHA256 != sumOf(content) ||
		*i.VirtualSize != 16./1024 ||
		*i.SizeBytes != int64(len(content)) || i.UploadedBytes != nil || i.Source != "upload" ||
		i.Description != "a\nb" || len(i.Labels) != 0 {
		t.Errorf("%s", r.body)
	}
	const path = "/images/debian_12.x"
	if r.Header.Get("Location") != path {
		t.Errorf("Location %q", r.Header.Get("Location"))
	}
	got := a.want(t, 200, "GET", path, "")
	if !bytes.Equal(got.body, r.body) || got.Header.Get("ETag") != r.Header.Get("ETag") {
		t.Errorf("%v %s", got.Header, got.body)
	}
	a.want(t, 304, "GET", path, "", "If-None-Match", r.Header.Get("ETag"))
	changed := a.want(t, 200, "PATCH", path, `{"description":"","labels":{"os":"debian"}}`, "If-Match",
		r.Header.Get("ETag"))
	if i := into[openapi.Image](t, changed); i.Description != "" || i.Labels["os"] != "debian" ||
		i.State != "available" {
		t.Errorf("%s", changed.body)
	}
	a.want(t, 412, "PATCH", path, `{"description":"x"}`, "If-Match", r.Header.Get("ETag"))
	a.want(t, 412, "DELETE", path, "", "If-Match", r.Header.Get("ETag"))
	a.upload(t, "other", "other bytes")
	for query, n := range map[string]int{
		"":                   2,
		"?state=available":   2,
		"?state=uploading":   0,
		"?label=os%3Ddebian": 1,
		"?label=os%3D":       0,
		"?sha256=" + strings.ToUpper(sumOf(content)): 1,
		"?sha256=" + sumOf(""):                       0,
	} {
		if all := into[[]openapi.Image](t, a.want(t, 200, "GET", "/images"+query, "")); len(all) != n {
			t.Errorf("%s: %d images, want %d", query, len(all), n)
		}
	}
	page := a.want(t, 200, "GET", "/images?limit=1&state=available", "")
	link := page.Header.Get("Link")
	if !strings.HasPrefix(link, "</images?cursor=") || !strings.Contains(link, "state=available") {
		t.Fatalf("Link %q", link)
	}
	next := a.want(t, 200, "GET", link[1:strings.Index(link, ">")], "")
	if all := into[[]openapi.Image](t, next); len(all) != 1 || all[0].Name != "other" || next.Header.Get("Link") != "" {
		t.Errorf("%v %s", next.Header, next.body)
	}
	a.want(t, 204, "DELETE", path, "", "If-Match", changed.Header.Get("ETag"))
	for _, method := range []string{"GET", "DELETE"} {
		a.want(t, 404, method, path, "")
	}
	a.want(t, 404, "PATCH", path, `{"description":"x"}`)
	a.want(t, 404, "GET", path+"/content", "")
	if left := a.driver.Contents(); !slices.Equal(left, []string{sumOf("other bytes")}) {
		t.Errorf("contents %v", left)
	}
}

func TestAnImageIsDownloadedOrCopied(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	const url = "https://images.example/a.raw"
	a.driver.Offer(url, []byte("bytes"))
	blocked := make(chan struct{})
	a.driver.Hook = func(ctx context.Context, method, _ string) error {
		if method == "Fetch" {
			<-blocked
		}
		return nil
	}
	r := a.want(t, 202, "POST", "/images", `{"name":"a","url":"`+url+`?token=x","description":"d","labels":{"k":"v"}}`)
	i := into[openapi.Image](t, r)
	if i.State != "importing" || i.Format != nil || i.SHA256 != nil || i.SizeBytes != nil || i.VirtualSize != nil ||
		i.UploadedBytes != nil ||
		i.Source != url || i.Labels["k"] != "v" || r.Header.Get("ETag") != "" {
		t.Errorf("%v %s", r.Header, r.body)
	}
	if o := a.operation(t, r); o.Kind != "image.create" || o.Resource != "images/a" {
		t.Errorf("%+v", o)
	}
	a.want(t, 409, "GET", "/images/a/content", "")
	if p := a.want(t, 409, "POST", "/images", `{"name":"a","url":"`+url+`"}`).problem(t); p.Code != "busy" &&
		p.Code != "already-exists" {
		t.Errorf("%+v", p)
	}
	if r := a.want(t, 202, "POST", "/images", `{"name":"b","url":"`+url+
		`"}`, "Prefer", "wait=0"); into[openapi.Image](t, r).State != "importing" {
		t.Errorf("%s", r.body)
	}
	close(blocked)
	r = a.want(t, 201, "POST", "/images",
		`{"name":"c","url":"`+url+`","format":"raw","sha256":"`+sumOf("bytes")+`"}`, "Prefer", "wait=30")
	if i := into[openapi.Image](t, r); i.State != "available" || *i.SHA256 != sumOf("bytes") ||
		r.Header.Get("Preference-Applied") != "wait" ||
		r.Header.Get("Location") != "/images/c" ||
		r.Header.Get("ETag") != a.want(t, 200, "GET", "/images/c", "").Header.Get("ETag") {
		t.Errorf("%v %s", r.Header, r.body)
	}
	r = a.want(t, 201, "POST", "/images", `{"name":"golden","from_disk":"web-1"}`, "Prefer", "wait=30")
	if i := into[openapi.Image](t, r); i.State != "available" || i.Source != "vms/web-1" {
		t.Errorf("%s", r.body)
	}
	for body, want := range map[string]struct {
		status int
		code   openapi.ProblemCode
	}{
		`{"name":"d","url":"https://images.example/none"}`:                   {503, "fetch-failed"},
		`{"name":"d","url":"` + url + `","sha256":"` + sumOf("other") + `"}`: {400, "checksum-mismatch"},
		`{"name":"d","url":"` + url + `","format":"iso"}`:                    {400, "unsupported-image"},
		`{"name":"c","url":"` + url + `"}`:                                   {409, "already-exists"},
		`{"name":"d","from_disk":"none"}`:                                    {400, "invalid-request"},
	} {
		p := a.want(t, want.status, "POST", "/images", body, "Prefer", "wait=30").problem(t)
		if p.Code != want.code {
			t.Errorf("%s: %+v", body, p)
		}
		a.want(t, 404, "GET", "/images/d", "")
	}
}

func TestInvalidRequestsForImagesAreRejected(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for body, field := range map[string]string{
		`{"name":"a"}`:                                              "/url",
		`{"name":"a","url":"ftp://x/"}`:                             "/url",
		`{"name":"a","url":"http://x/","from_disk":"b"}`:            "/from_disk",
		`{"name":"a","from_disk":"b","format":"raw"}`:               "/from_disk",
		`{"name":"a","from_disk":"b","sha256":"` + sumOf("") + `"}`: "/from_disk",
		`{"url":"http://x/"}`:                                       "/name",
		`{"name":"A","url":"http://x/"}`:                            "/name",
		`{"name":"a","url":"http://x/","description":"\u0000"}`:     "/description",
		`{"name":"a","url":"http://x/","labels":{"A":""}}`:          "/labels/A",
	} {
		if p := a.want(t, 400, "POST", "/images", body).problem(t); len(p.Errors) != 1 ||
			!strings.HasPrefix(field, p.Errors[0].Field) {
			t.Errorf("%s: %+v", body, p)
		}
	}
	for _, parameter := range []string{"name=a", "sha256=" + sumOf(""), "sha512=" + strings.Repeat("0", 128),
		"format=raw", "description=x", "more=false"} {
		name, _, _ := strings.Cut(parameter, "=")
		if p := a.want(t, 400, "POST", "/images?"+
			parameter, `{"name":"a","url":"http://x/"}`).problem(t); len(p.Errors) != 1 || p.Errors[0].Field != name {
			t.Errorf("%s: %+v", parameter, p)
		}
	}
	for query, field := range map[string]string{
		"":                            "name",
		"?name=":                      "name",
		"?name=A":                     "name",
		"?name=../a":                  "name",
		"?name=a&name=b":              "name",
		"?name=a&sha256=0":            "sha256",
		"?name=a&sha512=" + sumOf(""): "sha512",
		"?name=a&format=qcow":         "format",
		"?name=a&more=yes":            "more",
		"?name=a&labels=x":            "labels",
		"?name=a&description=%00":     "description",
		"?name=a&url=http://x/":       "url",
	} {
		if p := a.want(t, 400, "POST", "/images"+query, "x", octets...).problem(t); len(p.Errors) != 1 ||
			p.Errors[0].Field != field {
			t.Errorf("%s: %+v", query, p)
		}
	}
	for query, field := range map[string]string{
		"":                            "offset",
		"?offset=-1":                  "offset",
		"?offset=1.5":                 "offset",
		"?offset=9223372036854775808": "offset",
		"?offset=0&more=2":            "more",
		"?offset=0&name=a":            "name",
	} {
		if p := a.want(t, 400, "PATCH", "/images/a/content"+query, "x", octets...).problem(t); len(p.Errors) != 1 ||
			p.Errors[0].Field != field {
			t.Errorf("%s: %+v", query, p)
		}
	}
	key := append(slices.Clone(octets), headerKey, "k")
	for path, method := range map[string]string{"/images?name=a": "POST", "/images/a/content?offset=0": "PATCH"} {
		if p := a.want(t, 400, method, path, "x", key...).problem(t); len(p.Errors) != 1 ||
			p.Errors[0].Field != headerKey {
			t.Errorf("%s: %+v", path, p)
		}
		a.want(t, 415, method, path, "x", "Content-Type", "", "Content-Type", "text/plain")
	}
	a.want(t, 415, "PATCH", "/images/a/content?offset=0", `{}`)
	a.want(t, 400, "POST", "/images", "")
	if all := into[[]openapi.Image](t, a.want(t, 200, "GET", "/images", "")); len(all) != 0 {
		t.Errorf("images %+v", all)
	}
}

func TestAnImageIsUploadedInParts(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	r := a.want(t, 202, "POST", "/images?name=a&more=true&sha256="+sumOf("one two three"), "one ", octets...)
	i := into[openapi.Image](t, r)
	if i.State != "uploading" || *i.UploadedBytes != 4 || i.Format != nil {
		t.Errorf("%s", r.body)
	}
	if o := a.operation(t, r); o.Kind != "image.upload" || o.State != "succeeded" {
		t.Errorf("%+v", o)
	}
	part := func(status, offset int, more bool, body string) reply {
		t.Helper()
		return a.want(t, status, "PATCH", fmt.Sprintf("/images/a/content?offset=%d&more=%v", offset, more), body,
			octets...)
	}
	for _, offset := range []int{0, 3, 5} {
		if p := part(412, offset, true, "x").problem(t); p.Code != "precondition-failed" ||
			!strings.Contains(p.Detail, " 4") {
			t.Errorf("%+v", p)
		}
	}
	if r := part(202, 4, true, "two "); *into[openapi.Image](t, r).UploadedBytes != 8 ||
		!strings.HasPrefix(r.Header.Get("Location"), "/operations/") {
		t.Errorf("%v %s", r.Header, r.body)
	}
	a.want(t, 409, "GET", "/images/a/content", "")
	part(202, 8, true, "three")
	r = a.want(t, 200, "PATCH", "/images/a/content?offset=13", "", "Content-Type", "") // the upload is already complete
	if i := into[openapi.Image](t, r); i.State != "available" || *i.SHA256 != sumOf("one two three") ||
		r.Header.Get("ETag") == "" {
		t.Errorf("%v %s", r.Header, r.body)
	}
	if p := part(409, 13, false, "x").problem(t); p.Code != "invalid-state" {
		t.Errorf("%+v", p)
	}
	a.want(t, 404, "PATCH", "/images/none/content?offset=0", "x", octets...)
	// An upload with a wrong checksum is deleted, and so is content that is not an image.
	a.want(t, 202, "POST", "/images?name=b&more=true&sha256="+sumOf("good"), "ba", octets...)
	a.wantCode(t, 400, "unsafe-image", "PATCH", "/images/b/content?offset=2", "d", octets...)
	a.want(t, 404, "GET", "/images/b", "")
	a.wantCode(t, 400, "checksum-mismatch", "POST", "/images?name=b&sha256="+
		sumOf("good"), "else", octets...)
	a.wantCode(t, 409, "already-exists", "POST", "/images?name=a", "x", octets...)
	// Media types are case-insensitive and may have parameters.
	a.want(t, 201, "POST", "/images?name=c", "x", "Content-Type", "", "Content-Type", "Application/Octet-Stream; x=1")
	a.driver.Offer("http://x/", []byte("x"))
	a.want(t, 202, "POST", "/images", `{"name":"d","url":"http://x/"}`, "Content-Type", "", "Content-Type",
		"APPLICATION/JSON; charset=utf-8")
}

func TestAnInterruptedUploadCanContinue(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.o.BodyTimeout = 300 * time.Millisecond })
	request := func(name string) string {
		return "POST /images?name=" + name + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + a.token +
			"\r\nContent-Type: application/octet-stream\r\n"
	}
	for name, test := range map[string]struct {
		rest   string
		status int
		code   openapi.ProblemCode
	}{
		"slow":    {"Content-Length: 10\r\n\r\nabc", 408, "request-timeout"},
		"chunked": {"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", 400, "malformed-body"},
	} {
		c := a.dial(t)
		if _, err := io.WriteString(c, request(name)+test.rest); err != nil {
			t.Fatal(err)
		}
		resp, body := receive(t, c)
		if resp.StatusCode != test.status || !strings.Contains(body, `"code":"`+string(test.code)+`"`) ||
			!strings.Contains(body, "uploaded_bytes") || !resp.Close {
			t.Errorf("%s: %d %s, closed %v", name, resp.StatusCode, body, resp.Close)
		}
	}
	c := a.dial(t)
	if _, err := io.WriteString(c, request("gone")+"Content-Length: 10\r\n\r\nabc"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, name := range []string{"slow", "chunked", "gone"} {
		waitFor(t, func() bool {
			r := a.ask(t, "GET", "/images/"+name, "")
			return r.StatusCode == 200 && *into[openapi.Image](t, r).UploadedBytes == 3
		})
		r := a.want(t, 200, "PATCH", "/images/"+name+"/content?offset=3", "def", octets...)
		if i := into[openapi.Image](t, r); *i.SHA256 != sumOf("abcdef") {
			t.Errorf("%s: %s", name, r.body)
		}
	}
	if log := a.log.String(); strings.Contains(log, `"level":"ERROR"`) || strings.Contains(log, "panic") {
		t.Errorf("%s", log)
	}
}

// A client that waits for the answer before it sends the body receives the rejection at
// once: the server does not wait for the body.
func TestTheBodyOfARejectedUploadIsNotRead(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.upload(t, "a", "x")
	c := a.dial(t)
	if _, err := io.WriteString(c, "POST /images?name=a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+a.token+
		"\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, body := receive(t, c)
	if resp.StatusCode != 409 || !resp.Close {
		t.Errorf("%d, closed %v: %s", resp.StatusCode, resp.Close, body)
	}
}

// drain takes uploads and keeps nothing.
type drain struct {
	Images
	got int64
}

func (d *drain) Upload(_ context.Context, n vm.NewImage, r io.Reader, _ bool) (vm.Image, vm.Operation, error) {
	var err error
	d.got, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 256<<10))
	return vm.Image{Name: n.Name, State: vm.ImageAvailable, Source: "upload"}, vm.Operation{}, err
}

// It measures the memory of the process, so it must not run in parallel.
func TestAnUploadIsNotHeldInMemory(t *testing.T) {
	d := &drain{}
	a := newAPI(t, func(f *fixture) { d.Images = f.d.Images; f.d.Images = d })
	const size = 256 << 20
	specification() // its memory must not count
	for _, length := range []int64{size, -1} {
		r, err := http.NewRequestWithContext(t.Context(), "POST", a.base+"/images?name=a",
			io.LimitReader(zeros{}, size))
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = length
		r.Header.Set("Authorization", "Bearer "+a.token)
		r.Header.Set("Content-Type", "application/octet-stream")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		reply := send(t, http.DefaultClient, r)
		runtime.ReadMemStats(&after)
		if reply.StatusCode != 201 || d.got != size {
			t.Errorf("status %d, %d bytes: %s", reply.StatusCode, d.got, reply.body)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > size/16 {
			t.Errorf("%d MiB were allocated for an upload of %d MiB", used>>20, size>>20)
		}
	}
}

func TestTheContentOfAnImageIsReadInRanges(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const content = "0123456789"
	a.upload(t, "a", content)
	const path = "/images/a/content"
	tag := `"` + sumOf(content) + `"`
	whole := a.want(t, 200, "GET", path, "")
	for name, want := range map[string]string{
		"Content-Type":        "application/octet-stream",
		"Content-Length":      "10",
		"Etag":                tag,
		"Accept-Ranges":       "bytes",
		"Content-Disposition": `attachment; filename="a.raw"`,
		"Cache-Control":       "no-store",
	} {
		if got := whole.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, test := range []struct {
		header  []string
		status  int
		body    string
		ranging string
	}{
		{nil, 200, content, ""},
		{[]string{"Range", "bytes=0-3"}, 206, "0123", "bytes 0-3/10"},
		{[]string{"Range", "bytes=8-"}, 206, "89", "bytes 8-9/10"},
		{[]string{"Range", "bytes=8-999999999999999999"}, 206, "89", "bytes 8-9/10"},
		{[]string{"Range", "bytes=-3"}, 206, "789", "bytes 7-9/10"},
		{[]string{"Range", "bytes=0-1", "If-Range", tag}, 206, "01", "bytes 0-1/10"},
		{[]string{"Range", "bytes=0-1", "If-Range", `"other"`}, 200, content, ""},
		{[]string{"Range", "bytes=0-1", "If-Range", "W/" + tag}, 200, content, ""},
		{[]string{"Range", "bytes=0-1,3-4"}, 200, content, ""},
		{[]string{"Range", "bytes=0-1", "Range", "bytes=3-4"}, 200, content, ""},
		{[]string{"Range", "lines=0-1"}, 200, content, ""},
		{[]string{"Range", "bytes=x"}, 200, content, ""},
		{[]string{"If-None-Match", tag}, 304, "", ""},
		{[]string{"If-None-Match", `"other"`}, 200, content, ""},
	} {
		r := a.want(t, test.status, "GET", path, "", test.header...)
		if string(r.body) != test.body || r.Header.Get("Content-Range") != test.ranging || r.Header.Get("Etag") != tag {
			t.Errorf("%v: %v %q", test.header, r.Header, r.body)
		}
		if h := a.want(t, test.status, "HEAD", path, "", test.header...); len(h.body) != 0 ||
			h.Header.Get("Content-Length") != r.Header.Get("Content-Length") {
			t.Errorf("HEAD %v: %v %q", test.header, h.Header, h.body)
		}
	}
	for _, value := range []string{"bytes=10-", "bytes=10-20", "bytes=5-4"} {
		r := a.want(t, 416, "GET", path, "", "Range", value)
		if p := r.problem(t); p.Code != "range-not-satisfiable" || r.Header.Get("Content-Range") != "bytes */10" ||
			r.Header.Get("Etag") != "" ||
			r.Header.Get("Content-Disposition") != "" || r.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v %s", value, r.Header, r.body)
		}
	}
	a.driver.LoseImage(sumOf(content))
	a.wantCode(t, 409, "invalid-state", "GET", path, "")
}

// broken has images that cannot be read to their end.
type broken struct{ Images }

func (broken) Open(context.Context, string) (vm.Image, io.ReadSeekCloser, error) {
	content := io.NewSectionReader(halfReader{}, 0, 1<<20)
	return vm.Image{Name: "a", ImageContent: vm.ImageContent{SHA256: sumOf(""), Layout: vm.FormatRaw, Bytes: 1 << 20}},
		struct {
			io.ReadSeeker
			io.Closer
		}{content, io.NopCloser(nil)}, nil
}

type halfReader struct{}

func (halfReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= 512<<10 {
		return 0, io.ErrUnexpectedEOF
	}
	return len(p), nil
}

func TestContentThatCannotBeReadCutsTheConnection(t *testing.T) {
	a := newAPI(t, func(f *fixture) { f.d.Images = broken{f.d.Images} })
	r, err := http.NewRequestWithContext(t.Context(), "GET", a.base+"/images/a/content", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d bytes look like the whole content", n)
	}
	waitFor(t, func() bool { return strings.Contains(a.log.String(), "unexpected EOF") })
}

func TestARepeatedRequestDoesNotRecreateADeletedImage(t *testing.T) {
	t.Parallel()
	records := &forgetful{}
	a := newAPI(t, func(f *fixture) { records.Records = f.d.Reader; f.d.Reader = records }).withVM(t)
	for _, header := range [][]string{{headerKey, "a", "Prefer", "wait=30"}, {headerKey, "b", "Prefer", "wait=29"}} {
		for range 2 {
			p := a.want(t, 503, "POST", "/images", `{"name":"a","url":"http://none/"}`, header...).problem(t)
			if p.Code != "fetch-failed" || p.OperationID == "" {
				t.Errorf("%+v", p)
			}
		}
	}
	a.upload(t, "iso", "iso")
	a.want(t, 201, "POST", "/vms/web-1/cdroms", `{"image":"iso"}`, headerKey, "cd")
	a.want(t, 204, "DELETE", "/vms/web-1/cdroms/cd-1", "")
	p := a.want(t, 404, "POST", "/vms/web-1/cdroms", `{"image":"iso"}`, headerKey, "cd").problem(t)
	if p.OperationID == "" {
		t.Errorf("%+v", p)
	}
	if calls := a.driver.Calls(); slices.ContainsFunc(calls,
		func(c string) bool { return strings.HasPrefix(c, "FetchImage") }) {
		t.Errorf("calls %v", calls)
	}
}

// An import continues after the answer, so a repeated request is answered with the
// current state of the image.
func TestARepeatedImportIsAnsweredWithItsCurrentState(t *testing.T) {
	t.Parallel()
	records := &forgetful{}
	a := newAPI(t, func(f *fixture) { records.Records = f.d.Reader; f.d.Reader = records }).withVM(t)
	a.driver.Offer("http://x/", []byte("x"))
	blocked := make(chan struct{})
	a.driver.Hook = func(_ context.Context, method, _ string) error {
		if method == "Fetch" || method == "CreateDisk" {
			<-blocked
		}
		return nil
	}
	paths := map[string]string{"/images": `{"name":"a","url":"http://x/"}`, "/disks": `{"from_disk":"web-1"}`}
	first := map[string]reply{}
	for path, body := range paths {
		first[path] = a.want(t, 202, "POST", path, body, headerKey, path)
		same(t, path, first[path], a.ask(t, "POST", path, body, headerKey, path))
	}
	close(blocked)
	for path, body := range paths {
		o := strings.TrimPrefix(first[path].Header.Get("Location"), "/operations/")
		if _, err := a.manager.Operations.Wait(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		again := a.want(t, 202, "POST", path, body, headerKey, path)
		if again.Header.Get("Location") != first[path].Header.Get("Location") ||
			!strings.Contains(string(again.body), `"available"`) {
			t.Errorf("%v %s", again.Header, again.body)
		}
	}
}

func TestOrphanedContentIsDeletedOnRequest(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	c, err := a.driver.ImageOfDisk(t.Context(), vm.CopySource{Resource: vm.DiskResource("x")}, vm.Import{})
	if err != nil {
		t.Fatal(err)
	}
	a.want(t, 400, "POST", "/observer/orphans/images:"+c.SHA256+"/adopt", "")
	o := into[openapi.Operation](t, a.want(t, 200, "POST", "/observer/orphans/images:"+c.SHA256+"/delete", ""))
	if o.Kind != "orphan.delete" || o.Resource != "images/"+c.SHA256 || len(a.driver.Contents()) != 0 {
		t.Errorf("%+v", o)
	}
	a.want(t, 404, "POST", "/observer/orphans/images:"+c.SHA256+"/delete", "")
	a.upload(t, "a", "x")
	a.want(t, 409, "POST", "/observer/orphans/images:"+sumOf("x")+"/delete", "")
}
