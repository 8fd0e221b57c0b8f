package manager

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"vmand/vm"
)

// Guests talks to the guests of running VMs through their agents. It takes no lock, since
// every call to a guest handles the end of the VM.
type Guests struct {
	*Engine
	saving sync.Mutex // held while marks are recorded; locked before mu

	// mu of the engine guards the following fields.
	marks   map[string]vm.Boot   // not recorded yet, by VM id
	marking bool                 // a goroutine will record the marks
	asked   map[string]time.Time // time of the last request for addresses, by VM id
	clocks  map[string]int       // requests to check the clock, by VM id; none while nobody checks it
}

// Agent returns the known state of a VM's guest agent, without a request to it.
func (s *Guests) Agent(id string) vm.Agent { return s.driver.Agent(id) }

// Info asks the guest of a VM about itself.
func (s *Guests) Info(ctx context.Context, id string) (vm.GuestInfo, error) {
	if err := s.check(ctx, id); err != nil {
		return vm.GuestInfo{}, err
	}
	return s.driver.GuestInfo(ctx, id)
}

// Exec runs a program in the guest of a VM. An event names the caller and the program.
func (s *Guests) Exec(ctx context.Context, id string, c vm.GuestCommand) (vm.GuestResult, error) {
	if err := c.Check(); err != nil {
		return vm.GuestResult{}, err
	}
	if err := s.announce(ctx, id, "exec", "program", c.Path); err != nil {
		return vm.GuestResult{}, err
	}
	return s.driver.Exec(ctx, id, c)
}

// ReadFile copies a file of a VM's guest to w. A file larger than [vm.MaxGuestFile] fails
// with [vm.CodeInvalid] after vm.MaxGuestFile bytes.
func (s *Guests) ReadFile(ctx context.Context, id, path string, w io.Writer) error {
	if err := s.check(ctx, id); err != nil {
		return err
	}
	return s.driver.ReadFile(ctx, id, path, w, vm.MaxGuestFile)
}

// WriteFile writes r to a file of a VM's guest. An event names the caller and the path.
func (s *Guests) WriteFile(ctx context.Context, id, path string, r io.Reader) error {
	if err := s.announce(ctx, id, "write-file", "path", path); err != nil {
		return err
	}
	return s.driver.WriteFile(ctx, id, path, r)
}

// SetPassword sets the password of a user of a VM's guest. An event names the caller and
// the user.
func (s *Guests) SetPassword(ctx context.Context, id, user, password string) error {
	if err := s.announce(ctx, id, "set-password", "user", user); err != nil {
		return err
	}
	return s.driver.SetPassword(ctx, id, user, password)
}

// Trim has the guest of a VM discard the unused blocks of its file systems. An event names
// the caller.
func (s *Guests) Trim(ctx context.Context, id string) error {
	if err := s.announce(ctx, id, "trim", "", ""); err != nil {
		return err
	}
	return s.driver.Trim(ctx, id)
}

// check fails with [vm.CodeState] if the VM has no guest that could answer.
func (s *Guests) check(ctx context.Context, id string) error {
	v, err := s.store.VM(ctx, id)
	if err != nil {
		return err
	}
	if v.State != vm.Running {
		return &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("VM %s is not running: it is %s", id, v.State)}
	}
	return nil
}

// announce records which caller is about to do what in a guest, without secrets: the action
// leaves no other trace. If it cannot be recorded, the caller must not act.
func (s *Guests) announce(ctx context.Context, id, action, name, value string) error {
	if err := s.check(ctx, id); err != nil {
		return err
	}
	data := map[string]any{"action": action, "requested_by": vm.CallerOf(ctx).Name}
	if name != "" {
		data[name] = value
	}
	return s.Tell(ctx, vm.NewEvent("vm.guest", vm.VMResource(id), data))
}
