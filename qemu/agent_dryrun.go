package qemu

import (
	"context"
	"io"

	"vmand/vm"
)

// Agent implements [vm.Guests]: a VM of a dry run has no guest.
func (d *DryRun) Agent(id string) vm.Agent { return vm.Agent{State: vm.AgentAbsent} }

func noGuest(id string) error {
	return fault(vm.CodeAgentUnavailable, nil, "no guest agent runs in VM %s: this is a dry run", id)
}

// GuestInfo implements [vm.Guests].
func (d *DryRun) GuestInfo(ctx context.Context, id string) (vm.GuestInfo, error) {
	return vm.GuestInfo{}, noGuest(id)
}

// Exec implements [vm.Guests].
func (d *DryRun) Exec(ctx context.Context, id string, c vm.GuestCommand) (vm.GuestResult, error) {
	return vm.GuestResult{}, noGuest(id)
}

// ReadFile implements [vm.Guests].
func (d *DryRun) ReadFile(ctx context.Context, id, path string, w io.Writer, limit int64) error {
	return noGuest(id)
}

// WriteFile implements [vm.Guests].
func (d *DryRun) WriteFile(ctx context.Context, id, path string, r io.Reader) error {
	return noGuest(id)
}

// SetPassword implements [vm.Guests].
func (d *DryRun) SetPassword(ctx context.Context, id, user, password string) error {
	return noGuest(id)
}

// Trim implements [vm.Guests].
func (d *DryRun) Trim(ctx context.Context, id string) error { return noGuest(id) }

// SetClock implements [vm.Guests].
func (d *DryRun) SetClock(ctx context.Context, id string) (vm.ClockCheck, error) {
	return vm.ClockCheck{}, noGuest(id)
}

// Mounts implements [vm.Guests].
func (d *DryRun) Mounts(ctx context.Context, disk vm.Disk) ([]vm.GuestMount, error) {
	return nil, noGuest(disk.VMID)
}

// Freeze implements [vm.Guests].
func (d *DryRun) Freeze(ctx context.Context, id string, mountPoints ...string) (int, error) {
	return 0, noGuest(id)
}

// Thaw implements [vm.Guests].
func (d *DryRun) Thaw(ctx context.Context, id string) error { return noGuest(id) }
