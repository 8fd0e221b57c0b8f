package qemu

import (
	"context"
	"os"

	"vmand/vm"
)

// Admit implements [vm.Machines].
func (d *Driver) Admit(ctx context.Context, s vm.Spec) error {
	if err := ctx.Err(); err != nil {
		return monitorFault(s.ID, "start", err)
	}
	if err := d.checkFree(ctx, s.ID); err != nil {
		return err
	}
	if err := d.checkFiles(s); err != nil {
		return err
	}
	available, err := memAvailable()
	if err != nil {
		return fault(vm.CodeOperationFailed, err, "ask for the host's memory")
	}
	return admitMemory(s, available)
}

// checkFree fails if a VM has a process. If its process has just ended, it waits
// until everything of the process is released.
func (d *Driver) checkFree(ctx context.Context, id string) error {
	d.mu.Lock()
	ending := d.sessions[id]
	d.mu.Unlock()
	if ending != nil && ending.proc.Exited() {
		select {
		case <-ending.ended:
		case <-ctx.Done():
			return monitorFault(id, "the end of its last run", ctx.Err())
		}
	}
	s, err := d.session(id)
	if err != nil {
		return fault(vm.CodeOperationFailed, err, "look for the QEMU process of VM %s", id)
	}
	if s == nil {
		return nil
	}
	f := fault(vm.CodeState, nil, "VM %s already has a QEMU process, pid %d", id, s.proc.PID)
	f.Hint = "stop it first"
	return f
}

// checkFiles fails for the first file of a VM that is missing or unreadable.
func (d *Driver) checkFiles(s vm.Spec) error {
	if _, err := d.state.Stat(vmRootDisk(s.ID)); err != nil {
		return fault(vm.CodeOperationFailed, err, "the root disk of VM %s is missing", s.ID)
	}
	for _, disk := range s.Disks {
		if _, err := d.state.Stat(dataDisk(disk.ID)); err != nil {
			return fault(vm.CodeOperationFailed, err, "the file of disk %s of VM %s is missing", disk.ID, s.ID)
		}
		if err := d.checkBaseOf(disk.DiskFile, "disk "+disk.ID+" of VM "+s.ID); err != nil {
			return err
		}
	}
	if err := d.checkCDROMs(s.ID, s.CDROMs); err != nil {
		return err
	}
	if _, ok := s.Root.Content(); ok || s.Root.Base == "" {
		return d.checkBaseOf(s.Root, "the root disk of VM "+s.ID)
	}
	f, err := os.Open(s.Root.Base)
	if err != nil {
		return fault(vm.CodeOperationFailed, err, "the base image of VM %s cannot be read", s.ID)
	}
	return f.Close()
}
