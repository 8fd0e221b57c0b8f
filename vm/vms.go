package vm

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Deadlines of what is done to a VM.
const (
	createTimeout = 24 * time.Hour // it may have to copy an image
	startTimeout  = 2 * time.Minute
	stopSlack     = time.Minute // beyond the guest's own time: the rungs that force it
	pauseTimeout  = 30 * time.Second
	deleteTimeout = 2 * time.Minute
)

// A NewVM is what is asked of a VM to make.
type NewVM struct {
	ID          string // empty: one is made up
	Template    string
	Image       string // that its root disk is made of; empty: the daemon's boot image, or none
	FullClone   bool   // the root disk is a copy of the image, and no overlay of it
	RootSizeMiB int64  // 0: the size of the image, or [DefaultMiB] without one
	VMEdits     VMEdits
	NICs        *[]NewNIC // nil: one on the default network
	CDROMs      []NewCDROM
	CloudInit   *CloudInit // nil: the guest gets no seed
}

// CreateVM makes a stopped VM with its root disk and returns it. Nothing of it
// can be seen before it is complete.
func (m *Manager) CreateVM(ctx context.Context, n NewVM) (VM, error) {
	if n.ID == "" {
		n.ID = "vm-" + randomWord(8)
	}
	if !ValidName(n.ID) {
		return VM{}, invalidField("/name", "must be 1 to 63 of a-z, 0-9 and '-', and begin and end with a letter or a digit")
	}
	v := VM{ID: n.ID, UUID: uuid.NewString(), State: Stopped, Reason: ReasonCreated, Desired: DesiredStopped, Restart: RestartNever}
	if err := n.VMEdits.apply(&v); err != nil {
		return VM{}, err
	}
	if n.CloudInit != nil {
		if err := n.CloudInit.check("/cloud_init"); err != nil {
			return VM{}, err
		}
	}
	var media media
	made := false
	r, err := m.begin(ctx, change{
		kind: VMCreate, resources: []string{VMResource(n.ID)}, timeout: createTimeout,
		after: func() { m.release(v.NICs); m.letGo(media.held) },
		intent: func(ctx context.Context, _ *run) (_ Change, err error) {
			v.Template, err = m.templateForVM(ctx, n.Template)
			if err != nil {
				return Change{}, err
			}
			if err := m.checkNew(ctx, n.ID); err != nil {
				return Change{}, err
			}
			if err := m.placeMedia(ctx, &v, n, &media); err != nil {
				return Change{}, err
			}
			return Change{}, m.placeNICs(ctx, &v, n.NICs)
		},
		act: func(ctx context.Context, r *run) (Change, error) {
			if err := m.driver.CreateVM(ctx, v.ID, v.Root, media.from, r.progress); err != nil {
				return Change{}, err
			}
			made = true
			v.CreatedAt = now()
			c := Change{NewVM: &v}
			if n.CloudInit != nil {
				c.Seed = &Seed{VMID: v.ID, CloudInit: *n.CloudInit}
			}
			return c, nil
		},
		truth: func(ctx context.Context) (Change, error) {
			if !made { // then the driver has undone its own
				return Change{}, nil
			}
			// The row may be there although recording it has failed: a commit
			// can be done and its answer lost.
			if recorded, err := m.recorded(ctx, VMResource(v.ID)); recorded || err != nil {
				return Change{}, err
			}
			return Change{}, m.driver.DeleteVM(ctx, v.ID)
		},
	})
	if err != nil {
		return VM{}, err
	}
	if _, err := r.wait(ctx); err != nil {
		return VM{}, err
	}
	return m.store.VM(ctx, v.ID)
}

// media is what a new VM's disk and drives are made of, besides what is recorded.
type media struct {
	held []Image // which are not to be deleted meanwhile
	from *CopySource
}

// placeMedia gives v, which is new, its root disk and its drives. What it holds is
// in use also after an error.
func (m *Manager) placeMedia(ctx context.Context, v *VM, n NewVM, use *media) (err error) {
	if n.CloudInit != nil {
		v.CDROMs = append(v.CDROMs, CDROM{ID: SeedCDROM})
	}
	for i, w := range n.CDROMs {
		image, err := m.insert(ctx, v, w, fmt.Sprintf("/cdroms/%d", i))
		if image.SHA256 != "" {
			use.held = append(use.held, image)
		}
		if err != nil {
			return err
		}
	}
	if n.Image == "" {
		if n.FullClone {
			return invalidField("/full_clone", "needs an image to copy")
		}
		v.Root, err = m.bootDisk(n.RootSizeMiB)
		return err
	}
	image, err := m.holdImage(ctx, n.Image, "/image")
	if err != nil {
		return err
	}
	use.held = append(use.held, image)
	if v.Root, err = overlayOf(image, n.RootSizeMiB, "/root_disk_size", "/image"); err == nil && n.FullClone {
		use.from = &CopySource{File: v.Root}
		v.Root.Base, v.Root.BaseFormat = "", ""
	}
	return err
}

// bootDisk returns the root disk of a VM that is made of no image.
func (m *Manager) bootDisk(sizeMiB int64) (DiskFile, error) {
	root := m.o.Base
	if sizeMiB == 0 {
		root.SizeMiB = cmp.Or(root.SizeMiB, DefaultMiB)
		return root, nil
	}
	if err := checkSize(sizeMiB, "/root_disk_size"); err != nil {
		return root, err
	}
	if sizeMiB < root.SizeMiB {
		return root, invalidField("/root_disk_size", "must be at least %g GiB, the size of the default boot disk", float64(root.SizeMiB)/gibInMi)
	}
	root.SizeMiB = sizeMiB
	return root, nil
}

// templateForVM returns the template a VM is to be made of. That it is not
// there is a fault of the request and not of its path.
func (m *Manager) templateForVM(ctx context.Context, name string) (Template, error) {
	t, err := m.store.Template(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return t, invalidField("/template_name", "template %q not found", name)
	}
	return t, err
}

// checkNew makes sure that neither the records nor the host know a VM of this id.
func (m *Manager) checkNew(ctx context.Context, id string) error {
	_, err := m.store.VM(ctx, id)
	if err == nil {
		return &Fault{Code: CodeExists, Detail: fmt.Sprintf("VM %s already exists", id)}
	}
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	left, err := m.driver.HasVM(ctx, id)
	if err == nil && left {
		err = &Fault{Code: CodeExists, Detail: fmt.Sprintf("files of a VM %s already exist on this host, although there is no record of it", id),
			Hint: "take another name, or look at GET /observer/status and move the files away"}
	}
	return err
}

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
	FailPoint("network.connected")
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
	FailPoint("vm.restart.between")
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
	FailPoint("vm.delete.row-gone")
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
