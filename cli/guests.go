package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"vmand/openapi/client"
)

// GuestsOptions are the settings of the guests commands.
type GuestsOptions struct {
	Parallel int           // guests that are asked to power off at a time
	Limit    time.Duration // for all guests
}

const (
	// killTime is the part of the limit that is kept to end the processes of guests
	// that do not power off in time.
	killTime = 10 * time.Second
	// holdTime is how long a request waits for the end of its operation at most.
	holdTime = 60 * time.Second
	// retryTime is the pause before a VM is tried again.
	retryTime = time.Second
	// dialTime is how long the daemon may be away, as during its restart.
	dialTime = 30 * time.Second
)

// guests runs `guests start` or `guests stop` through the daemon's unix socket.
func guests(ctx context.Context, h Host, action string, out io.Writer) error {
	if h.Socket == "" {
		return errNoSocket
	}
	e, err := parseEndpoint("unix:" + h.Socket)
	if err != nil {
		return err
	}
	e.patience = dialTime
	a := newAppOf(e, e.transport())
	defer a.http.CloseIdleConnections()
	g := &guestsRun{app: a, o: h.Guests, out: out, told: map[string]bool{}}
	if action == "start" {
		return g.start(ctx)
	}
	return g.stop(ctx)
}

// A guestsRun is one run of a guests command.
type guestsRun struct {
	app *app
	o   GuestsOptions

	mu   sync.Mutex
	out  io.Writer
	told map[string]bool // the lines about VMs
}

func (g *guestsRun) say(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fmt.Fprintf(g.out, format+"\n", args...)
}

// sayOf prints a line about a VM, once.
func (g *guestsRun) sayOf(id, format string, args ...any) {
	line := fmt.Sprintf("VM %s: %s", id, fmt.Sprintf(format, args...))
	g.mu.Lock()
	again := g.told[line]
	g.told[line] = true
	g.mu.Unlock()
	if !again {
		g.say("%s", line)
	}
}

// list returns all VMs, the oldest first.
func (g *guestsRun) list(ctx context.Context) ([]client.VM, error) {
	return all[client.VM](ctx, g.app)(client.NewListVMsRequest(server, &client.ListVMsParams{Limit: new(pageSize)}))
}

// start starts the VMs with autostart that were last asked to run, as the daemon does after
// a boot of the host.
func (g *guestsRun) start(ctx context.Context) error {
	vms, err := g.list(ctx)
	if err != nil {
		return err
	}
	vms = slices.DeleteFunc(vms, func(v client.VM) bool {
		return !v.Autostart || v.DesiredState != client.VMDesiredStateRunning ||
			v.State != client.VMStateStopped && v.State != client.VMStateError
	})
	slices.SortStableFunc(vms, func(a, b client.VM) int { return a.AutostartOrder - b.AutostartOrder })
	var errs []error
	for i, v := range vms {
		if i > 0 && !pause(ctx, time.Duration(vms[i-1].AutostartDelay)*time.Second) {
			return context.Cause(ctx)
		}
		g.sayOf(v.ID, "starting")
		params := client.StartVMParams{Prefer: new("wait=120")}
		_, err := change[client.VM](ctx, g.app)(client.NewStartVMRequest(server, v.ID, &params, client.StartVMJSONRequestBody{}))
		if err != nil {
			errs = append(errs, fmt.Errorf("VM %s: %w", v.ID, err))
		}
	}
	if len(errs) == 0 {
		g.say("started %d VMs", len(vms))
	}
	return errors.Join(errs...)
}

// stop stops every VM for a shutdown of the host, until none runs, in waves: first the VMs
// without autostart, then the others in the reverse order of their start, those with the same
// autostart_order together. A wave begins when the one before it has stopped. When the limit
// is near, the processes of all guests that are left are ended at once.
func (g *guestsRun) stop(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, g.o.Limit+killTime, fmt.Errorf("the VMs did not stop within %s", g.o.Limit))
	defer cancel()
	polite := began.Add(max(g.o.Limit-killTime, 0))
	count := 0
	first := map[string]time.Time{} // when each VM was first tried
	for {
		vms, err := g.list(ctx)
		if err != nil {
			return err
		}
		vms = slices.DeleteFunc(vms, func(v client.VM) bool { return !mustStop(v) })
		if len(vms) == 0 {
			g.say("no VM runs; stopped %d in %s", count, time.Since(began).Round(time.Second))
			return nil
		}
		slices.SortStableFunc(vms, stopsBefore)
		now := wave(vms, first, polite)
		n := g.stopAll(ctx, now, polite)
		count += n
		if n < len(now) && !pause(ctx, retryTime) { // for the VMs that another operation holds
			return context.Cause(ctx)
		}
	}
}

// wave returns the VMs to try now: the first of those that are left and all with the same place
// in the order. A VM that could not be stopped within its own time, such as one that another
// operation holds, is tried again without holding up the next waves. After polite, wave returns
// all. It records new VMs in first.
func wave(vms []client.VM, first map[string]time.Time, polite time.Time) (all []client.VM) {
	if !time.Now().Before(polite) {
		return vms
	}
	var head *client.VM
	for i := range vms {
		v := &vms[i]
		if at, tried := first[v.ID]; tried && time.Since(at) > time.Duration(v.ShutdownTimeout)*time.Second {
			all = append(all, *v)
			continue
		}
		if head == nil {
			head = v
		}
		if v.Autostart != head.Autostart || v.Autostart && v.AutostartOrder != head.AutostartOrder {
			continue
		}
		if _, tried := first[v.ID]; !tried {
			first[v.ID] = time.Now()
		}
		all = append(all, *v)
	}
	return all
}

// mustStop reports whether v has, or may have, a process.
func mustStop(v client.VM) bool {
	switch v.State {
	case client.VMStateStopped:
		return false
	case client.VMStateError:
		return v.StateReason != nil && *v.StateReason == client.VMStateReasonUnreachable
	}
	return true
}

// stopsBefore compares two VMs in the order in which they stop. The daemon lists the oldest
// first, and the newest stops first.
func stopsBefore(a, b client.VM) int {
	switch {
	case a.Autostart != b.Autostart && b.Autostart:
		return -1
	case a.Autostart != b.Autostart:
		return 1
	}
	return cmp.Or(b.AutostartOrder-a.AutostartOrder, b.CreatedAt.Compare(a.CreatedAt))
}

// stopAll tries to stop each VM once, o.Parallel of them at a time and all at once when
// polite has passed. It returns how many it has stopped.
func (g *guestsRun) stopAll(ctx context.Context, vms []client.VM, polite time.Time) (stopped int) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	late := time.NewTimer(time.Until(polite))
	defer late.Stop()
	slots := make(chan struct{}, g.o.Parallel)
	for _, v := range vms {
		hurry := !time.Now().Before(polite)
		if !hurry {
			select {
			case slots <- struct{}{}:
			case <-late.C:
				hurry = true
			}
		}
		wg.Go(func() {
			if !hurry {
				defer func() { <-slots }()
			}
			if g.stopOne(ctx, v, polite) {
				mu.Lock()
				defer mu.Unlock()
				stopped++
			}
		})
	}
	wg.Wait()
	return stopped
}

// stopOne stops a VM and reports whether it has stopped. Without success, the next round
// tries it again.
func (g *guestsRun) stopOne(ctx context.Context, v client.VM, polite time.Time) bool {
	body := client.StopVMJSONRequestBody{Reason: new(client.StopRequestReasonHostShutdown)}
	patience := time.Duration(v.ShutdownTimeout) * time.Second
	left := time.Until(polite)
	began := time.Now()
	switch {
	case v.ShutdownAction == client.ShutdownActionKill, left <= 0, v.State == client.VMStateError:
		body.Force = new(true)
		g.sayOf(v.ID, "ending its process")
	case left < patience:
		body.TimeoutSeconds = new(int(left/time.Second) + 1)
		g.sayOf(v.ID, "asking the guest to power off, for %d s of its %d s", *body.TimeoutSeconds, v.ShutdownTimeout)
	default:
		g.sayOf(v.ID, "asking the guest to power off, for %d s", v.ShutdownTimeout)
	}
	now, err := g.stopAndWait(ctx, v.ID, body, patience)
	took := time.Since(began).Round(100 * time.Millisecond)
	switch {
	case err != nil:
		g.sayOf(v.ID, "%v", err)
		return false
	case now.State != client.VMStateStopped:
		g.sayOf(v.ID, "it is %s after %s", now.State, took)
		return false
	case body.Force == nil && took >= patience:
		g.sayOf(v.ID, "stopped after %s: the guest did not power off, its process was ended", took)
	default:
		g.sayOf(v.ID, "stopped after %s", took)
	}
	return true
}

// stopAndWait begins the stop of a VM and returns the VM at its end.
func (g *guestsRun) stopAndWait(ctx context.Context, id string, body client.StopVMJSONRequestBody, patience time.Duration) (v client.VM, err error) {
	hold := fmt.Sprintf("wait=%d", int(min(patience+killTime, holdTime)/time.Second))
	r, err := change[client.VM](ctx, g.app)(client.NewStopVMRequest(server, id, &client.StopVMParams{Prefer: &hold}, body))
	for err == nil && r.value.State == client.VMStateStopping && pause(ctx, retryTime) { // longer than a request is held
		r, err = call[client.VM](ctx, g.app)(client.NewGetVMRequest(server, id, nil))
	}
	return r.value, err
}
