package manager

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"vmand/failpoint"
	"vmand/vm"
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
// reset, and returns the VM as it is recorded meanwhile. Use [Operations.Wait] to
// learn how it ends. The options are for stop and restart.
func (s *VMs) Do(ctx context.Context, id string, op vm.Op, o vm.StopOptions) (vm.VM, vm.Operation, error) {
	return s.do(ctx, &action{m: s, id: id, op: op, stop: o})
}

func (s *VMs) do(ctx context.Context, a *action) (vm.VM, vm.Operation, error) {
	id, op, o := a.id, a.op, a.stop
	timeout, act := pauseTimeout, a.guest
	switch op {
	case vm.OpStart:
		timeout, act = startTimeout, a.start
	case vm.OpStop:
		timeout, act = o.Timeout+stopSlack, a.halt
	case vm.OpRestart:
		timeout, act = o.Timeout+stopSlack+startTimeout, a.restart
	case vm.OpPause, vm.OpResume, vm.OpReset:
	default:
		return vm.VM{}, vm.Operation{}, fmt.Errorf("no such action: %q", op)
	}
	forced := op == vm.OpStop && o.Force
	r, err := s.begin(ctx, change{
		kind: vm.Kind("vm." + string(op)), resources: []string{vm.VMResource(id)}, timeout: timeout,
		claim: claim{preempt: forced}, preemptible: !forced,
		intent: a.intent, act: act,
		truth: func(ctx context.Context) (vm.Change, error) { return s.truth(ctx, id) },
	})
	if err != nil {
		return vm.VM{}, vm.Operation{}, err
	}
	return a.told, r.snapshot(), nil
}

// An action is one operation of [VMs.Do] on its way.
type action struct {
	m    *VMs
	id   string
	op   vm.Op
	stop vm.StopOptions
	auto bool  // a restart by policy
	told vm.VM // as recorded meanwhile, for the caller
	v    vm.VM // as it is to be recorded
	to   vm.State
}

func (a *action) intent(ctx context.Context, r *run) (vm.Change, error) {
	v, err := a.m.settled(ctx, a.id)
	if err != nil {
		return vm.Change{}, err
	}
	if a.auto && (!vm.WantsRestart(v) || v.RestartAt.IsZero() || v.RestartAt.After(now())) {
		return vm.Change{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("no restart of VM %s is due", v.ID)}
	}
	from := v.State
	via, to, ok := from.Begin(a.op)
	if r.preempted && from == vm.Stopped { // what it cancelled was a start: the stop has done its work
		via, to, ok = vm.Stopped, vm.Stopped, true
	}
	if a.op == vm.OpRestart && !ok && v.Desired == vm.DesiredRunning { // a restart cut short can be repeated
		via, to, ok = vm.Stopping, vm.Running, true
	}
	if !ok {
		return vm.Change{}, refusal(v, a.op)
	}
	if a.op == vm.OpStart {
		if err := a.m.admit(ctx, &v); err != nil {
			return vm.Change{}, err
		}
	}
	a.to = to
	v.State = via
	if via != from {
		v.Reason, v.ReasonDetail = vm.ReasonRequested, ""
	}
	a.wish(&v)
	a.v, a.told = v, v
	a.told.Revision++ // as the store will
	c := vm.Change{VM: &vm.VMUpdate{From: from, VM: v}}
	if a.op == vm.OpStart {
		c.Learned = []vm.Learned{{VMID: v.ID, Reset: true}}
		if v.Boot != (vm.Boot{}) || len(v.Learned) > 0 {
			a.told.Revision++
		}
		a.told.Boot, a.told.Learned = vm.Boot{}, nil
	}
	return c, nil
}

// wish records what the operation says about the VM's future.
func (a *action) wish(v *vm.VM) {
	if a.auto {
		v.Restarts++
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

// admit completes v with what it will run on and makes sure that it can.
func (s *VMs) admit(ctx context.Context, v *vm.VM) error {
	p, err := s.driver.Platform(ctx)
	if err != nil {
		return err
	}
	v.Machine = cmp.Or(v.Machine, p.Machine)
	v.Accel = p.Accel
	for _, n := range v.NICs {
		if err := s.network.Check(n.Mode); err != nil {
			return err
		}
	}
	spec, err := s.spec(ctx, *v)
	if err != nil {
		return err
	}
	return s.driver.Admit(ctx, spec)
}

// spec returns what the driver needs to start v, but for its NICs.
func (s *VMs) spec(ctx context.Context, v vm.VM) (vm.Spec, error) {
	disks, err := s.store.Disks(ctx, vm.DiskFilter{VMID: v.ID}, vm.Page{})
	if err != nil {
		return vm.Spec{}, err
	}
	for _, d := range disks {
		if d.State == vm.DiskError { // what the user gave the VM is not left out in silence
			return vm.Spec{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("disk %s of VM %s is in state error: %s", d.ID, v.ID, d.Reason),
				Hint: "detach it first, or bring its file back"}
		}
	}
	disks = slices.DeleteFunc(disks, func(d vm.Disk) bool { return d.State != vm.DiskAttached })
	slices.SortFunc(disks, func(a, b vm.Disk) int {
		i, _ := vm.Slot(a.MountPoint)
		j, _ := vm.Slot(b.MountPoint)
		return i - j
	})
	return vm.Spec{ID: v.ID, UUID: v.UUID, CPUCount: v.Template.CPUCount, RAMMiB: v.Template.RAMMiB,
		Machine: v.Machine, Accel: v.Accel, Root: v.Root, Disks: disks, CDROMs: v.CDROMs}, nil
}

// outcome returns the change that records a.v in the state it was to reach.
func (a *action) outcome() vm.Change {
	from := a.v.State
	a.v.State, a.v.Reason, a.v.ReasonDetail = a.to, vm.ReasonRequested, ""
	return vm.Change{VM: &vm.VMUpdate{From: from, VM: a.v}}
}

func (a *action) start(ctx context.Context, r *run) (vm.Change, error) {
	s, err := a.m.spec(ctx, a.v)
	if err != nil {
		return vm.Change{}, err
	}
	networks, err := a.m.Networks.of(ctx, a.v)
	if err != nil {
		return vm.Change{}, err
	}
	if err := a.m.CloudInits.writeSeed(ctx, a.v, networks); err != nil {
		return vm.Change{}, err
	}
	if s.Ports, err = a.m.network.Connect(ctx, a.v, a.v.NICs, networks); err != nil {
		return vm.Change{}, err
	}
	defer vm.ClosePorts(s.Ports)
	failpoint.Hit("network.connected")
	if err := a.m.driver.Start(ctx, s, r.report); err != nil {
		return vm.Change{}, err
	}
	a.v.StartedAt = now()
	c := a.outcome()
	c.Learned = []vm.Learned{{VMID: a.id, Boot: bootOf(r.snapshot().Log)}}
	return c, nil
}

// bootOf returns the times of a start's own steps.
func bootOf(log []vm.LogLine) (b vm.Boot) {
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

func (a *action) halt(ctx context.Context, r *run) (vm.Change, error) {
	if err := a.m.driver.Shutdown(ctx, a.id, a.stop, r.report); err != nil {
		return vm.Change{}, err
	}
	a.v.NICs, _ = vm.SettleNICs(a.v.NICs, vm.Observation{})
	out := a.outcome()
	var err error
	out.Disks, err = a.m.Disks.unplugged(ctx, a.id)
	if err != nil {
		return vm.Change{}, err
	}
	return out, a.m.network.Disconnect(ctx, a.id)
}

// restart is a stop and a start in one operation: the VM gets a new QEMU, and
// with it what only a new one can have.
func (a *action) restart(ctx context.Context, r *run) (vm.Change, error) {
	final := a.to
	a.to = vm.Starting
	between, err := a.halt(ctx, r)
	if err != nil {
		return vm.Change{}, err
	}
	between.Learned = []vm.Learned{{VMID: a.id, Reset: true}}
	if err := a.m.apply(ctx, between); err != nil {
		return vm.Change{}, err
	}
	failpoint.Hit("vm.restart.between")
	if err := a.m.admit(ctx, &a.v); err != nil {
		return vm.Change{}, err
	}
	a.to = final
	return a.start(ctx, r)
}

// guest does what only changes what the guest does.
func (a *action) guest(ctx context.Context, _ *run) (vm.Change, error) {
	var err error
	switch a.op {
	case vm.OpPause:
		err = a.m.driver.Pause(ctx, a.id)
	case vm.OpResume:
		err = a.m.driver.Resume(ctx, a.id)
	case vm.OpReset:
		err = a.m.driver.Reset(ctx, a.id)
	}
	if err != nil {
		return vm.Change{}, err
	}
	return a.outcome(), nil
}

// Delete ends the VM, whatever it does, gives its data disks free and removes
// it with its root disk. It cancels what is on its way for the VM.
func (s *VMs) Delete(ctx context.Context, id string, match vm.Match) error {
	check := func(ctx context.Context) (vm.VM, error) {
		v, err := s.store.VM(ctx, id)
		if err == nil {
			err = match.Check("VM "+id, v.Version())
		}
		return v, err
	}
	if _, err := check(ctx); err != nil { // before anything is cancelled for it
		return err
	}
	r, err := s.begin(ctx, change{
		kind: vm.VMDelete, resources: []string{vm.VMResource(id)}, timeout: deleteTimeout,
		claim: claim{preempt: true, patient: true},
		intent: func(ctx context.Context, _ *run) (vm.Change, error) {
			v, err := s.store.VM(ctx, id) // what was cancelled has changed it
			if err != nil {
				return vm.Change{}, err
			}
			from := v.State
			v.State, v.Reason, v.ReasonDetail, v.Desired = vm.Stopping, vm.ReasonRequested, "", vm.DesiredStopped
			return vm.Change{VM: &vm.VMUpdate{From: from, VM: v}}, nil
		},
		act: func(ctx context.Context, r *run) (vm.Change, error) {
			if err := s.driver.Shutdown(ctx, id, vm.StopOptions{Force: true}, r.report); err != nil {
				return vm.Change{}, err
			}
			if err := s.network.Disconnect(ctx, id); err != nil {
				return vm.Change{}, err
			}
			return vm.Change{}, s.remove(ctx, id, r)
		},
		truth: func(ctx context.Context) (vm.Change, error) { return s.truth(ctx, id) },
	})
	if err != nil {
		return err
	}
	_, err = r.wait(ctx)
	return err
}

// remove forgets a VM that has no process, then removes its files: a kill in
// between leaves files that the open operation accounts for, never a VM
// without its disk.
func (s *VMs) remove(ctx context.Context, id string, r *run) error {
	disks, err := s.store.Disks(ctx, vm.DiskFilter{VMID: id}, vm.Page{})
	if err != nil {
		return err
	}
	gone := vm.Change{DeleteVM: id}
	for _, d := range disks {
		gone.Disks = append(gone.Disks, vm.Release(d))
	}
	r.mu.Lock()
	r.op.Step = "remove-files"
	r.mu.Unlock()
	op := r.snapshot()
	gone.Operation = &op
	if err := s.apply(ctx, gone); err != nil {
		return err
	}
	failpoint.Hit("vm.delete.row-gone")
	return s.driver.DeleteVM(ctx, id)
}

// refusal says why op is not allowed on v now.
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

// randomWord returns n random characters that a person can read out.
func randomWord(n int) string {
	return strings.ToLower(rand.Text()[:n])
}
