package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"vmand/vm"
)

// observeTimeout is how long an observation waits for QEMU.
const observeTimeout = time.Second

// Observe implements [vm.Host].
func (d *Driver) Observe(ctx context.Context, id string) vm.Observation {
	s, err := d.session(id)
	if err != nil {
		d.log.Warn("cannot look for a QEMU process", "vm", id, "err", err)
	}
	if s != nil {
		o := s.observe(ctx, observeTimeout)
		if o.Status == statusInternalError { // KVM says there which instruction failed
			o.Trouble = join(o.Trouble, d.lastWords(id))
		}
		if !s.proc.Exited() {
			return o
		}
	}
	return vm.Observation{Log: d.lastWords(id)}
}

// observe asks QEMU for the run state of the guest and for the plugged devices.
func (s *session) observe(ctx context.Context, limit time.Duration) (o vm.Observation) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	o.PID = s.proc.PID
	type answer struct {
		has peripherals
		err error
	}
	plugged := make(chan answer, 1)
	go func() { // both at once, so a busy QEMU costs one wait
		has, err := s.peripherals(ctx)
		plugged <- answer{has, err}
	}()
	defer func() { o.Trouble = join(o.Trouble, s.damage()) }() // even without an answer
	var err error
	if o.Status, err = s.queryStatus(ctx); err != nil {
		return o
	}
	if o.Status == statusIOError {
		s.lookForIOErrors(ctx, &o)
	}
	if a := <-plugged; a.err == nil {
		o.Plugged, o.NICs, o.CDROMs = a.has.disks, a.has.nics, a.has.cdroms
	}
	return o
}

// survey is observe in a survey of all VMs. It does not wait for a mute QEMU: it
// leaves a query to it, and nudges once that is answered.
func (s *session) survey(ctx context.Context, d *Driver) vm.Observation {
	s.mu.Lock()
	mute, ask := s.mute, s.mute && !s.asking
	s.asking = s.asking || ask
	s.mu.Unlock()
	if !mute {
		return s.observe(ctx, observeTimeout)
	}
	if ask {
		d.askLater(s)
	}
	return vm.Observation{PID: s.proc.PID, Trouble: s.damage()}
}

// askLater queries a mute QEMU in the background.
func (d *Driver) askLater(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return
	}
	d.wg.Go(func() {
		o := s.observe(d.ctx, queryTimeout)
		s.mu.Lock()
		s.asking = false
		s.mu.Unlock()
		if o.Status != vm.StatusMute {
			s.notify()
		}
	})
}

// maxQEMULog is the size in bytes at which a QEMU log is truncated.
const maxQEMULog = 16 << 20

// boundLog bounds the log of QEMU, which a guest may make grow. QEMU appends, so it
// continues at the new end.
func (d *Driver) boundLog(id string) error {
	// Every pass does this for every VM. os.Root would make four system calls, and a
	// stat needs no protection.
	st, err := os.Lstat(d.layout.inState(vmQEMULog(id)))
	if err != nil || st.Size() <= maxQEMULog {
		return err
	}
	f, err := d.state.OpenFile(vmQEMULog(id), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Survey implements [vm.Host]. It also adopts processes without runtime files, which
// costs a search of /proc. The first one starts the removal of the unfinished files that a
// killed vmand left with VMs: that visits every VM, so it does not compete with the start.
func (d *Driver) Survey(ctx context.Context) (vm.Survey, error) {
	defer d.tidied.Do(d.tidyVMs)
	return d.survey(ctx, d.adoptWithStrays, func(seen *vm.Survey) (err error) {
		if err = d.files.survey(ctx, seen); err == nil {
			seen.Images, err = d.importer.Contents()
		}
		return err
	})
}

// tidyVMs calls removeVMTemps in the background.
func (d *Driver) tidyVMs() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return
	}
	d.wg.Go(func() {
		if err := d.removeVMTemps(d.ctx, d.started); err != nil {
			d.log.Warn("cannot remove the unfinished files of VMs", "err", err)
		}
	})
}

// SurveyProcesses implements [vm.Host].
func (d *Driver) SurveyProcesses(ctx context.Context) (vm.Survey, error) {
	seen, err := d.survey(ctx, d.adoptAll, d.files.surveyStorage)
	if err == nil {
		d.files.rootDisksOf(&seen)
	}
	return seen, err
}

// FilesVersion implements [vm.Host].
func (d *Driver) FilesVersion(context.Context) (string, error) { return d.files.version() }

// survey observes all processes after adopt, and meanwhile calls files.
func (d *Driver) survey(
	ctx context.Context, adopt func() error, files func(*vm.Survey) error,
) (vm.Survey, error) {
	if err := adopt(); err != nil {
		return vm.Survey{}, fault(vm.CodeOperationFailed, err, "survey the host")
	}
	seen := vm.Survey{VMs: make(map[string]vm.Observation), Accel: d.wouldUse()}
	d.mu.Lock()
	sessions := make([]*session, 0, len(d.sessions))
	for _, s := range d.sessions {
		sessions = append(sessions, s)
	}
	d.mu.Unlock()
	observations := make([]vm.Observation, len(sessions))
	var wg sync.WaitGroup
	for i, s := range sessions {
		wg.Go(func() { observations[i] = s.survey(ctx, d) })
	}
	err := files(&seen)
	wg.Wait()
	if err != nil {
		return vm.Survey{}, fault(vm.CodeOperationFailed, err, "survey the host")
	}
	for i, s := range sessions {
		if s.proc.Exited() {
			continue
		}
		observations[i].Lost = s.lost()
		seen.VMs[s.id] = observations[i]
		if err := d.boundLog(s.id); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.log.Warn("cannot bound the log of QEMU", "vm", s.id, "err", err)
		}
	}
	return seen, nil
}

// readDir returns the entries of a directory, none if it does not exist.
func readDir(state *os.Root, name string) ([]os.DirEntry, error) {
	entries, err := fs.ReadDir(state.FS(), name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return entries, nil
}
