package vm

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"
	"vmand/failpoint"
)

// Deadlines of what is done to a VM.
const (
	createTimeout = 24 * time.Hour // it may have to copy an image
	startTimeout  = 2 * time.Minute
	stopSlack     = time.Minute // beyond the guest's own time: the rungs that force it
	pauseTimeout  = 30 * time.Second
	deleteTimeout = 2 * time.Minute
)

// Do begins an operation on a VM, one of start, stop, restart, pause, resume and
// reset, and returns the VM as it is recorded meanwhile. Use [Manager.Wait] to
// learn how it ends. The options are for stop and restart.
func (m *Manager) Do(ctx context.Context, id string, op Op, o StopOptions) (VM, Operation, error) {
	return m.do(ctx, &action{m: m, id: id, op: op, stop: o})
}

func (m *Manager) do(ctx context.Context, a *action) (VM, Operation, error) {
	id, op, o := a.id, a.op, a.stop
	timeout, act := pauseTimeout, a.guest
	switch op {
	case OpStart:
		timeout, act = startTimeout, a.start
	case OpStop:
		timeout, act = o.Timeout+stopSlack, a.halt
	case OpRestart:
		timeout, act = o.Timeout+stopSlack+startTimeout, a.restart
	case OpPause, OpResume, OpReset:
	default:
		return VM{}, Operation{}, fmt.Errorf("no such action: %q", op)
	}
	forced := op == OpStop && o.Force
	r, err := m.begin(ctx, change{
		kind: Kind("vm." + string(op)), resources: []string{VMResource(id)}, timeout: timeout,
		claim: claim{preempt: forced}, preemptible: !forced,
		intent: a.intent, act: act,
		truth: func(ctx context.Context) (Change, error) { return m.vmTruth(ctx, id) },
	})
	if err != nil {
		return VM{}, Operation{}, err
	}
	return a.told, r.snapshot(), nil
}

// An action is one operation of [Manager.Do] on its way.
type action struct {
	m    *Manager
	id   string
	op   Op
	stop StopOptions
	auto bool // a restart by policy
	told VM   // as recorded meanwhile, for the caller
	v    VM   // as it is to be recorded
	to   State
}

func (a *action) intent(ctx context.Context, r *run) (Change, error) {
	v, err := a.m.settled(ctx, a.id)
	if err != nil {
		return Change{}, err
	}
	if a.auto && (!wantsRestart(v) || v.RestartAt.IsZero() || v.RestartAt.After(now())) {
		return Change{}, &Fault{Code: CodeState, Detail: fmt.Sprintf("no restart of VM %s is due", v.ID)}
	}
	from := v.State
	via, to, ok := from.Begin(a.op)
	if r.preempted && from == Stopped { // what it cancelled was a start: the stop has done its work
		via, to, ok = Stopped, Stopped, true
	}
	if a.op == OpRestart && !ok && v.Desired == DesiredRunning { // a restart cut short can be repeated
		via, to, ok = Stopping, Running, true
	}
	if !ok {
		return Change{}, refusal(v, a.op)
	}
	if a.op == OpStart {
		if err := a.m.admit(ctx, &v); err != nil {
			return Change{}, err
		}
	}
	a.to = to
	v.State = via
	if via != from {
		v.Reason, v.ReasonDetail = ReasonRequested, ""
	}
	a.wish(&v)
	a.v, a.told = v, v
	a.told.Revision++ // as the store will
	c := Change{VM: &VMUpdate{From: from, VM: v}}
	if a.op == OpStart {
		c.Learned = []Learned{{VMID: v.ID, Reset: true}}
		if v.Boot != (Boot{}) || len(v.Learned) > 0 {
			a.told.Revision++
		}
		a.told.Boot, a.told.Learned = Boot{}, nil
	}
	return c, nil
}

// wish records what the operation says about the VM's future.
func (a *action) wish(v *VM) {
	if a.auto {
		v.Restarts++
		v.RestartAt = time.Time{}
		return
	}
	switch a.op {
	case OpStart, OpRestart:
		v.Desired = DesiredRunning
	case OpStop:
		v.Desired = DesiredStopped
	default:
		return
	}
	v.Restarts, v.RestartAt = 0, time.Time{}
}

// admit completes v with what it will run on and makes sure that it can.
func (m *Manager) admit(ctx context.Context, v *VM) error {
	p, err := m.driver.Platform(ctx)
	if err != nil {
		return err
	}
	v.Machine = cmp.Or(v.Machine, p.Machine)
	v.Accel = p.Accel
	for _, n := range v.NICs {
		if err := m.network.Check(n.Mode); err != nil {
			return err
		}
	}
	s, err := m.spec(ctx, *v)
	if err != nil {
		return err
	}
	return m.driver.Admit(ctx, s)
}

// spec returns what the driver needs to start v, but for its NICs.
func (m *Manager) spec(ctx context.Context, v VM) (Spec, error) {
	disks, err := m.store.Disks(ctx, DiskFilter{VMID: v.ID}, Page{})
	if err != nil {
		return Spec{}, err
	}
	for _, d := range disks {
		if d.State == DiskError { // what the user gave the VM is not left out in silence
			return Spec{}, &Fault{Code: CodeState, Detail: fmt.Sprintf("disk %s of VM %s is in state error: %s", d.ID, v.ID, d.Reason),
				Hint: "detach it first, or bring its file back"}
		}
	}
	disks = slices.DeleteFunc(disks, func(d Disk) bool { return d.State != DiskAttached })
	slices.SortFunc(disks, func(a, b Disk) int {
		i, _ := Slot(a.MountPoint)
		j, _ := Slot(b.MountPoint)
		return i - j
	})
	return Spec{ID: v.ID, UUID: v.UUID, CPUCount: v.Template.CPUCount, RAMMiB: v.Template.RAMMiB,
		Machine: v.Machine, Accel: v.Accel, Root: v.Root, Disks: disks, CDROMs: v.CDROMs}, nil
}

// outcome returns the change that records a.v in the state it was to reach.
func (a *action) outcome() Change {
	from := a.v.State
	a.v.State, a.v.Reason, a.v.ReasonDetail = a.to, ReasonRequested, ""
	return Change{VM: &VMUpdate{From: from, VM: a.v}}
}

func (a *action) start(ctx context.Context, r *run) (Change, error) {
	s, err := a.m.spec(ctx, a.v)
	if err != nil {
		return Change{}, err
	}
	networks, err := a.m.networksOf(ctx, a.v)
	if err != nil {
		return Change{}, err
	}
	if err := a.m.writeSeed(ctx, a.v, networks); err != nil {
		return Change{}, err
	}
	if s.Ports, err = a.m.network.Connect(ctx, a.v, a.v.NICs, networks); err != nil {
		return Change{}, err
	}
	defer ClosePorts(s.Ports)
	failpoint.Hit("network.connected")
	if err := a.m.driver.Start(ctx, s, r.report); err != nil {
		return Change{}, err
	}
	a.v.StartedAt = now()
	c := a.outcome()
	c.Learned = []Learned{{VMID: a.id, Boot: bootOf(r.snapshot().Log)}}
	return c, nil
}

// bootOf returns the times of a start's own steps.
func bootOf(log []LogLine) (b Boot) {
	for _, l := range log { // the last of each: a restart begins with a stop
		switch l.Step {
		case "launch":
			b.Spawned = l.At
		case "cont":
			b.Monitor = l.At
		}
	}
	return b
}

func (a *action) halt(ctx context.Context, r *run) (Change, error) {
	if err := a.m.driver.Shutdown(ctx, a.id, a.stop, r.report); err != nil {
		return Change{}, err
	}
	a.v.NICs, _ = SettleNICs(a.v.NICs, Observation{})
	out := a.outcome()
	var err error
	out.Disks, err = a.m.unplugged(ctx, a.id)
	if err != nil {
		return Change{}, err
	}
	return out, a.m.network.Disconnect(ctx, a.id)
}

// restart is a stop and a start in one operation: the VM gets a new QEMU, and
// with it what only a new one can have.
func (a *action) restart(ctx context.Context, r *run) (Change, error) {
	final := a.to
	a.to = Starting
	between, err := a.halt(ctx, r)
	if err != nil {
		return Change{}, err
	}
	between.Learned = []Learned{{VMID: a.id, Reset: true}}
	if err := a.m.apply(ctx, between); err != nil {
		return Change{}, err
	}
	failpoint.Hit("vm.restart.between")
	if err := a.m.admit(ctx, &a.v); err != nil {
		return Change{}, err
	}
	a.to = final
	return a.start(ctx, r)
}

// guest does what only changes what the guest does.
func (a *action) guest(ctx context.Context, _ *run) (Change, error) {
	var err error
	switch a.op {
	case OpPause:
		err = a.m.driver.Pause(ctx, a.id)
	case OpResume:
		err = a.m.driver.Resume(ctx, a.id)
	case OpReset:
		err = a.m.driver.Reset(ctx, a.id)
	}
	if err != nil {
		return Change{}, err
	}
	return a.outcome(), nil
}

// DeleteVM ends the VM, whatever it does, gives its data disks free and removes
// it with its root disk. It cancels what is on its way for the VM.
func (m *Manager) DeleteVM(ctx context.Context, id string, match Match) error {
	check := func(ctx context.Context) (VM, error) {
		v, err := m.store.VM(ctx, id)
		if err == nil {
			err = match.check("VM "+id, Version{v.Seq, v.Revision})
		}
		return v, err
	}
	if _, err := check(ctx); err != nil { // before anything is cancelled for it
		return err
	}
	r, err := m.begin(ctx, change{
		kind: VMDelete, resources: []string{VMResource(id)}, timeout: deleteTimeout,
		claim: claim{preempt: true, patient: true},
		intent: func(ctx context.Context, _ *run) (Change, error) {
			v, err := m.store.VM(ctx, id) // what was cancelled has changed it
			if err != nil {
				return Change{}, err
			}
			from := v.State
			v.State, v.Reason, v.ReasonDetail, v.Desired = Stopping, ReasonRequested, "", DesiredStopped
			return Change{VM: &VMUpdate{From: from, VM: v}}, nil
		},
		act: func(ctx context.Context, r *run) (Change, error) {
			if err := m.driver.Shutdown(ctx, id, StopOptions{Force: true}, r.report); err != nil {
				return Change{}, err
			}
			if err := m.network.Disconnect(ctx, id); err != nil {
				return Change{}, err
			}
			return Change{}, m.removeVM(ctx, id, r)
		},
		truth: func(ctx context.Context) (Change, error) { return m.vmTruth(ctx, id) },
	})
	if err != nil {
		return err
	}
	_, err = r.wait(ctx)
	return err
}

// removeVM forgets a VM that has no process, then removes its files: a kill in
// between leaves files that the open operation accounts for, never a VM
// without its disk.
func (m *Manager) removeVM(ctx context.Context, id string, r *run) error {
	disks, err := m.store.Disks(ctx, DiskFilter{VMID: id}, Page{})
	if err != nil {
		return err
	}
	gone := Change{DeleteVM: id}
	for _, d := range disks {
		gone.Disks = append(gone.Disks, release(d))
	}
	r.mu.Lock()
	r.op.Step = "remove-files"
	r.mu.Unlock()
	op := r.snapshot()
	gone.Operation = &op
	if err := m.apply(ctx, gone); err != nil {
		return err
	}
	failpoint.Hit("vm.delete.row-gone")
	return m.driver.DeleteVM(ctx, id)
}

// refusal says why op is not allowed on v now.
func refusal(v VM, op Op) *Fault {
	f := &Fault{Code: CodeState}
	switch {
	case op == OpStart:
		f.Detail = fmt.Sprintf("VM %s is already running", v.ID)
		if v.State != Running {
			f.Detail += fmt.Sprintf(" (it is %s)", v.State)
		}
	case op == OpPause && v.State == Paused:
		f.Detail = fmt.Sprintf("VM %s is already paused", v.ID)
	case op == OpResume && v.State == Running:
		f.Detail = fmt.Sprintf("VM %s is not paused: it is already running", v.ID)
	default:
		f.Detail = fmt.Sprintf("VM %s is not running (it is %s)", v.ID, v.State)
	}
	switch {
	case op == OpStart && v.State == Paused:
		f.Hint = "resume it"
	case v.State == Stopped || v.State == Errored:
		f.Hint = "start it first"
	}
	return f
}

// randomWord returns n random characters that a person can read out.
func randomWord(n int) string {
	return strings.ToLower(rand.Text()[:n])
}
