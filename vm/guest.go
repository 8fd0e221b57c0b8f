package vm

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
)

// MaxGuestTimeout is how long a program in a guest can be waited for.
const MaxGuestTimeout = 5 * time.Minute

// Agent says what is known of a VM's guest agent, without asking anybody.
func (m *Manager) Agent(id string) Agent { return m.driver.Agent(id) }

// GuestInfo asks the guest of a VM about itself.
func (m *Manager) GuestInfo(ctx context.Context, id string) (GuestInfo, error) {
	if err := m.hasGuest(ctx, id); err != nil {
		return GuestInfo{}, err
	}
	return m.driver.GuestInfo(ctx, id)
}

// Exec runs a program in the guest of a VM, and says by an event who had which
// one run.
func (m *Manager) Exec(ctx context.Context, id string, c GuestCommand) (GuestResult, error) {
	if err := c.check(); err != nil {
		return GuestResult{}, err
	}
	if err := m.enterGuest(ctx, id, "exec", "program", c.Path); err != nil {
		return GuestResult{}, err
	}
	return m.driver.Exec(ctx, id, c)
}

// check finds what no guest could be asked for.
func (c *GuestCommand) check() error {
	if c.Path == "" {
		return invalidField("/command/0", "must not be empty")
	}
	for _, v := range c.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" || strings.ContainsFunc(name, unicode.IsControl) {
			return invalidField("/env", "has a name that is empty or has a '=' or a control character in it")
		}
	}
	if len(c.Stdin) > MaxGuestStdin {
		return invalidField("/stdin", "must have at most %d bytes", MaxGuestStdin)
	}
	if c.Timeout <= 0 || c.Timeout > MaxGuestTimeout {
		return invalidField("/timeout_seconds", "must be 1 to %d", int(MaxGuestTimeout/time.Second))
	}
	return nil
}

// ReadFile copies a file of a VM's guest to w, at most [MaxGuestFile] of it: a
// larger one fails with [CodeInvalid] after that.
func (m *Manager) ReadFile(ctx context.Context, id, path string, w io.Writer) error {
	if err := m.hasGuest(ctx, id); err != nil {
		return err
	}
	return m.driver.ReadFile(ctx, id, path, w, MaxGuestFile)
}

// WriteFile makes a file of a VM's guest of what r has, and says by an event who
// did.
func (m *Manager) WriteFile(ctx context.Context, id, path string, r io.Reader) error {
	if err := m.enterGuest(ctx, id, "write-file", "path", path); err != nil {
		return err
	}
	return m.driver.WriteFile(ctx, id, path, r)
}

// SetPassword gives a user of a VM's guest another password, and says by an event
// who did.
func (m *Manager) SetPassword(ctx context.Context, id, user, password string) error {
	if err := m.enterGuest(ctx, id, "set-password", "user", user); err != nil {
		return err
	}
	return m.driver.SetPassword(ctx, id, user, password)
}

// Trim has the guest of a VM give back what its file systems do not use, and says
// by an event who wanted it.
func (m *Manager) Trim(ctx context.Context, id string) error {
	if err := m.enterGuest(ctx, id, "trim", "", ""); err != nil {
		return err
	}
	return m.driver.Trim(ctx, id)
}

// hasGuest reports whether there is a guest that could answer. It takes no lock:
// that the VM ends in the next moment is what every call to a guest is ready for.
func (m *Manager) hasGuest(ctx context.Context, id string) error {
	v, err := m.store.VM(ctx, id)
	if err != nil {
		return err
	}
	if v.State != Running {
		return &Fault{Code: CodeState, Detail: fmt.Sprintf("VM %s is not running: it is %s", id, v.State)}
	}
	return nil
}

// enterGuest records who is about to do what in a guest, without any secret: what
// was done in a guest leaves no other trace. What cannot be recorded is not done.
func (m *Manager) enterGuest(ctx context.Context, id, action, name, value string) error {
	if err := m.hasGuest(ctx, id); err != nil {
		return err
	}
	data := map[string]any{"action": action, "requested_by": CallerOf(ctx).Name}
	if name != "" {
		data[name] = value
	}
	return m.Tell(ctx, NewEvent("vm.guest", VMResource(id), data))
}

// maxGuestWords is how many characters of what a guest says are told.
const maxGuestWords = 500

// printable returns what a guest says as one line of at most maxGuestWords
// characters that all show.
func printable(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)), " ")
	if all := []rune(s); len(all) > maxGuestWords {
		s = string(all[:maxGuestWords-1]) + "…"
	}
	return s
}
