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
	// pingInterval is how often vmand pings an agent that it has no question for.
	// After a ping without an answer it waits for firstPing, then twice as long
	// after each, up to pingInterval.
	pingInterval = 30 * time.Second
	firstPing    = time.Second

	// contactTimeout is how long a call waits for the first contact with a QEMU that an
	// earlier vmand started.
	contactTimeout = 5 * time.Second

	// freezeLease is how long a guest's file systems stay frozen without a thaw.
	// Windows has the same limit.
	freezeLease = 10 * time.Second
	// lastThaw is how long vmand waits for a frozen guest to thaw when it stops.
	lastThaw = 2 * time.Second
)

// agent is the state of the guest agent in a session's guest. QEMU reports whether
// a program in the guest has the agent's port open. Only then vmand sends anything,
// so a guest without an agent costs nothing.
type agent struct {
	session *session
	client  *qga.Client
	wake    chan struct{} // of capacity 1: run must check again

	mu      sync.Mutex    // guards everything that follows; never held while blocking
	first   func()        // called at the first answer; nil if it is not wanted, or was called
	hasPort bool          // QEMU has a port for an agent
	asked   chan struct{} // closed when QEMU has said whether the port exists and is open
	open    bool          // a program in the guest has the port open
	opened  bool          // open is or was true
	answers bool          // the last question was answered
	version string
	seen    time.Time     // when the last answer came
	askAt   time.Time     // when to ping
	wait    time.Duration // between pings without an answer
	frozen  bool          // by Freeze, and not thawed since
	thawAt  time.Time     // when to check that the guest is not frozen; zero for never
}

// newAgent returns the agent of a new session. It does not connect. first, if not
// nil, is called at the first answer.
func newAgent(s *session, first func()) *agent {
	a := &agent{session: s, wake: make(chan struct{}, 1), first: first, asked: make(chan struct{})}
	if !s.proc.IsChild() {
		a.thawAt = time.Now() // an earlier vmand may have frozen it and been killed
	}
	a.client = qga.NewClient(func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", s.layout.inRun(s.id, agentSuffix))
	}, a.heard)
	return a
}

// heard records an answer.
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

// lose records that the agent did not answer, and schedules the next ping. If the
// question was vmand's own ping, the wait doubles. a.mu must be held.
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
		a.thawAt = a.askAt // only the agent knows whether the guest is still frozen
	}
}

// isLost reports whether an error means that the agent does not answer.
func isLost(err error) bool { return errors.Is(err, qga.ErrSilent) || errors.Is(err, qga.ErrGarbage) }

// poke makes run check again.
func (a *agent) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// setPort records whether the port is open in the guest.
func (a *agent) setPort(open bool) {
	a.mu.Lock()
	a.hasPort = true
	changed := a.open != open
	if changed {
		a.open, a.opened, a.answers, a.version = open, a.opened || open, false, ""
		a.askAt, a.wait = time.Now(), 0
		if !a.thawAt.IsZero() {
			a.thawAt = time.Now() // a restarted agent does not thaw the guest
		}
	}
	a.mu.Unlock()
	if changed {
		a.client.Drop()
		a.poke()
	}
}

// noteAgentEvent records the state of the agent that an event reports.
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

// again pings a silent agent at once, because its guest runs again.
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

// lookForAgent asks QEMU whether the agent's port is open. A QEMU that an old
// vmand started may have no such port.
func (s *session) lookForAgent(ctx context.Context, conn *qmp.Conn) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var chardevs []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := conn.Execute(ctx, "query-chardev", nil, &chardevs); err != nil {
		s.log.Debug("cannot ask for the guest agent's port", "err", err)
		return
	}
	for _, c := range chardevs {
		if c.Label == agentChardev {
			s.agent.setPort(c.Open)
		}
	}
	s.agent.noteAsked()
}

// noteAsked wakes the callers of awaitContact. It is idempotent.
func (a *agent) noteAsked() {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-a.asked:
	default:
		close(a.asked)
	}
}

// awaitContact waits until QEMU has said whether the agent's port is open, at most for
// contactTimeout and until ctx is done.
func (a *agent) awaitContact(ctx context.Context) {
	timer := time.NewTimer(contactTimeout)
	defer timer.Stop()
	select {
	case <-a.asked:
	case <-a.session.proc.Done():
	case <-timer.C:
	case <-ctx.Done():
	}
}

// known returns the state of the agent without asking it.
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

// run pings the agent and thaws the guest when that is due, until ctx is done.
func (a *agent) run(ctx context.Context) {
	defer a.client.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-a.wake:
		case <-timer.C:
		case <-ctx.Done():
			a.thawAtEnd()
			return
		}
		if again := a.runDue(ctx); again > 0 {
			timer.Reset(again)
		} else {
			timer.Stop()
		}
	}
}

// runDue runs the tasks that are due. It returns the time until the next task, or 0 if there is
// none until a poke.
func (a *agent) runDue(ctx context.Context) time.Duration {
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

// due reports whether the time at has come. The zero time never comes.
func due(at time.Time) bool { return !at.IsZero() && !time.Now().Before(at) }

// ping checks whether the agent answers. The first ping asks for its version.
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

// thaw makes sure that the guest is not frozen. It asks first, because a thaw runs
// the guest's hooks even if nothing is frozen.
func (a *agent) thaw(ctx context.Context) error {
	frozen, err := a.client.Frozen(ctx)
	if err == nil && frozen {
		if _, err = a.client.Thaw(ctx); err == nil {
			a.session.log.Warn("the guest's file systems were frozen for too long and are thawed")
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case frozen && isRefusal(err):
		a.session.log.Warn("the guest stays frozen", "err", err)
		a.thawAt = time.Now().Add(pingInterval)
	case err == nil, isRefusal(err): // an agent that cannot report the state cannot freeze either
		a.frozen, a.thawAt = false, time.Time{}
	}
	return err
}

// thawAtEnd thaws a frozen guest when vmand stops.
func (a *agent) thawAtEnd() {
	a.mu.Lock()
	frozen := a.frozen && a.open
	a.mu.Unlock()
	if !frozen || a.session.proc.Exited() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastThaw)
	defer cancel()
	if err := a.thaw(ctx); err != nil {
		a.session.log.Warn("the guest may stay frozen until vmand runs again", "err", err)
	}
}
