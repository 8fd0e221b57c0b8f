package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vmand/host"
	"vmand/qemu/qmp"
	"vmand/vm"
)

// How soon a lost connection is made again.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// session is what the driver holds of one live QEMU process: the process, one
// monitor connection that is made again when it breaks, and the drain of the
// serial console. It ends with the process or with the driver.
type session struct {
	id     string
	proc   *host.Process
	layout layout
	log    *slog.Logger
	notify func()
	heard  func()        // to be called at the first byte from the console; nil if nobody wants to know, or it may not be the first
	ended  chan struct{} // closed when the goroutines are done

	agent   *agent
	console *serialHub

	recorder recorder
	asked    atomic.Bool // vmand has told the process to end
	wasAsked atomic.Bool // the one before may have, and nothing was heard of it since
	ours     bool        // this vmand has started it, with the socket of its monitor

	mu       sync.Mutex
	conn     *qmp.Conn         // nil while there is none
	impostor error             // set if what answers is not the VM
	changed  chan struct{}     // closed, and replaced, when conn or impostor has changed
	mute     bool              // a question was not answered; nobody waits for the next one
	asking   bool              // a question to a mute QEMU is under way
	damaged  map[string]string // disks by name whose image QEMU found damaged, and what it said
}

// open makes the session of a live process, ours if this vmand has made the
// socket that it has for its monitor. d.mu is held.
func (d *Driver) open(id string, p *host.Process, ours bool) *session {
	s := &session{id: id, proc: p, ours: ours, layout: d.layout, log: d.log.With("vm", id), changed: make(chan struct{}), ended: make(chan struct{})}
	if !p.IsChild() {
		_, err := os.Stat(d.layout.inRun(id, quitSuffix))
		s.wasAsked.Store(err == nil)
	}
	s.notify = func() { d.nudge(id) }
	var answered func()
	if p.IsChild() { // of another process, the first byte and answer may have come before
		s.heard = func() { d.mark(id, vm.BootSerial, time.Now()) }
		answered = func() { d.mark(id, vm.BootAgent, time.Now()) }
	}
	s.agent = newAgent(s, answered)
	s.console = d.openHub(id, s.log, s.heard)
	d.sessions[id] = s
	d.known.Store(id, s)
	ctx, cancel := context.WithCancel(d.ctx)
	d.wg.Go(func() {
		defer cancel()
		select {
		case <-p.Done():
		case <-ctx.Done():
		}
	})
	tended := make(chan struct{})
	d.wg.Go(func() {
		defer close(tended)
		s.agent.run(ctx)
	})
	d.wg.Go(func() {
		defer close(s.ended)
		s.run(ctx)
		cancel()
		s.console.closeAfter(p)
		<-tended
		if p.Exited() {
			if !s.asked.Load() && !s.wasAsked.Load() {
				d.recordCrash(s)
			}
			d.layout.removeRun(id, runSuffixes...) // a start waits for s.ended
		}
		p.Release()
		d.mu.Lock()
		if d.sessions[id] == s {
			delete(d.sessions, id)
			d.known.Delete(id)
		}
		d.mu.Unlock()
		if p.Exited() {
			s.log.Info("QEMU process has ended", "pid", p.PID, "status", p.State())
			s.notify()
		}
	})
	return s
}

// session returns the session of a VM that has a process, or nil. It finds
// processes that a vmand before this one has started.
func (d *Driver) session(id string) (*session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.sessions[id]; s != nil && !s.proc.Exited() {
		return s, nil
	}
	if d.ctx.Err() != nil || !vm.ValidName(id) {
		return nil, nil
	}
	p, err := adopt(d.layout.pidfile(id), d.account.UID)
	if p == nil || err != nil {
		return nil, err
	}
	d.log.Info("QEMU process found", "vm", id, "pid", p.PID)
	return d.open(id, p, false), nil
}

// live returns the session of a VM, or a fault if it has no process.
func (d *Driver) live(id string) (*session, error) {
	s, err := d.session(id)
	if err != nil {
		return nil, fault(vm.CodeOperationFailed, err, "look for the QEMU process of VM %s", id)
	}
	if s == nil {
		return nil, fault(vm.CodeState, nil, "VM %s does not run", id)
	}
	return s, nil
}

// adoptAll opens a session for every process that has none.
func (d *Driver) adoptAll() error {
	ids, err := d.layout.vmIDs(pidSuffix)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := d.session(id); err != nil {
			d.log.Warn("cannot look at a pidfile", "vm", id, "err", err)
		}
	}
	return nil
}

// removeStale removes what the runtime directory still holds of VMs that have no
// process. Only before anybody can start one.
func (d *Driver) removeStale() error {
	for _, suffix := range runSuffixes {
		ids, err := d.layout.vmIDs(suffix)
		if err != nil {
			return err
		}
		for _, id := range ids {
			d.removeDead(id)
		}
	}
	return nil
}

// removeDead removes what the runtime directory holds of a VM, if that has no
// process.
func (d *Driver) removeDead(id string) {
	if s, err := d.session(id); s == nil && err == nil {
		d.layout.removeRun(id, runSuffixes...)
	}
}

// run keeps the monitor connection until ctx is done.
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

// connect makes the connection and sees to it that the right VM is at its other
// end, before anybody can use it.
func (s *session) connect(ctx context.Context) (*qmp.Conn, error) {
	var who identity
	options := []qmp.Option{qmp.WithTrace(s.recorder.trace)}
	if !s.ours { // else nobody else can answer
		options = append(options, qmp.First("query-uuid", &who))
	}
	conn, err := qmp.Dial(ctx, s.layout.inRun(s.id, qmpSuffix), options...)
	if err != nil {
		return nil, err
	}
	if !s.ours {
		err = s.identify(who)
	}
	if err == nil && s.wasAsked.Swap(false) { // it goes on answering: it was not told, after all
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
	s.tell()
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// tell wakes who waits for a connection. s.mu is held.
func (s *session) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

var errImpostor = errors.New("its monitor is not the VM's")

// identity is what query-uuid says.
type identity struct {
	UUID string `json:"UUID"`
}

// identify returns errImpostor if another VM has answered.
func (s *session) identify(got identity) error {
	want, err := s.uuid()
	if err != nil {
		return fmt.Errorf("%w: no record of its UUID: %w", errImpostor, err)
	}
	if !strings.EqualFold(got.UUID, want) {
		return fmt.Errorf("%w: it names the UUID %s", errImpostor, got.UUID)
	}
	return nil
}

// uuid returns the UUID that the VM's monitor must name: the one that was noted
// at its start. If that note is lost, the process that holds the lock on the
// VM's pidfile says on its command line what it was started as, and the note is
// written again.
func (s *session) uuid() (string, error) {
	file := s.layout.inRun(s.id, uuidSuffix)
	noted, err := os.ReadFile(file)
	if err == nil {
		return strings.TrimSpace(string(noted)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	args, rerr := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.proc.PID))
	if rerr != nil || s.proc.Exited() { // its number may be another's by now
		return "", errors.Join(err, rerr)
	}
	words := strings.Split(string(args), "\x00")
	at := slices.Index(words, "-uuid") + 1
	if at == 0 || at == len(words) || !slices.Contains(words, s.layout.pidfile(s.id)) {
		return "", err
	}
	s.log.Warn("the note of the VM's UUID is lost, its process says it", "pid", s.proc.PID, "uuid", words[at])
	return words[at], os.WriteFile(file, []byte(words[at]+"\n"), 0o600)
}

// lose forgets a connection that has ended.
func (s *session) lose(conn *qmp.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == conn {
		s.conn = nil
		s.tell()
	}
}

// newsworthy are the events after which a VM or its disks may no longer be what
// they were. Whoever is told looks for itself: an event that is missed costs
// time and nothing else.
var newsworthy = map[string]bool{
	"STOP": true, "RESUME": true, "SHUTDOWN": true, "RESET": true, "SUSPEND": true, "WAKEUP": true,
	"GUEST_PANICKED": true, "GUEST_CRASHLOADED": true, "WATCHDOG": true,
	"BLOCK_IO_ERROR": true, "BLOCK_IMAGE_CORRUPTED": true, "DEVICE_DELETED": true,
}

// loud are those of them that an administrator should find in the log.
var loud = map[string]bool{"GUEST_PANICKED": true, "WATCHDOG": true, "BLOCK_IO_ERROR": true, "BLOCK_IMAGE_CORRUPTED": true}

// pump watches a connection until it ends.
func (s *session) pump(ctx context.Context, conn *qmp.Conn) {
	events := conn.Subscribe(32)
	defer events.Close()
	look := time.NewTimer(damageDelay)
	defer look.Stop()
	for lost := uint64(0); ; {
		select {
		case <-look.C:
			s.lookForAgent(ctx, conn)
			if s.lookForDamage(ctx, conn) {
				s.notify()
			}
		case e, ok := <-events.C():
			if !ok {
				return
			}
			if loud[e.Event] {
				s.log.Warn("QEMU reports an event", "event", e.Event, "data", e.Data)
			}
			if e.Event == "BLOCK_IMAGE_CORRUPTED" {
				s.noteDamageEvent(e.Data)
			}
			s.noteAgentEvent(e)
			if newsworthy[e.Event] || events.Lost() > 0 {
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

// monitor returns the connection, and waits for one if there is none.
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

// isMute reports whether QEMU has left a question without an answer since it
// last gave one.
func (s *session) isMute() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mute
}

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
