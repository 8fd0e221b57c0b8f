package qemu

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"vmand/qemu/qga"
	"vmand/qemu/qmp"
	"vmand/vm"
)

const (
	// pingInterval is how often an agent that nobody asks anything is asked
	// whether it is there. One that does not answer is asked again after
	// firstPing, then after twice that, up to pingInterval.
	pingInterval = 30 * time.Second
	firstPing    = time.Second

	// freezeLease is how long a guest's file systems stay frozen when nobody thaws
	// them: Windows allows no longer either.
	freezeLease = 10 * time.Second
	// lastThaw is how long vmand waits at its end for a frozen guest to thaw.
	lastThaw = 2 * time.Second
)

// agent is what a session knows of the agent in its guest. It learns from QEMU
// whether something in the guest has the agent's port open, and only then says
// anything: a guest without an agent costs nothing.
type agent struct {
	session *session
	client  *qga.Client
	wake    chan struct{} // takes one; has run look again

	mu      sync.Mutex // guards what follows; never held while blocking
	first   func()     // called at the first answer; nil if it is not wanted, or was called
	there   bool       // QEMU has a port for it
	open    bool       // something in the guest has it open
	opened  bool       // or had
	answers bool       // the last question was answered
	version string
	seen    time.Time     // of the last answer
	askAt   time.Time     // when it is to be asked whether it is there
	wait    time.Duration // between questions to a silent one
	frozen  bool          // by Freeze, and not thawed
	thawAt  time.Time     // when it is to be seen to that the guest is not frozen; zero if it is not
}

// newAgent returns the agent of a new session. It does not connect. first, if not
// nil, is called at the first answer.
func newAgent(s *session, first func()) *agent {
	a := &agent{session: s, wake: make(chan struct{}, 1), first: first}
	if !s.proc.IsChild() {
		a.thawAt = time.Now() // an earlier vmand may have frozen it and been killed
	}
	a.client = qga.NewClient(func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", s.layout.inRun(s.id, agentSuffix))
	}, a.heard)
	return a
}

// heard notes an answer.
func (a *agent) heard() {
	a.mu.Lock()
	now := time.Now()
	a.answers, a.seen, a.askAt, a.wait = true, now, now.Add(pingInterval), 0
	first := a.first
	a.first = nil
	a.mu.Unlock()
	if first != nil {
		first()
	}
}

// lose notes that there was no answer, and when to ask again: when nobody but
// vmand itself asked, after twice the time of before. a.mu is held.
func (a *agent) lose(ours bool) {
	switch {
	case ours:
		a.wait = min(max(firstPing, 2*a.wait), pingInterval)
	case a.answers:
		a.wait = firstPing
	default:
		return
	}
	a.answers = false
	a.askAt = time.Now().Add(a.wait)
	if !a.thawAt.IsZero() {
		a.thawAt = a.askAt // nobody can say whether it is still frozen
	}
}

// isLost reports whether an error means that the agent does not answer.
func isLost(err error) bool { return errors.Is(err, qga.ErrSilent) || errors.Is(err, qga.ErrGarbage) }

func (a *agent) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// setPort notes whether the port is open in the guest.
func (a *agent) setPort(open bool) {
	a.mu.Lock()
	a.there = true
	changed := a.open != open
	if changed {
		a.open, a.opened, a.answers, a.version = open, a.opened || open, false, ""
		a.askAt, a.wait = time.Now(), 0
		if !a.thawAt.IsZero() {
			a.thawAt = time.Now() // an agent that was started again goes on where it was
		}
	}
	a.mu.Unlock()
	if changed {
		a.client.Drop()
		a.poke()
	}
}

// noteAgentEvent notes what an event says of the agent.
func (s *session) noteAgentEvent(e qmp.Event) {
	switch e.Event {
	case "VSERPORT_CHANGE":
		open, ok := e.Data["open"].(bool)
		if ok && e.Data["id"] == agentDevice {
			s.agent.setPort(open)
		}
	case "RESUME":
		s.agent.again()
	}
}

// again asks a silent agent at once: its guest runs again.
func (a *agent) again() {
	a.mu.Lock()
	silent := a.open && !a.answers
	if silent {
		a.askAt, a.wait = time.Now(), 0
	}
	a.mu.Unlock()
	if silent {
		a.poke()
	}
}

// lookForAgent asks whether the agent's port is open. A QEMU that was started by
// a vmand without agents has none.
func (s *session) lookForAgent(ctx context.Context, conn *qmp.Conn) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var chardevs []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := conn.Execute(ctx, "query-chardev", nil, &chardevs); err != nil {
		s.log.Debug("cannot ask for the guest agent's port", "error", err)
		return
	}
	for _, c := range chardevs {
		if c.Label == agentChardev {
			s.agent.setPort(c.Open)
		}
	}
}

// known returns what is known, without asking.
func (a *agent) known() vm.Agent {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := vm.Agent{State: vm.AgentAbsent, Version: a.version, LastSeenAt: a.seen}
	switch {
	case a.open && a.answers:
		k.State = vm.AgentConnected
	case a.opened:
		k.State = vm.AgentSilent
	}
	return k
}

// run keeps what is known true until ctx is done, and the guest from staying
// frozen.
func (a *agent) run(ctx context.Context) {
	defer a.client.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-a.wake:
		case <-timer.C:
		case <-ctx.Done():
			a.letGo()
			return
		}
		if again := a.tend(ctx); again > 0 {
			timer.Reset(again)
		} else {
			timer.Stop()
		}
	}
}

// tend does what is due and returns after how long there will be something again,
// 0 for not before somebody pokes.
func (a *agent) tend(ctx context.Context) time.Duration {
	a.mu.Lock()
	open, thaw, ask := a.open, due(a.thawAt), due(a.askAt)
	a.mu.Unlock()
	var err error
	switch {
	case !open:
		return 0
	case thaw:
		if err = a.thaw(ctx); err != nil || !ask {
			break
		}
		fallthrough
	case ask:
		err = a.ping(ctx)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case isLost(err):
		a.lose(true)
	case errors.Is(err, qga.ErrBusy):
		a.askAt = time.Now().Add(firstPing)
	}
	again := time.Until(a.askAt)
	if !a.thawAt.IsZero() {
		again = min(again, time.Until(a.thawAt))
	}
	return max(again, firstPing/100)
}

func due(at time.Time) bool { return !at.IsZero() && !time.Now().Before(at) }

// ping asks whether the agent is there, and the first time who it is.
func (a *agent) ping(ctx context.Context) error {
	a.mu.Lock()
	known := a.version != ""
	a.mu.Unlock()
	if known {
		return a.client.Ping(ctx)
	}
	info, err := a.client.Info(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil && a.open {
		a.version = info.Version
	}
	return err
}

// thaw sees to it that the guest is not frozen. Thawing what is not frozen would
// run the guest's hooks.
func (a *agent) thaw(ctx context.Context) error {
	frozen, err := a.client.Frozen(ctx)
	if err == nil && frozen {
		if _, err = a.client.Thaw(ctx); err == nil {
			a.session.log.Warn("the guest's file systems were frozen for too long and are thawed")
		}
	}
	var refused *qga.Error
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case frozen && errors.As(err, &refused):
		a.session.log.Warn("the guest stays frozen", "error", err)
		a.thawAt = time.Now().Add(pingInterval)
	case err == nil, errors.As(err, &refused): // an agent that cannot say so cannot freeze either
		a.frozen, a.thawAt = false, time.Time{}
	}
	return err
}

// letGo thaws a guest that is frozen when vmand ends.
func (a *agent) letGo() {
	a.mu.Lock()
	frozen := a.frozen && a.open
	a.mu.Unlock()
	if !frozen || a.session.proc.Exited() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastThaw)
	defer cancel()
	if err := a.thaw(ctx); err != nil {
		a.session.log.Warn("the guest may stay frozen until vmand is back", "error", err)
	}
}
