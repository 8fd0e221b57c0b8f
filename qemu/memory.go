package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"vmand/vm"
)

// What a QEMU process needs besides the guest's memory, in MiB: its own heap
// and, under TCG, the translated code (measured: 30 and 110 with an idle guest).
const (
	overheadKVM = 64
	overheadTCG = 128
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

// checkFree reports a process that a VM has already. One that has just ended has
// let go of everything when it returns nil.
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

// admitMemory reports whether a VM fits into the host's memory. available is in
// MiB.
func admitMemory(s vm.Spec, available int) error {
	overhead := overheadTCG
	if s.Accel == vm.KVM {
		overhead = overheadKVM
	}
	if s.RAMMiB+overhead <= available {
		return nil
	}
	f := fault(vm.CodeInsufficientMemory, nil, "VM %s needs %d MiB of memory (%d for the guest, %d for QEMU) and the host has %d MiB available",
		s.ID, s.RAMMiB+overhead, s.RAMMiB, overhead, available)
	f.Hint = "stop another VM or use a smaller template"
	return f
}

// checkFiles reports the first file of a VM that is missing.
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
		return fault(vm.CodeOperationFailed, err, "the image VM %s is based on cannot be read", s.ID)
	}
	return f.Close()
}

// memAvailable returns the memory in MiB that the host can give without
// swapping (proc(5), MemAvailable).
func memAvailable() (int, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:")
		if !ok {
			continue
		}
		kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(rest, "kB")))
		if err != nil {
			return 0, fmt.Errorf("read /proc/meminfo: %w", err)
		}
		return kib / 1024, nil
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}
