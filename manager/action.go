package manager

import (
	"context"
	"fmt"
	"slices"
	"time"

	"vmand/failpoint"
	"vmand/vm"
)

// Deadlines of the operations on a VM.
const (
	startTimeout = 2 * time.Minute
	stopSlack    = time.Minute // beyond the guest's own time: to end QEMU by force
	pauseTimeout = 30 * time.Second
)

// The fail points in starting and ending a QEMU, and in connecting a NIC to its network.
var (
	connectPoints = []string{"tap.made", "tap.bridged", "rules.added", "network.connected"}
	startPoints   = slices.Concat([]string{"seed.written"}, connectPoints,
		[]string{"run.prepared", "qemu.spawned", "monitor.connected", "guest.continued"})
	stopPoints = []string{"stop.pressed", "stop.quit", "stop.exited", "run.removed"}
)

var vmStart = verb{
	kind: vm.VMStart, timeout: startTimeout, preemptible: true,
	cleanup: leavesNothing, reached: vmReaches(vm.Running), answer: vm.AnswerResource,
	points: startPoints,
}

// A forced stop is not preemptible and preempts: see [VMs.Do].
var vmStop = verb{
	kind: vm.VMStop, timeout: stopSlack, preemptible: true,
	cleanup: leavesNothing, reached: vmReaches(vm.Stopped), answer: vm.AnswerResource,
	points: stopPoints,
}

var vmRestart = verb{
	kind: vm.VMRestart, timeout: stopSlack + startTimeout, preemptible: true,
	cleanup: leavesNothing, reached: neverKnown, answer: vm.AnswerResource,
	points: slices.Concat(stopPoints, []string{"vm.restart.between"}, startPoints),
}

var vmPause = verb{
	kind: vm.VMPause, timeout: pauseTimeout, preemptible: true,
	cleanup: leavesNothing, reached: vmReaches(vm.Paused), answer: vm.AnswerResource,
}

var vmResume = verb{
	kind: vm.VMResume, timeout: pauseTimeout, preemptible: true,
	cleanup: leavesNothing, reached: vmReaches(vm.Running), answer: vm.AnswerResource,
}

var vmReset = verb{
	kind: vm.VMReset, timeout: pauseTimeout, preemptible: true,
	cleanup: leavesNothing, reached: neverKnown, answer: vm.AnswerResource,
	points: []string{"guest.reset"},
}

var vmNMI = verb{
	kind: vm.VMNMI, timeout: pauseTimeout, preemptible: true,
	cleanup: leavesNothing, reached: neverKnown, answer: vm.AnswerResource,
}

// runVerbs are the verbs of what [VMs.Do] can do.
var runVerbs = map[vm.Op]*verb{
	vm.OpStart: &vmStart, vm.OpStop: &vmStop, vm.OpRestart: &vmRestart,
	vm.OpPause: &vmPause, vm.OpResume: &vmResume, vm.OpReset: &vmReset, vm.OpNMI: &vmNMI,
}

// Do begins an operation on a VM (start, stop, restart, pause, resume, reset or nmi) and
// returns the VM with its transitional state. [Operations.Wait] returns the outcome. The
// options are for stop and restart. A forced stop cancels any preemptible operation.
func (s *VMs) Do(ctx context.Context, id string, op vm.Op, o vm.StopOptions) (vm.VM, vm.Operation, error) {
	return s.do(ctx, &powerAction{s: s, id: id, op: op, stop: o})
}

func (s *VMs) do(ctx context.Context, a *powerAction) (vm.VM, vm.Operation, error) {
	v := runVerbs[a.op]
	if v == nil {
		return vm.VM{}, vm.Operation{}, fmt.Errorf("no such action: %q", a.op)
	}
	q := v.request(a, vm.VMResource(a.id))
	if a.op == vm.OpStop || a.op == vm.OpRestart {
		v, err := s.store.VM(ctx, a.id) // also before anything is cancelled for it
		if err != nil {
			return vm.VM{}, vm.Operation{}, err
		}
		a.stop = v.Resolve(a.stop)
		q.timeout += a.stop.Timeout
	}
	if a.op == vm.OpStop && a.stop.Force {
		q.claim.preempt, q.preemptible = true, false
	}
	r, err := s.unasked.begin(a, func() (*run, error) { return s.begin(ctx, q) })
	if err != nil {
		return vm.VM{}, vm.Operation{}, err
	}
	return *r.intended.VM, r.snapshot(), nil
}

// A powerAction is one operation of [VMs.Do].
type powerAction struct {
	s    *VMs
	id   string
	op   vm.Op
	stop vm.StopOptions
	auto bool  // a restart by policy
	boot bool  // a start with the host
	v    vm.VM // as it will be recorded
	to   vm.State
}

func (a *powerAction) intent(ctx context.Context, r *run) (vm.Change, error) {
	v, err := a.s.settled(ctx, a.id)
	if err != nil {
		return vm.Change{}, err
	}
	if a.auto && (!v.WantsRestart() || v.RestartAt.IsZero() || v.RestartAt.After(now())) {
		return vm.Change{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("no restart of VM %s is due", v.ID)}
	}
	from := v.State
	via, to, ok := from.Begin(a.op)
	switch {
	case r.preempted && from == vm.Stopped: // the stop cancelled a start: nothing is left to do
		via, to, ok = vm.Stopped, vm.Stopped, true
	case a.op == vm.OpRestart && !ok && v.Desired == vm.DesiredRunning: // the repetition of an interrupted restart
		via, to, ok = vm.Stopping, vm.Running, true
	}
	if !ok {
		return vm.Change{}, refusal(v, a.op)
	}
	if a.op == vm.OpStart {
		if err := a.s.admit(ctx, &v); err != nil {
			return vm.Change{}, err
		}
	}
	a.to = to
	v.State = via
	if via != from {
		v.Reason, v.ReasonDetail = a.reason(), ""
	}
	a.recordDesired(&v)
	a.v = v
	c := vm.Change{VM: &vm.VMUpdate{From: from, VM: v}}
	if a.op == vm.OpStart {
		c.Learned = []vm.Learned{{VMID: v.ID, Reset: true}}
	}
	return c, nil
}

// reason returns the reason of the states that the operation brings about.
func (a *powerAction) reason() vm.Reason {
	if a.stop.HostShutdown {
		return vm.ReasonHostShutdown
	}
	return vm.ReasonRequested
}

// recordDesired sets the desired state and the restart fields that the operation implies.
func (a *powerAction) recordDesired(v *vm.VM) {
	if a.auto {
		v.Restarts++
		v.RestartAt = time.Time{}
		return
	}
	if a.stop.HostShutdown { // the desired state is the one for the next boot
		v.RestartAt = time.Time{}
		return
	}
	switch a.op {
	case vm.OpStart, vm.OpRestart:
		v.Desired = vm.DesiredRunning
	case vm.OpStop:
		v.Desired = vm.DesiredStopped
	default:
		return
	}
	v.Restarts, v.RestartAt = 0, time.Time{}
}

func (a *powerAction) act(ctx context.Context, r *run) (vm.Change, error) {
	switch a.op {
	case vm.OpStart:
		return a.start(ctx, r)
	case vm.OpStop:
		return a.halt(ctx, r)
	case vm.OpRestart:
		return a.restart(ctx, r)
	}
	return a.control(ctx)
}

func (a *powerAction) truth(ctx context.Context) (vm.Change, error) { return a.s.truth(ctx, a.id) }

// outcome returns the change that records a.v in the state it was to reach.
func (a *powerAction) outcome() vm.Change {
	from := a.v.State
	a.v.State, a.v.Reason, a.v.ReasonDetail = a.to, a.reason(), ""
	return vm.Change{VM: &vm.VMUpdate{From: from, VM: a.v}}
}

func (a *powerAction) start(ctx context.Context, r *run) (vm.Change, error) {
	s := a.s
	spec, err := s.spec(ctx, a.v)
	if err != nil {
		return vm.Change{}, err
	}
	networks, err := s.Networks.of(ctx, a.v)
	if err != nil {
		return vm.Change{}, err
	}
	if err := s.CloudInits.writeSeed(ctx, a.v, networks); err != nil {
		return vm.Change{}, err
	}
	if spec.Ports, err = s.network.Connect(ctx, a.v, a.v.NICs, networks); err != nil {
		return vm.Change{}, err
	}
	defer vm.ClosePorts(spec.Ports)
	failpoint.Hit("network.connected")
	boot, err := s.driver.Start(ctx, spec, r.report)
	if err != nil {
		return vm.Change{}, err
	}
	a.v.StartedAt = now()
	c := a.outcome()
	c.Learned = []vm.Learned{{VMID: a.id, Boot: boot}}
	return c, nil
}

func (a *powerAction) halt(ctx context.Context, r *run) (vm.Change, error) {
	if err := a.s.driver.Shutdown(ctx, a.id, a.stop, r.report); err != nil {
		return vm.Change{}, err
	}
	a.v.NICs, _ = vm.SettleNICs(a.v.NICs, vm.Observation{})
	c := a.outcome()
	var err error
	if c.Disks, err = a.s.Disks.unplugged(ctx, a.id); err != nil {
		return vm.Change{}, err
	}
	return c, a.s.network.Disconnect(ctx, a.id)
}

// restart is a stop and a start in one operation: the VM gets a new QEMU, and with it
// everything that only a new one can have.
func (a *powerAction) restart(ctx context.Context, r *run) (vm.Change, error) {
	final := a.to
	a.to = vm.Starting
	between, err := a.halt(ctx, r)
	if err != nil {
		return vm.Change{}, err
	}
	between.Learned = []vm.Learned{{VMID: a.id, Reset: true}}
	if err := a.s.apply(ctx, between); err != nil {
		return vm.Change{}, err
	}
	failpoint.Hit("vm.restart.between")
	if err := a.s.admit(ctx, &a.v); err != nil {
		return vm.Change{}, err
	}
	a.to = final
	return a.start(ctx, r)
}

// control pauses, resumes, resets or interrupts a running guest.
func (a *powerAction) control(ctx context.Context) (vm.Change, error) {
	if err := a.s.driver.Control(ctx, a.id, a.op); err != nil {
		return vm.Change{}, err
	}
	return a.outcome(), nil
}

// refusal returns the fault of an operation that the state of v does not allow.
func refusal(v vm.VM, op vm.Op) *vm.Fault {
	f := &vm.Fault{Code: vm.CodeState}
	switch {
	case op == vm.OpStart:
		f.Detail = fmt.Sprintf("VM %s is already running", v.ID)
		if v.State != vm.Running {
			f.Detail += fmt.Sprintf(" (it is %s)", v.State)
		}
	case op == vm.OpPause && v.State == vm.Paused:
		f.Detail = fmt.Sprintf("VM %s is already paused", v.ID)
	case op == vm.OpResume && v.State == vm.Running:
		f.Detail = fmt.Sprintf("VM %s is not paused: it is already running", v.ID)
	default:
		f.Detail = fmt.Sprintf("VM %s is not running (it is %s)", v.ID, v.State)
	}
	switch {
	case op == vm.OpStart && v.State == vm.Paused:
		f.Hint = "resume it"
	case v.State == vm.Stopped || v.State == vm.Errored:
		f.Hint = "start it first"
	}
	return f
}
