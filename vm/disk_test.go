package vm_test

import (
	"fmt"
	"testing"

	"vmand/vm"
)

func TestSettleDisk(t *testing.T) {
	has := vm.Observation{PID: 7, Status: "running", Plugged: []string{"d"}}
	hasNot := vm.Observation{PID: 7, Status: "running", Plugged: []string{}}
	mute := vm.Observation{PID: 7}
	off := vm.Observation{}
	tests := []struct {
		state vm.DiskState
		seen  vm.Observation
		want  vm.DiskVerdict
	}{
		{vm.DiskCreating, off, vm.DiskVerdict{State: vm.DiskCreating, Remove: true}},
		{vm.DiskAvailable, off, vm.DiskVerdict{State: vm.DiskAvailable}},
		{vm.DiskAttached, off, vm.DiskVerdict{State: vm.DiskAttached}},
		{vm.DiskAttached, has, vm.DiskVerdict{State: vm.DiskAttached}},
		{vm.DiskAttaching, has, vm.DiskVerdict{State: vm.DiskAttached}},
		{vm.DiskAttaching, hasNot, vm.DiskVerdict{State: vm.DiskAvailable, Detach: true}},
		{vm.DiskAttaching, mute, vm.DiskVerdict{State: vm.DiskAttaching}},
		{vm.DiskAttaching, off, vm.DiskVerdict{State: vm.DiskAvailable, Detach: true}},
		{vm.DiskDetaching, has, vm.DiskVerdict{State: vm.DiskDetaching, Unplug: true}},
		{vm.DiskDetaching, hasNot, vm.DiskVerdict{State: vm.DiskAvailable, Detach: true}},
		{vm.DiskDetaching, mute, vm.DiskVerdict{State: vm.DiskDetaching}},
		{vm.DiskDetaching, off, vm.DiskVerdict{State: vm.DiskAvailable, Detach: true}},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s with %+v", tt.state, tt.seen), func(t *testing.T) {
			if got := vm.SettleDisk(vm.Disk{ID: "d", State: tt.state, VMID: "v"}, tt.seen); got != tt.want {
				t.Errorf("got %+v; want %+v", got, tt.want)
			}
		})
	}
}

func TestSlot(t *testing.T) {
	for mountPoint, want := range map[string]int{
		"/dev/sdb":    1,
		"/dev/vdz":    25,
		"/dev/xvdc":   2,
		"/dev/sda":    0,
		"/dev/sdB":    0,
		"sdb":         0,
		"":            0,
		"/dev/sdbb":   0,
		"/dev/sdb\n":  0,
		"/dev/../sdb": 0,
	} {
		if lun, ok := vm.Slot(mountPoint); lun != want || ok != (want != 0) {
			t.Errorf("Slot(%q) = %d, %t; want %d", mountPoint, lun, ok, want)
		}
	}
}
