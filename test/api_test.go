package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"vmand/openapi"
)

// contract routes requests as the spec does.
var contract = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi.Load()
	if err != nil {
		return nil, err
	}
	doc.Servers = nil // any host
	return gorillamux.NewRouter(doc)
})

// checked validates every answer against the spec.
type checked struct {
	t    testing.TB
	next http.RoundTripper
}

func (c *checked) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	router, err := contract()
	if err != nil {
		return nil, err
	}
	route, params, err := router.FindRoute(req)
	if err != nil {
		return resp, nil // a test of what is not in the spec
	}
	in := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route},
		Status:                 resp.StatusCode, Header: resp.Header, Body: io.NopCloser(bytes.NewReader(body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}
	if err := openapi3filter.ValidateResponse(req.Context(), in); err != nil {
		c.t.Errorf("%s %s answered %d, against its spec: %v\n%s", req.Method, req.URL.Path, resp.StatusCode, err, body)
	}
	return resp, nil
}

// An answer is what the API answered.
type answer struct {
	t      testing.TB
	what   string
	status int
	header http.Header
	body   []byte
}

// call sends a request; body may be nil, a string to send as it is, bytes that are
// no JSON, or anything to send as JSON. Headers are "Name: value".
func (d *daemon) call(method, path string, body any, headers ...string) answer {
	d.t.Helper()
	a, err := d.try(method, path, body, headers...)
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// try is call for goroutines of the test, which may not end it.
func (d *daemon) try(method, path string, body any, headers ...string) (answer, error) {
	var r io.Reader
	media := "application/json"
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case []byte:
		r, media = bytes.NewReader(b), "application/octet-stream"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return answer{}, err
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(d.t.Context(), method, "http://vmand"+path, r)
	if err != nil {
		return answer{}, err
	}
	if r != nil {
		req.Header.Set("Content-Type", media)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{t: d.t, what: method + " " + path, status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(resp.Body)
	return a, err
}

// want fails the test if the status is another.
func (a answer) want(status int) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s answered %d; want %d\n%s", a.what, a.status, status, a.body)
	}
	return a
}

// problem fails the test if it is not one of this status and code, whose detail
// has the words.
func (a answer) problem(status int, code string, words ...string) openapi.Problem {
	a.t.Helper()
	a.want(status)
	p := as[openapi.Problem](a)
	if string(p.Code) != code {
		a.t.Fatalf("%s answered the problem %s; want %s\n%s", a.what, p.Code, code, a.body)
	}
	for _, w := range words {
		if !strings.Contains(p.Detail, w) {
			a.t.Fatalf("%s: the detail %q does not say %q", a.what, p.Detail, w)
		}
	}
	return p
}

// as decodes the answer's body.
func as[T any](a answer) T {
	a.t.Helper()
	var v T
	if err := json.Unmarshal(a.body, &v); err != nil {
		a.t.Fatalf("%s: %v\n%s", a.what, err, a.body)
	}
	return v
}

const wait = "Prefer: wait=120"

// template makes the template "small".
func (d *daemon) template() {
	d.t.Helper()
	d.call("POST", "/templates", map[string]any{"name": "small", "cpu_count": 1, "ram_amount": 128}).want(201)
}

// create makes a VM of the template "small".
func (d *daemon) create(id string) openapi.VM {
	d.t.Helper()
	return as[openapi.VM](d.call("POST", "/vms", map[string]any{"template_name": "small", "name": id}).want(201))
}

// do runs an action to its end and returns the VM.
func (d *daemon) do(id, action string) openapi.VM {
	d.t.Helper()
	return as[openapi.VM](d.call("POST", "/vms/"+id+"/actions/"+action, nil, wait).want(200))
}

func (d *daemon) vm(id string) openapi.VM {
	d.t.Helper()
	return as[openapi.VM](d.call("GET", "/vms/"+id, nil).want(200))
}

// newDisk makes a data disk.
func (d *daemon) newDisk(gib float64) openapi.Disk {
	d.t.Helper()
	return as[openapi.Disk](d.call("POST", "/disks", map[string]any{"size": gib}).want(201))
}

func (d *daemon) attach(disk, id string) openapi.Disk {
	d.t.Helper()
	return as[openapi.Disk](d.call("POST", "/disks/"+disk+"/attach", map[string]any{"vm_id": id}).want(200))
}

// operation returns the operation an answer's Location names.
func (d *daemon) operation(a answer) openapi.Operation {
	d.t.Helper()
	path := a.header.Get("Location")
	if !strings.HasPrefix(path, "/operations/") {
		d.t.Fatalf("%s: Location is %q", a.what, path)
	}
	return as[openapi.Operation](d.call("GET", path, nil).want(200))
}

// waitVM waits until the VM is in a state for a reason.
func (d *daemon) waitVM(id, state, reason string, patience time.Duration) openapi.VM {
	d.t.Helper()
	var v openapi.VM
	eventually(d.t, patience, fmt.Sprintf("VM %s to be %s/%s", id, state, reason), func() error {
		v = d.vm(id)
		why := ""
		if v.StateReason != nil {
			why = string(*v.StateReason)
		}
		if string(v.State) != state || why != reason {
			return fmt.Errorf("it is %s/%s", v.State, why)
		}
		return nil
	})
	return v
}

// A guest is what a VM's guest prints on its serial console.
type guest struct {
	t    testing.TB
	file string
	read int // how much of it was matched already
}

func (d *daemon) guest(id string) *guest {
	return &guest{t: d.t, file: filepath.Join(d.state, "vms", id, "serial.log")}
}

// says waits until the guest has printed a match of the pattern behind what was
// matched last, and returns the submatches.
func (g *guest) says(pattern string) []string {
	g.t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	eventually(g.t, 90*time.Second, fmt.Sprintf("the guest to print %q", pattern), func() error {
		out, err := os.ReadFile(g.file)
		if err != nil {
			return err
		}
		at := re.FindSubmatchIndex(out[min(g.read, len(out)):])
		if at == nil {
			return fmt.Errorf("it printed\n%s", tail(out, 2000))
		}
		found = nil
		rest := out[g.read:]
		for i := 0; i < len(at); i += 2 {
			found = append(found, string(rest[max(at[i], 0):max(at[i+1], 0)]))
		}
		g.read += at[1]
		return nil
	})
	return found
}

// never fails the test if the guest has printed a match so far.
func (g *guest) never(pattern string) {
	g.t.Helper()
	out, err := os.ReadFile(g.file)
	if err != nil {
		g.t.Fatal(err)
	}
	if m := regexp.MustCompile(pattern).Find(out); m != nil {
		g.t.Fatalf("the guest printed %q", m)
	}
}
