package server

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"vmand/openapi"
	"vmand/vm"
)

// unpack returns the body of a compressed answer.
func unpack(t *testing.T, r reply) []byte {
	t.Helper()
	if r.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("the answer is not compressed: %v", r.Header)
	}
	z, err := gzip.NewReader(bytes.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// raw sends a request without the transparent decompression of net/http.
func (a *api) raw(t *testing.T, method, path string, header ...string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, a.base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	resp, err := (&http.Transport{DisableCompression: true, DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp, body}
}

// withLabels makes VM web-1 larger than compressAbove.
func (a *api) withLabels(t *testing.T) *api {
	t.Helper()
	a.withVM(t)
	a.want(t, 200, "PATCH", "/vms/web-1", `{"description":"`+strings.Repeat("long ", 200)+`"}`)
	return a
}

func TestLargeAnswersAreCompressedOnRequest(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withLabels(t)
	for _, path := range []string{"/vms/web-1", "/vms", "/openapi.json", "/openapi.yaml", "/docs"} {
		plain := a.raw(t, "GET", path)
		small := a.raw(t, "GET", path, "Accept-Encoding", "br, gzip;q=0.5")
		if got := unpack(t, small); !bytes.Equal(got, plain.body) || len(small.body) >= len(plain.body) {
			t.Errorf("%s: %d bytes, compressed %d, of which %d are left", path, len(plain.body), len(small.body), len(got))
		}
		for name, r := range map[string]reply{"plain": plain, "compressed": small} {
			if r.Header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("%s, %s: Vary %q", path, name, r.Header.Get("Vary"))
			}
		}
		if plain.Header.Get("Content-Encoding") != "" || plain.ContentLength != int64(len(plain.body)) {
			t.Errorf("%s: %v", path, plain.Header)
		}
		if head := a.raw(t, "HEAD", path, "Accept-Encoding", "gzip"); len(head.body) != 0 ||
			head.Header.Get("Content-Encoding") != "gzip" || head.Header.Get("Etag") != small.Header.Get("Etag") {
			t.Errorf("HEAD %s: %v", path, head.Header)
		}
	}
	// A problem that is large, too.
	unknown := "/vms?x=1"
	for i := range 40 {
		unknown += "&unknown" + strconv.Itoa(i) + "=1"
	}
	if r := a.raw(t, "GET", unknown, "Accept-Encoding", "gzip"); r.StatusCode != 400 || !bytes.Contains(unpack(t, r), []byte("invalid-request")) {
		t.Errorf("problem: %d %v", r.StatusCode, r.Header)
	}
}

func TestOtherAnswersAreNotCompressed(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withLabels(t)
	a.upload(t, "big", strings.Repeat("0123456789abcdef", 1024))
	for _, path := range []string{"/templates/small", "/templates", "/nowhere", "/images/big/content", "/vms/web-1/console/log"} {
		if r := a.raw(t, "GET", path, "Accept-Encoding", "gzip"); r.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: %v", path, r.Header)
		}
	}
	if r := a.raw(t, "GET", "/images/big/content", "Accept-Encoding", "gzip", "Range", "bytes=0-4000"); r.StatusCode != 206 ||
		r.Header.Get("Content-Encoding") != "" || len(r.body) != 4001 {
		t.Errorf("range: %d %v", r.StatusCode, r.Header)
	}
	for _, accept := range []string{"", "identity", "gzip;q=0", "GZIP; q=0.000", "*;q=0", "*, gzip;q=0", "br", "gzipped", "gzip;q=x"} {
		if r := a.raw(t, "GET", "/vms/web-1", "Accept-Encoding", accept); r.Header.Get("Content-Encoding") != "" {
			t.Errorf("Accept-Encoding %q: %v", accept, r.Header)
		}
	}
	for _, accept := range []string{"gzip", "GZip", "x-gzip", "*", "gzip;q=0.001", "*;q=0, gzip", "deflate , gzip ; q=1"} {
		unpack(t, a.raw(t, "GET", "/vms/web-1", "Accept-Encoding", accept))
	}
	// Events arrive at once.
	s := a.follow(t, "?since=0", "Accept-Encoding", "gzip")
	if s.Header.Get("Content-Encoding") != "" {
		t.Errorf("events: %v", s.Header)
	}
}

func TestEntityTagOfACompressedAnswerIsAPrecondition(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withLabels(t)
	plain := a.raw(t, "GET", "/vms/web-1").Header.Get("Etag")
	packed := a.raw(t, "GET", "/vms/web-1", "Accept-Encoding", "gzip").Header.Get("Etag")
	if packed == plain || packed != withCoding(plain) {
		t.Fatalf("tags %s and %s", plain, packed)
	}
	for _, tag := range []string{plain, packed, `"0-0", ` + packed, "W/" + packed} {
		for _, accept := range []string{"identity", "gzip"} {
			r := a.raw(t, "GET", "/vms/web-1", "Accept-Encoding", accept, "If-None-Match", tag)
			if r.StatusCode != 304 || len(r.body) != 0 || !strings.Contains(tag, r.Header.Get("Etag")) || r.Header.Get("Content-Encoding") != "" {
				t.Errorf("If-None-Match %s: %d %v", tag, r.StatusCode, r.Header)
			}
		}
	}
	a.want(t, 200, "PATCH", "/vms/web-1", `{"labels":{"a":"b"}}`, "If-Match", packed)
	a.want(t, 412, "PATCH", "/vms/web-1", `{"labels":{"a":"c"}}`, "If-Match", packed)
	a.want(t, 412, "PATCH", "/vms/web-1", `{"labels":{"a":"c"}}`, "If-Match", plain)
}

func TestAnswerThatIsKeptForItsKeyIsSentPlainOrCompressed(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withLabels(t)
	body := `{"description":"` + strings.Repeat("new ", 300) + `"}`
	first := a.want(t, 200, "PATCH", "/vms/web-1", body, "Idempotency-Key", "k") // net/http asks for gzip
	again := a.want(t, 200, "PATCH", "/vms/web-1", body, "Idempotency-Key", "k", "Accept-Encoding", "identity")
	if !bytes.Equal(first.body, again.body) || again.Header.Get(headerReplayed) != "true" ||
		first.Header.Get("Etag") != withCoding(again.Header.Get("Etag")) {
		t.Errorf("%v\n%v", first.Header, again.Header)
	}
}

func TestListsHaveEntityTags(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	a.upload(t, "big", strings.Repeat("0123456789abcdef", 1024))
	a.want(t, 201, "POST", "/disks", `{"size":1}`)
	lists := []string{
		"/templates", "/vms", "/networks", "/disks", "/images", "/operations", "/events", "/vms?limit=1", "/events?limit=2",
		"/vms?state=running", "/vms/web-1/nics", "/vms/web-1/cdroms", "/vms/web-1/port_forwards",
	}
	tags := map[string]string{}
	for _, path := range lists {
		r := a.want(t, 200, "GET", path, "", "Accept-Encoding", "identity")
		tags[path] = r.Header.Get("Etag")
		if tags[path] == "" || r.ContentLength != int64(len(r.body)) {
			t.Errorf("%s: %v", path, r.Header)
		}
		for _, header := range []string{tags[path], "*", `"x", ` + tags[path]} {
			same := a.want(t, 304, "GET", path, "", "If-None-Match", header)
			if len(same.body) != 0 || same.Header.Get("Etag") != tags[path] || same.Header.Get("Content-Type") != "" {
				t.Errorf("%s, If-None-Match %s: %v", path, header, same.Header)
			}
		}
		a.want(t, 200, "GET", path, "", "If-None-Match", `W/"0"`)
	}
	a.want(t, 200, "PATCH", "/vms/web-1", `{"labels":{"a":"b"}}`)
	a.want(t, 201, "POST", "/vms", `{"template_name":"small","name":"web-2"}`)
	for path, status := range map[string]int{
		"/templates": 304, "/disks": 304, "/images": 304, "/vms?state=running": 304, // unchanged
		"/vms": 200, "/vms?limit=1": 200, "/operations": 200, "/events": 200, "/vms/web-1/nics": 200,
	} {
		a.want(t, status, "GET", path, "", "If-None-Match", tags[path])
	}
	if v := into[[]openapi.VM](t, a.want(t, 200, "GET", "/vms", "", "If-None-Match", tags["/vms"])); len(v) != 2 {
		t.Errorf("%d VMs", len(v))
	}
}

// The tag of a list of VMs changes as those of the VMs, and not whenever an agent answers.
func TestEntityTagOfAListOfVMsIgnoresWhenTheAgentAnswered(t *testing.T) {
	t.Parallel()
	agent := &agentAt{agent: someAgent}
	a := newAPI(t, func(f *fixture) { f.d.Guests = agent }).withVM(t)
	tag := a.want(t, 200, "GET", "/vms", "").Header.Get("Etag")
	agent.agent.LastSeenAt = agent.agent.LastSeenAt.Add(1e9)
	a.want(t, 304, "GET", "/vms", "", "If-None-Match", tag)
	agent.agent.Version = "9.0"
	a.want(t, 200, "GET", "/vms", "", "If-None-Match", tag)
}

type agentAt struct {
	Guests
	agent vm.Agent
}

func (a *agentAt) Agent(string) vm.Agent { return a.agent }

func TestListAboveTheLimitIsStreamedWithoutATag(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.d.Reader = manyVMs{f.d.Reader, 10000}; f.d.Guests = agents{} })
	for path, tagged := range map[string]bool{"/vms": false, "/vms?limit=1000": false, "/vms?limit=100": true} {
		r := a.want(t, 200, "GET", path, "", "Accept-Encoding", "identity")
		if (r.Header.Get("Etag") != "") != tagged || (r.ContentLength >= 0) != tagged {
			t.Errorf("%s: %d bytes, %v", path, len(r.body), r.Header)
		}
		into[[]openapi.VM](t, r)
		// Compressed, it is the same.
		if got := unpack(t, a.raw(t, "GET", path, "Accept-Encoding", "gzip")); !bytes.Equal(got, r.body) {
			t.Errorf("%s: %d bytes, compressed %d", path, len(r.body), len(got))
		}
	}
}
