package qemu

import (
	"context"
	"os"
	"time"

	"vmand/host"
	"vmand/vm"
)

// openSession opens the session of a live process. ours is true if this vmand made the
// socket of its monitor. It must be called with d.mu held.
func (d *Driver) openSession(id string, p *host.Process, ours bool) *session {
	s := &session{
		id:      id,
		proc:    p,
		ours:    ours,
		layout:  d.layout,
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
		_, err := os.Stat(d.layout.inRun(id, quitSuffix))
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
		d.layout.removeRun(s.id, runSuffixes...) // before s.ended, which a start waits for
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

// adoptAll opens a session for every process that has none.
func (d *Driver) adoptAll() error {
	ids, err := d.layout.vmIDs(pidSuffix)
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
