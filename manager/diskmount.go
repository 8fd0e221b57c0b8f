package manager

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vmand/vm"
)

// How long a detach waits for the guest agent: to say where the disk is mounted, which
// matters less to a forced detach, and to flush its file systems.
const (
	mountsTimeout = 10 * time.Second
	forcedTimeout = 2 * time.Second
	flushTimeout  = 30 * time.Second
)

// A release prepares a guest for the detach of one of its disks. It talks to the guest
// agent before the VM is locked, so an agent that does not answer keeps no other operation
// from the VM.
type release struct {
	s *Disks
	o vm.DetachOptions
	d vm.Disk
	// done says what was done in the guest, for the log of the operation. doubt is not
	// empty if the content of the disk may not be complete, and says why.
	done, doubt string
	frozen      bool
}

// prepare makes sure that nothing of the disk is lost by its detach. It fails with
// [vm.CodeInUse] if the guest has the disk mounted, and with [vm.CodeAgentUnavailable] if
// an agent runs that cannot be asked, unless the options allow the detach anyway. The
// caller must call end if it succeeds.
func (x *release) prepare(ctx context.Context) error {
	v, err := x.s.store.VM(ctx, x.d.VMID)
	if err != nil || !v.Live() || x.d.State != vm.DiskAttached {
		return ignoreNotFound(err) // the detach itself says what is wrong
	}
	mounts, err := x.mounts(ctx, v)
	switch {
	case err == nil && len(mounts) == 0:
		if x.done == "" {
			x.done = "the guest agent reports no mount of the disk"
		}
		return nil
	case err == nil:
		return x.handleMounts(ctx, mounts)
	case x.o.Force:
		x.doubt = "detached with force without an answer of the guest agent"
		x.done = x.doubt
		return nil
	}
	return forceHint(err)
}

// mounts asks the guest of v where it has the disk mounted. If no agent can know, it
// returns nothing and sets doubt.
func (x *release) mounts(ctx context.Context, v vm.VM) ([]vm.GuestMount, error) {
	patience := mountsTimeout
	if x.o.Force {
		patience = forcedTimeout
	}
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	if v.State == vm.Running {
		mounts, err := x.s.driver.Mounts(ctx, x.d)
		if !errors.Is(err, vm.ErrUnavailable) || x.s.driver.Agent(v.ID).State != vm.AgentAbsent {
			return mounts, err
		}
	}
	switch {
	case x.s.driver.Agent(v.ID).State == vm.AgentAbsent:
		if x.o.Sync && !x.o.Force {
			return nil, &vm.Fault{
				Code:   vm.CodeAgentUnavailable,
				Detail: fmt.Sprintf("no guest agent runs in VM %s that could flush disk %s", v.ID, x.d.ID),
				Hint:   "unmount the disk in the guest and repeat the request without sync",
			}
		}
		x.doubt = "no guest agent runs: the content is complete only if the guest had unmounted the disk"
	case v.Reason == vm.ReasonPanicked, v.Reason == vm.ReasonInternalError:
		x.doubt = fmt.Sprintf("the guest cannot be asked (%s): the content is complete only if it had unmounted the disk",
			v.Reason)
	default:
		return nil, &vm.Fault{
			Code:   vm.CodeAgentUnavailable,
			Detail: fmt.Sprintf("VM %s is paused (%s): its guest cannot be asked whether disk %s is mounted", v.ID, v.Reason, x.d.ID),
			Hint:   "resume the VM first",
		}
	}
	x.done = x.doubt
	return nil, nil
}

// handleMounts refuses, flushes or accepts the detach of a disk that is mounted.
func (x *release) handleMounts(ctx context.Context, mounts []vm.GuestMount) error {
	where := mountNames(mounts)
	if !x.o.Sync && !x.o.Force {
		return &vm.Fault{
			Code:   vm.CodeInUse,
			Detail: fmt.Sprintf("disk %s is in use: the guest of VM %s has it mounted at %s", x.d.ID, x.d.VMID, where),
			Hint: "unmount it in the guest; or repeat the request with \"sync\": true, which flushes its file systems first, " +
				"or with \"force\": true, which loses what the guest has not written",
		}
	}
	if x.o.Sync {
		err := x.flush(ctx, mounts)
		if err == nil {
			x.done += fmt.Sprintf(": it was mounted at %s", where)
			return nil
		}
		if !x.o.Force {
			return forceHint(err)
		}
		x.done = fmt.Sprintf("cannot flush its file systems (%v); ", err)
	}
	x.doubt = fmt.Sprintf("detached with force while the guest had it mounted at %s", where)
	x.done += x.doubt
	return nil
}

// flush has the guest write everything of the file systems at the mount points to the disk.
// They stay frozen until end if the guest can freeze all of them.
func (x *release) flush(ctx context.Context, mounts []vm.GuestMount) error {
	ctx, stop := context.WithTimeout(ctx, flushTimeout)
	defer stop()
	points := make([]string, len(mounts))
	devices := map[string]bool{}
	for i, m := range mounts {
		points[i] = m.MountPoint
		devices[m.Device] = true
	}
	n, err := x.s.driver.Freeze(ctx, x.d.VMID, points...)
	if x.frozen = err == nil; x.frozen && n >= len(devices) {
		x.done = "the guest has flushed and frozen the file systems of the disk"
		return nil
	}
	if err != nil && !vm.HasCode(err, vm.CodeGuestRefused) {
		return err
	}
	x.end() // a frozen guest runs no programs
	r, err := x.s.driver.Exec(ctx, x.d.VMID, vm.GuestCommand{Path: "sync", Timeout: flushTimeout})
	if err == nil && (!r.Exited || r.ExitCode != 0 || r.Signal != 0) {
		err = &vm.Fault{
			Code:   vm.CodeGuestRefused,
			Detail: fmt.Sprintf("the guest of VM %s cannot flush disk %s: it can neither freeze it nor run sync", x.d.VMID, x.d.ID),
		}
	}
	if err == nil {
		x.done = "the guest has run sync, as it cannot freeze the file systems of the disk"
	}
	return err
}

// end thaws what prepare has frozen. It is idempotent.
func (x *release) end() {
	if !x.frozen {
		return
	}
	x.frozen = false
	ctx, stop := context.WithTimeout(context.Background(), mountsTimeout)
	defer stop()
	// The freeze ends by itself, too.
	if err := x.s.driver.Thaw(ctx, x.d.VMID); err != nil && !errors.Is(err, vm.ErrState) {
		x.s.log.Warn("cannot thaw a guest after the detach of a disk", "vm", x.d.VMID, "err", err)
	}
}

// forceHint adds to the hint of a fault that force detaches the disk nevertheless.
func forceHint(err error) error {
	var f *vm.Fault
	if !errors.As(err, &f) {
		return err
	}
	longer := *f
	longer.Hint = strings.TrimPrefix(longer.Hint+"; ", "; ") +
		"with \"force\": true the disk is detached without the guest, and what it has not written is lost"
	return &longer
}

// maxMountNames is how many mount points a message names.
const maxMountNames = 4

func mountNames(mounts []vm.GuestMount) string {
	var names []string
	for _, m := range mounts[:min(len(mounts), maxMountNames)] {
		names = append(names, vm.Printable(m.MountPoint))
	}
	if more := len(mounts) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}
