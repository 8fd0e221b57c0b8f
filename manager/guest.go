package manager

import (
	"context"
	"fmt"
	"io"

	"vmand/vm"
)

// Agent says what is known of a VM's guest agent, without asking anybody.
func (s *Guests) Agent(id string) vm.Agent { return s.driver.Agent(id) }

// Info asks the guest of a VM about itself.
func (s *Guests) Info(ctx context.Context, id string) (vm.GuestInfo, error) {
	if err := s.hasGuest(ctx, id); err != nil {
		return vm.GuestInfo{}, err
	}
	return s.driver.GuestInfo(ctx, id)
}

// Exec runs a program in the guest of a VM, and says by an event who had which
// one run.
func (s *Guests) Exec(ctx context.Context, id string, c vm.GuestCommand) (vm.GuestResult, error) {
	if err := c.Check(); err != nil {
		return vm.GuestResult{}, err
	}
	if err := s.enterGuest(ctx, id, "exec", "program", c.Path); err != nil {
		return vm.GuestResult{}, err
	}
	return s.driver.Exec(ctx, id, c)
}

// ReadFile copies a file of a VM's guest to w, at most [MaxGuestFile] of it: a
// larger one fails with [CodeInvalid] after that.
func (s *Guests) ReadFile(ctx context.Context, id, path string, w io.Writer) error {
	if err := s.hasGuest(ctx, id); err != nil {
		return err
	}
	return s.driver.ReadFile(ctx, id, path, w, vm.MaxGuestFile)
}

// WriteFile makes a file of a VM's guest of what r has, and says by an event who
// did.
func (s *Guests) WriteFile(ctx context.Context, id, path string, r io.Reader) error {
	if err := s.enterGuest(ctx, id, "write-file", "path", path); err != nil {
		return err
	}
	return s.driver.WriteFile(ctx, id, path, r)
}

// SetPassword gives a user of a VM's guest another password, and says by an event
// who did.
func (s *Guests) SetPassword(ctx context.Context, id, user, password string) error {
	if err := s.enterGuest(ctx, id, "set-password", "user", user); err != nil {
		return err
	}
	return s.driver.SetPassword(ctx, id, user, password)
}

// Trim has the guest of a VM give back what its file systems do not use, and says
// by an event who wanted it.
func (s *Guests) Trim(ctx context.Context, id string) error {
	if err := s.enterGuest(ctx, id, "trim", "", ""); err != nil {
		return err
	}
	return s.driver.Trim(ctx, id)
}

// hasGuest reports whether there is a guest that could answer. It takes no lock:
// that the VM ends in the next moment is what every call to a guest is ready for.
func (s *Guests) hasGuest(ctx context.Context, id string) error {
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return err
	}
	if v.State != vm.Running {
		return &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("VM %s is not running: it is %s", id, v.State)}
	}
	return nil
}

// enterGuest records who is about to do what in a guest, without any secret: what
// was done in a guest leaves no other trace. What cannot be recorded is not done.
func (s *Guests) enterGuest(ctx context.Context, id, action, name, value string) error {
	if err := s.hasGuest(ctx, id); err != nil {
		return err
	}
	data := map[string]any{"action": action, "requested_by": vm.CallerOf(ctx).Name}
	if name != "" {
		data[name] = value
	}
	return s.Tell(ctx, vm.NewEvent("vm.guest", vm.VMResource(id), data))
}
