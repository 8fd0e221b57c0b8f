package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"vmand/host"
	"vmand/vm"
)

// openSession opens the session of a live process. ours is true if this vmand made the
// socket of its monitor. It must be called with d.mu held.
func (d *Driver) openSession(id string, p *host.Process, ours bool) *session {
	return d.openSessionIn(d.layout, id, p, ours)
}

// openSessionIn is openSession for a process whose runtime files are those of a layout.
func (d *Driver) openSessionIn(l layout, id string, p *host.Process, ours bool) *session {
	s := &session{
		id:      id,
		proc:    p,
		ours:    ours,
		layout:  l,
		log:     d.log.With("vm", id),
		notify:  func() { d.nudge(id) },
		changed: make(chan struct{}),
		ended:   make(chan struct{}),
	}
	var printed, answered func()
	if p.IsChild() { // an adopted guest may have done both before
		printed = func() { d.mark(id, vm.BootSerial, time.Now()) }
		answered = func() { d.mark(id, vm.BootAgent, time.Now()) }
	} else {
		_, err := os.Stat(l.inRun(id, quitSuffix))
		s.wasAsked.Store(err == nil)
	}
	s.agent = newAgent(s, answered)
	s.console = d.openHub(id, s.log, printed)
	d.sessions[id] = s
	d.known.Store(id, s)
	d.startSession(s)
	return s
}

// startSession starts the goroutines of a session.
func (d *Driver) startSession(s *session) {
	ctx, cancel := context.WithCancel(d.ctx)
	d.wg.Go(func() {
		defer cancel()
		select {
		case <-s.proc.Done():
		case <-ctx.Done():
		}
	})
	agentDone := make(chan struct{})
	d.wg.Go(func() {
		defer close(agentDone)
		s.agent.run(ctx)
	})
	d.wg.Go(func() {
		defer close(s.ended)
		s.run(ctx)
		cancel()
		s.console.closeAfter(s.proc)
		<-agentDone
		d.endSession(s)
	})
}

// endSession ends a session when its process has ended or the driver closes.
func (d *Driver) endSession(s *session) {
	ended := s.proc.Exited()
	if ended {
		if !s.asked.Load() && !s.wasAsked.Load() {
			d.recordCrash(s)
		}
		s.layout.removeRun(s.id, runSuffixes...) // before s.ended, which a start waits for
	}
	s.proc.Release()
	d.mu.Lock()
	if d.sessions[s.id] == s {
		delete(d.sessions, s.id)
		d.known.Delete(s.id)
	}
	d.mu.Unlock()
	if ended {
		s.log.Info("QEMU process has ended", "pid", s.proc.PID, "state", s.proc.State())
		s.notify()
	}
}

// session returns the session of a VM, nil if it has no process. It also finds
// processes that an earlier vmand started.
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
	for other, s := range d.sessions {
		if other != id && s.proc.PID == p.PID && !s.proc.Exited() {
			p.Release()
			return nil, fmt.Errorf("the pidfile of VM %s is locked by the QEMU of VM %s (pid %d)", id, other, s.proc.PID)
		}
	}
	d.log.Info("QEMU process found", "vm", id, "pid", p.PID)
	return d.openSession(id, p, false), nil
}

// live returns the session of a VM. It fails if the VM has no process.
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

// adoptAll opens a session for every process with a pidfile that has none. It makes the runtime
// directory again if that was removed.
func (d *Driver) adoptAll() error {
	ids, err := d.layout.vmIDs(pidSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("the runtime directory is lost and is made again", "path", d.layout.run)
		err = d.layout.create(d.account)
	}
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := d.session(id); err != nil {
			d.log.Warn("cannot inspect a pidfile", "vm", id, "err", err)
		}
	}
	return nil
}

// adoptWithStrays is [Driver.adoptAll] that also opens a session for every process without
// runtime files.
func (d *Driver) adoptWithStrays() error {
	if err := d.adoptAll(); err != nil {
		return err
	}
	d.adoptStrays()
	return nil
}

// removeStale removes the runtime files of VMs without a process. It must be called
// before any VM can be started.
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

// removeDead removes the runtime files of a VM if it has no process.
func (d *Driver) removeDead(id string) {
	if s, err := d.session(id); s == nil && err == nil {
		d.layout.removeRun(id, runSuffixes...)
	}
}
