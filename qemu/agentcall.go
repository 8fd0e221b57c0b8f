package qemu

import (
	"context"
	"errors"
	"io"
	"time"

	"vmand/qemu/qga"
	"vmand/vm"
)

const (
	// fileTimeout bounds the copying of a file to or from a guest.
	fileTimeout = 10 * time.Minute
	// freezeTimeout bounds the freezing of a guest.
	freezeTimeout = 20 * time.Second
)

var _ vm.Guests = (*Driver)(nil)

// Agent implements [vm.Guests].
func (d *Driver) Agent(id string) vm.Agent {
	known, ok := d.known.Load(id)
	if !ok {
		return vm.Agent{State: vm.AgentAbsent}
	}
	s := known.(*session)
	if s.proc.Exited() {
		return vm.Agent{State: vm.AgentAbsent}
	}
	return s.agent.known()
}

// reachable returns the agent of a VM. It fails if no program in the guest has the
// agent's port open. It waits for the first contact with a QEMU that was just found.
func (d *Driver) reachable(ctx context.Context, id string) (*agent, error) {
	s, err := d.live(id)
	if err != nil {
		return nil, err
	}
	a := s.agent
	if !s.proc.IsChild() {
		a.awaitContact(ctx)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open {
		return a, nil
	}
	f := fault(vm.CodeAgentUnavailable, nil, "no guest agent runs in VM %s", id)
	f.Hint = "install qemu-guest-agent in the guest and start it there"
	if !a.hasPort {
		f.Hint = "QEMU has not reported yet whether there is one; if that stays so, the VM was started by a vmand " +
			"without guest agents: restart it"
	}
	return nil, f
}

// isRefusal reports whether err is an error that the agent, or a program, reported.
func isRefusal(err error) bool {
	var refused *qga.Error
	return errors.As(err, &refused)
}

// done records the outcome of a question to the agent, and gives an error its
// class.
func (a *agent) done(err error) error {
	if err == nil {
		return nil
	}
	var known *vm.Fault
	var refused *qga.Error
	id := a.session.id
	silent := func(what string) error {
		f := fault(vm.CodeAgentUnavailable, err, "the guest agent of VM %s %s", id, what)
		f.Hint = "check that the guest runs and is not overloaded, and restart qemu-guest-agent in it"
		return f
	}
	switch {
	case errors.As(err, &known):
		return err
	case errors.As(err, &refused):
		return fault(vm.CodeGuestRefused, nil, "the guest agent of VM %s refuses: %s", id, refused)
	case isLost(err):
		a.mu.Lock()
		a.lose(false)
		a.mu.Unlock()
		a.poke()
		return silent("does not answer")
	case a.session.proc.Exited():
		return fault(vm.CodeState, err, "VM %s does not run", id)
	case errors.Is(err, qga.ErrBusy), errors.Is(err, context.DeadlineExceeded):
		return silent("has not answered in time")
	case errors.Is(err, context.Canceled):
		return fault(vm.CodeCancelled, err, "the question to the guest agent of VM %s was cancelled", id)
	}
	return fault(vm.CodeUnavailable, err, "talk to the guest agent of VM %s", id)
}

// GuestInfo implements [vm.Guests]. Parts that the agent refuses to report stay
// empty; it fails if the agent refuses all.
func (d *Driver) GuestInfo(ctx context.Context, id string) (vm.GuestInfo, error) {
	a, err := d.reachable(ctx, id)
	if err != nil {
		return vm.GuestInfo{}, err
	}
	var g vm.GuestInfo
	questions := []func() error{
		func() (err error) {
			g.Hostname, err = a.client.Hostname(ctx)
			return err
		},
		func() error {
			os, err := a.client.OS(ctx)
			g.OS = vm.GuestOS(os)
			return err
		},
		func() error {
			all, err := a.client.Interfaces(ctx)
			for _, i := range all {
				g.Interfaces = append(g.Interfaces, vm.GuestInterface(i))
			}
			return err
		},
		func() error {
			all, err := a.client.Filesystems(ctx)
			for _, f := range all {
				g.Filesystems = append(g.Filesystems, filesystem(f))
			}
			return err
		},
	}
	var refusal error
	answered := false
	for _, question := range questions {
		err := question()
		switch {
		case err == nil:
			answered = true
		case isRefusal(err):
			refusal = err
		default:
			return vm.GuestInfo{}, a.done(err)
		}
	}
	if !answered {
		return vm.GuestInfo{}, a.done(refusal)
	}
	return g, nil
}

// Exec implements [vm.Guests].
func (d *Driver) Exec(ctx context.Context, id string, c vm.GuestCommand) (vm.GuestResult, error) {
	if len(c.Stdin) > vm.MaxGuestStdin {
		return vm.GuestResult{}, fault(vm.CodeInvalid, nil, "the standard input has %d bytes, the limit is %d",
			len(c.Stdin), vm.MaxGuestStdin)
	}
	a, err := d.reachable(ctx, id)
	if err != nil {
		return vm.GuestResult{}, err
	}
	r, err := a.client.Exec(ctx, qga.Program{Path: c.Path, Args: c.Args, Env: c.Env, Stdin: c.Stdin}, c.Timeout)
	if err != nil {
		return vm.GuestResult{}, a.done(err)
	}
	result := vm.GuestResult(r)
	for _, out := range []*[]byte{&result.Stdout, &result.Stderr} {
		if len(*out) > vm.MaxGuestOutput {
			*out, result.Truncated = (*out)[:vm.MaxGuestOutput], true
		}
	}
	return result, nil
}

// ReadFile implements [vm.Guests].
func (d *Driver) ReadFile(ctx context.Context, id, path string, w io.Writer, limit int64) error {
	a, err := d.reachable(ctx, id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fileTimeout)
	defer cancel()
	return a.copied(id, path, limit, a.client.ReadFile(ctx, path, w, limit))
}

// WriteFile implements [vm.Guests]. When it fails, the file may hold a part of r.
func (d *Driver) WriteFile(ctx context.Context, id, path string, r io.Reader) error {
	a, err := d.reachable(ctx, id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fileTimeout)
	defer cancel()
	return a.copied(id, path, vm.MaxGuestFile, a.client.WriteFile(ctx, path, r, vm.MaxGuestFile))
}

// copied records the outcome of copying a file, and gives an error its class.
func (a *agent) copied(id, path string, limit int64, err error) error {
	if errors.Is(err, qga.ErrTooLarge) {
		return fault(vm.CodeInvalid, err, "file %q of VM %s has more than %d bytes", path, id, limit)
	}
	return a.done(err)
}

// SetPassword implements [vm.Guests].
func (d *Driver) SetPassword(ctx context.Context, id, user, password string) error {
	a, err := d.reachable(ctx, id)
	if err != nil {
		return err
	}
	return a.done(a.client.SetPassword(ctx, user, password))
}

// Trim implements [vm.Guests].
func (d *Driver) Trim(ctx context.Context, id string) error {
	a, err := d.reachable(ctx, id)
	if err != nil {
		return err
	}
	return a.done(a.client.Trim(ctx))
}

// Freeze implements [vm.Guests]. The file systems thaw by themselves after
// [freezeLease] and when vmand stops. If vmand is killed, the next vmand thaws
// them as soon as it finds the VM.
func (d *Driver) Freeze(ctx context.Context, id string, mountPoints ...string) (int, error) {
	a, err := d.reachable(ctx, id)
	if err != nil {
		return 0, err
	}
	a.mu.Lock()
	if a.frozen || due(a.thawAt) {
		a.mu.Unlock()
		return 0, fault(vm.CodeBusy, nil, "the file systems of VM %s are frozen already, or about to thaw", id)
	}
	a.frozen, a.thawAt = true, time.Now().Add(freezeTimeout+freezeLease)
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	n, err := a.client.Freeze(ctx, mountPoints...)
	a.mu.Lock()
	a.thawAt = time.Now()
	if err == nil {
		a.thawAt = a.thawAt.Add(freezeLease)
	}
	a.mu.Unlock()
	a.poke()
	return n, a.done(err)
}

// Thaw implements [vm.Guests]. It fails with [vm.CodeState] if the guest had thawed
// before: the caller's work was not done while the file systems were frozen.
func (d *Driver) Thaw(ctx context.Context, id string) error {
	a, err := d.reachable(ctx, id)
	if err != nil {
		return err
	}
	n, err := a.client.Thaw(ctx)
	if err != nil {
		return a.done(err)
	}
	a.mu.Lock()
	held := a.frozen
	a.frozen, a.thawAt = false, time.Time{}
	a.mu.Unlock()
	if !held {
		return fault(vm.CodeState, nil, "the file systems of VM %s had already thawed (%d thawed now)", id, n)
	}
	return nil
}
