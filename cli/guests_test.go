package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmand/openapi/client"
)

// A guestsDaemon answers like a vmand with some VMs. Its guests take a time to power off; a
// forced stop takes none.
type guestsDaemon struct {
	mu      sync.Mutex
	vms     []client.VM
	takes   map[string]time.Duration // until a guest has powered off
	busy    map[string]int           // refusals of a polite stop
	stopped []string                 // "id" or "id!" by force, in the order of the requests
	now     int                      // stops at this moment
	most    int                      // at the same moment
}

func (f *guestsDaemon) find(id string) *client.VM {
	i := slices.IndexFunc(f.vms, func(v client.VM) bool { return v.ID == id })
	if i < 0 {
		return nil
	}
	return &f.vms[i]
}

func (f *guestsDaemon) RoundTrip(r *http.Request) (*http.Response, error) {
	status, link, answer := f.answer(r)
	b, err := json.Marshal(answer)
	header := http.Header{}
	if link != "" {
		header.Set("Link", link)
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(bytes.NewReader(b))}, err
}

func (f *guestsDaemon) answer(r *http.Request) (status int, link string, body any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(parts) == 1 { // in pages of two
		at := 0
		fmt.Sscan(r.URL.Query().Get("cursor"), &at)
		page := f.vms[at:min(at+2, len(f.vms))]
		if at+2 < len(f.vms) {
			link = fmt.Sprintf(`</vms?cursor=%d>; rel="next"`, at+2)
		}
		return 200, link, page
	}
	v := f.find(parts[1])
	switch parts[len(parts)-1] {
	case "start":
		v.State = client.VMStateRunning
		f.stopped = append(f.stopped, v.ID)
	case "stop":
		var b client.StopRequest
		json.NewDecoder(r.Body).Decode(&b)
		if b.Reason == nil || *b.Reason != client.StopRequestReasonHostShutdown {
			return 400, "", client.Problem{Detail: "no reason"}
		}
		force := b.Force != nil && *b.Force
		if !force && f.busy[v.ID] > 0 {
			f.busy[v.ID]--
			return 409, "", client.Problem{Detail: "another operation holds it"}
		}
		f.stop(r.Context(), v.ID, force, b.TimeoutSeconds)
		v = f.find(parts[1])
	}
	return 200, "", v
}

// stop must be called with mu held, which it releases while it waits.
func (f *guestsDaemon) stop(ctx context.Context, id string, force bool, timeout *int) {
	v := f.find(id)
	takes := min(f.takes[id], time.Duration(v.ShutdownTimeout)*time.Second)
	if timeout != nil {
		takes = min(takes, time.Duration(*timeout)*time.Second)
	}
	name := id
	if force {
		takes, name = 0, id+"!"
	}
	f.stopped = append(f.stopped, name)
	f.now++
	f.most = max(f.most, f.now)
	v.State = client.VMStateStopping
	f.mu.Unlock()
	pause(ctx, takes)
	f.mu.Lock()
	f.now--
	f.find(id).State = client.VMStateStopped
}

func guestVM(id string, order int) client.VM {
	return client.VM{
		ID: id, State: client.VMStateRunning, DesiredState: client.VMDesiredStateRunning,
		Autostart: order > 0, AutostartOrder: order,
		ShutdownTimeout: 60, ShutdownAction: client.ShutdownActionStop,
	}
}

// run runs a guests command over f and returns its output.
func (f *guestsDaemon) run(t *testing.T, o GuestsOptions, command func(*guestsRun, context.Context) error) (string, error) {
	t.Helper()
	var out bytes.Buffer
	g := &guestsRun{app: newAppOf(&endpoint{url: &url.URL{Scheme: "http", Host: "vmand"}}, f), o: o, out: &out, told: map[string]bool{}}
	err := command(g, t.Context())
	return out.String(), err
}

func TestGuestsStopInReverseOrderWithALimitAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &guestsDaemon{takes: map[string]time.Duration{}, busy: map[string]int{"second": 2}}
		for i, id := range []string{"old", "new"} { // without autostart
			v := guestVM(id, 0)
			v.CreatedAt = time.Unix(int64(i), 0)
			f.vms = append(f.vms, v)
		}
		for i, id := range []string{"first", "second", "third"} {
			f.vms = append(f.vms, guestVM(id, i+1))
			f.takes[id] = 10 * time.Second
		}
		gone := guestVM("crashed", 9)
		gone.State = client.VMStateError
		off := guestVM("off", 9)
		off.State = client.VMStateStopped
		f.vms = append(f.vms, gone, off)
		out, err := f.run(t, GuestsOptions{Parallel: 1, Limit: 5 * time.Minute}, (*guestsRun).stop)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Join(f.stopped, " "), "new old third second first"; got != want {
			t.Errorf("stopped %s, want %s (second was busy twice)", got, want)
		}
		if f.most != 1 {
			t.Errorf("%d stops at a time, want 1", f.most)
		}
		for _, line := range []string{
			"VM third: asking the guest to power off, for 60 s", "VM third: stopped after 10s",
			"VM second: another operation holds it", "no VM runs; stopped 5 in",
		} {
			if strings.Count(out, line) != 1 {
				t.Errorf("the output does not have the line %q once:\n%s", line, out)
			}
		}
	})
}

func TestGuestsStopInParallelWithinTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &guestsDaemon{takes: map[string]time.Duration{}, busy: map[string]int{"held": 1000}}
		for i := range 6 {
			v := guestVM(fmt.Sprint("deaf-", i), 0)
			v.ShutdownTimeout = 3600
			f.takes[v.ID] = time.Hour
			f.vms = append(f.vms, v)
		}
		kill := guestVM("kill", 0)
		kill.ShutdownAction = client.ShutdownActionKill
		mute := guestVM("mute", 0)
		mute.State, mute.StateReason = client.VMStateError, new(client.VMStateReasonUnreachable)
		f.vms = append(f.vms, kill, mute, guestVM("held", 1))
		began := time.Now()
		out, err := f.run(t, GuestsOptions{Parallel: 4, Limit: time.Minute}, (*guestsRun).stop)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("the stop took %s, want at most a minute", took)
		}
		got := map[string]bool{}
		for _, name := range f.stopped {
			got[name] = true
		}
		for _, want := range []string{"kill!", "mute!", "held!", "deaf-0", "deaf-4!"} {
			if !got[want] {
				t.Errorf("no stop of %s among %q", want, slices.Sorted(maps.Keys(got)))
			}
		}
	})
}

func TestGuestsStopInWavesOfEqualOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &guestsDaemon{takes: map[string]time.Duration{"app-1": 20 * time.Second}, busy: map[string]int{"held": 100}}
		for id, order := range map[string]int{"db": 1, "app-1": 2, "app-2": 2, "held": 3} {
			f.vms = append(f.vms, guestVM(id, order))
		}
		f.find("held").ShutdownTimeout = 10
		out, err := f.run(t, GuestsOptions{Parallel: 8, Limit: 5 * time.Minute}, (*guestsRun).stop)
		if err != nil {
			t.Fatal(err)
		}
		if i, j := strings.Index(out, "VM app-1: stopped after 20s"), strings.Index(out, "VM db: asking"); i < 0 || j < i {
			t.Errorf("VM db was asked before the VMs that start after it had stopped:\n%s", out)
		}
		if f.stopped[len(f.stopped)-1] != "held" {
			t.Errorf("stopped %q; want the VM that was busy last", f.stopped)
		}
	})
}

func TestGuestsStopGivesUpAfterTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &guestsDaemon{vms: []client.VM{guestVM("a", 0)}}
		f.vms[0].ShutdownAction = client.ShutdownActionKill
		refuse := roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method == "POST" {
				return &http.Response{StatusCode: 500, Body: io.NopCloser(strings.NewReader(`{"detail":"broken"}`))}, nil
			}
			return f.RoundTrip(r)
		})
		var out bytes.Buffer
		g := &guestsRun{
			app: newAppOf(&endpoint{url: &url.URL{Scheme: "http", Host: "vmand"}}, refuse),
			o:   GuestsOptions{Parallel: 1, Limit: 20 * time.Second}, out: &out, told: map[string]bool{},
		}
		err := g.stop(t.Context())
		if err == nil || !strings.Contains(err.Error(), "did not stop within 20s") {
			t.Errorf("error %v", err)
		}
		if n := strings.Count(out.String(), "broken"); n == 0 || n > 40 {
			t.Errorf("%d lines about the failure:\n%s", n, &out)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestGuestsStartStartsWantedVMsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &guestsDaemon{}
		for i, id := range []string{"third", "second", "first", "runs", "not-wanted", "no-autostart"} {
			v := guestVM(id, 3-min(i, 2))
			v.State, v.AutostartDelay = client.VMStateStopped, 5
			f.vms = append(f.vms, v)
		}
		f.find("runs").State = client.VMStateRunning
		f.find("not-wanted").DesiredState = client.VMDesiredStateStopped
		f.find("no-autostart").Autostart = false
		began := time.Now()
		out, err := f.run(t, GuestsOptions{}, (*guestsRun).start)
		if err != nil || !strings.Contains(out, "started 3 VMs") {
			t.Errorf("%s, %v", out, err)
		}
		if got := strings.Join(f.stopped, " "); got != "first second third" {
			t.Errorf("started %s", got)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("the starts took %s, want the two delays of 5 s", took)
		}
	})
}

func TestGuestsWaitForADaemonThatRestarts(t *testing.T) {
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "sock")
	served := make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("[]")) })}
	go func() {
		defer close(served)
		time.Sleep(100 * time.Millisecond)
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Error(err)
			return
		}
		server.Serve(l)
	}()
	defer func() { server.Close(); <-served }()
	c, err := Parse([]string{"guests", "stop"}, ConsoleFlags{})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = c.Run(t.Context(), Host{Socket: socket, Guests: GuestsOptions{Parallel: 1, Limit: time.Minute}}, Streams{Out: &out})
	if err != nil || !strings.Contains(out.String(), "no VM runs") {
		t.Errorf("%s, %v", &out, err)
	}
}
