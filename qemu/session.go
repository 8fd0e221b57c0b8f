package qemu

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"vmand/host"
	"vmand/qemu/qmp"
)

// How long to wait before a lost monitor connection is made again.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// session is one live QEMU process in the driver: the process, a monitor connection
// that is made again when it breaks, and the hub of the serial console. It ends with
// the process or with the driver.
type session struct {
	id     string
	proc   *host.Process
	layout layout
	log    *slog.Logger
	notify func()        // requests that the VM is settled soon
	ended  chan struct{} // closed when the goroutines are done

	agent   *agent
	console *serialHub

	recorder recorder
	asked    atomic.Bool // this vmand asked the process to end
	wasAsked atomic.Bool // an earlier vmand may have, and the monitor was not heard of since
	ours     bool        // this vmand started it, with the socket of its monitor

	mu       sync.Mutex
	conn     *qmp.Conn         // nil while there is none
	impostor error             // set if the monitor is another VM's
	changed  chan struct{}     // closed and replaced when conn or impostor changes
	mute     bool              // the last command got no answer; surveys do not wait for the next one
	asking   bool              // a command to a mute QEMU is in progress
	damaged  map[string]string // what QEMU reported of damaged images, by the name of the disk
}

// run keeps a monitor connection until ctx is done.
func (s *session) run(ctx context.Context) {
	wait := firstRetry
	for ctx.Err() == nil {
		conn, err := s.connect(ctx)
		if err == nil {
			wait = firstRetry
			s.pump(ctx, conn)
			s.lose(conn)
			s.notify()
			continue
		}
		if ctx.Err() == nil {
			s.log.Debug("monitor connection failed", "err", err)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		wait = min(2*wait, lastRetry)
	}
}

// connect makes the monitor connection. It checks that the VM answers before the
// connection can be used.
func (s *session) connect(ctx context.Context) (*qmp.Conn, error) {
	var answer identity
	options := []qmp.Option{qmp.WithTrace(s.recorder.trace)}
	if !s.ours { // no other process can answer on a socket of vmand's
		options = append(options, qmp.First("query-uuid", &answer))
	}
	conn, err := qmp.Dial(ctx, s.layout.inRun(s.id, qmpSuffix), options...)
	if err != nil {
		return nil, err
	}
	if !s.ours {
		err = s.identify(answer)
	}
	if err == nil && s.wasAsked.Swap(false) { // it answers, so it was not asked to end
		s.layout.removeRun(s.id, quitSuffix)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.conn, s.impostor, s.mute = conn, nil, false
	case errors.Is(err, errImpostor):
		s.impostor = err
	}
	s.announce()
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// announce wakes the callers that wait for a connection. s.mu must be held.
func (s *session) announce() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// lose closes and drops a broken connection.
func (s *session) lose(conn *qmp.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == conn {
		s.conn = nil
		s.announce()
	}
}

// newsworthy are the events after which the state of a VM or its disks may differ.
// They only cause an observation of the VM, so a lost event delays it and has no other effect.
var newsworthy = map[string]bool{
	"STOP":                  true,
	"RESUME":                true,
	"SHUTDOWN":              true,
	"RESET":                 true,
	"SUSPEND":               true,
	"WAKEUP":                true,
	"GUEST_PANICKED":        true,
	"GUEST_CRASHLOADED":     true,
	"WATCHDOG":              true,
	"BLOCK_IO_ERROR":        true,
	"BLOCK_IMAGE_CORRUPTED": true,
	"DEVICE_DELETED":        true,
}

// loud are the events that an administrator should find in the log.
var loud = map[string]bool{
	"GUEST_PANICKED":        true,
	"WATCHDOG":              true,
	"BLOCK_IO_ERROR":        true,
	"BLOCK_IMAGE_CORRUPTED": true,
}

// pump reads the events of a connection until it breaks or ctx is done.
func (s *session) pump(ctx context.Context, conn *qmp.Conn) {
	events := conn.Subscribe(32)
	defer events.Close()
	timer := time.NewTimer(damageDelay)
	defer timer.Stop()
	if !s.proc.IsChild() { // its guest may have had an agent for long
		s.lookForAgent(ctx, conn)
	}
	for lost := uint64(0); ; {
		select {
		case <-timer.C:
			s.lookForAgent(ctx, conn)
			if s.lookForDamage(ctx, conn) {
				s.notify()
			}
		case e, ok := <-events.C():
			if !ok {
				return
			}
			s.handleEvent(e)
			if events.Lost() > 0 {
				s.notify()
			}
			if n := events.Lost(); n != lost {
				lost = n
				s.lookForAgent(ctx, conn)
			}
		case <-ctx.Done():
			return
		}
	}
}

// handleEvent reacts to an event of the monitor.
func (s *session) handleEvent(e qmp.Event) {
	if loud[e.Event] {
		s.log.Warn("QEMU reports an event", "event", e.Event, "data", e.Data)
	}
	if e.Event == "BLOCK_IMAGE_CORRUPTED" {
		s.noteDamageEvent(e.Data)
	}
	s.noteAgentEvent(e)
	if newsworthy[e.Event] {
		s.notify()
	}
}

// monitor returns the monitor connection. It waits for one until ctx is done.
func (s *session) monitor(ctx context.Context) (*qmp.Conn, error) {
	for {
		s.mu.Lock()
		conn, changed, impostor := s.conn, s.changed, s.impostor
		s.mu.Unlock()
		switch {
		case s.proc.Exited():
			return nil, errGone
		case impostor != nil:
			return nil, impostor
		case conn != nil && conn.Err() == nil:
			return conn, nil
		case conn != nil:
			s.lose(conn)
			continue
		}
		select {
		case <-changed:
		case <-s.proc.Done():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// isMute reports whether the last command to QEMU got no answer.
func (s *session) isMute() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mute
}

// setMute records whether QEMU answers.
func (s *session) setMute(mute bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case mute && !s.mute:
		s.log.Warn("QEMU does not answer", "pid", s.proc.PID)
	case s.mute && !mute:
		s.log.Info("QEMU answers again", "pid", s.proc.PID)
	}
	s.mute = mute
}
