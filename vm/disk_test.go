package vm_test

import (
	"errors"
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

func TestPlaceDisk(t *testing.T) {
	at := func(mountPoints ...string) (disks []vm.Disk) {
		for i, m := range mountPoints {
			disks = append(disks, vm.Disk{ID: fmt.Sprintf("disk-%d", i), MountPoint: m})
		}
		return disks
	}
	var full []string
	for letter := 'b'; len(full) < vm.MaxDisks; letter++ {
		full = append(full, "/dev/sd"+string(letter))
	}
	tests := []struct {
		name       string
		mountPoint string
		attached   []vm.Disk
		want       string
		code       vm.Code // of the fault; empty for none
		detail     string
	}{
		{"the first", "", nil, "/dev/sdb", "", ""},
		{"the lowest free one", "", at("/dev/sdd", "/dev/vdb"), "/dev/sdc", "", ""},
		{"a requested one", "/dev/vdz", at("/dev/sdb"), "/dev/vdz", "", ""},
		{"the last free one", "", at(full[1:]...), "/dev/sdb", "", ""},
		{
			"a slot in use under another name", "/dev/xvdb", at("/dev/sdb"), "", vm.CodeInUse,
			"mount point /dev/xvdb of VM web-1 is in use by disk disk-0",
		},
		{
			"not a mount point", "/dev/sda", nil, "", vm.CodeInvalid,
			`/mount_point: "/dev/sda" is not a mount point: use /dev/sdb to /dev/sdz, or the same with vd or xvd`,
		},
		{
			"too many disks", "/dev/sdz", at(full...), "", vm.CodeLimitReached,
			"VM web-1 already has 24 data disks, the maximum",
		},
	}
	for _, tt := range tests {
		got, err := vm.VM{ID: "web-1"}.PlaceDisk(tt.mountPoint, tt.attached)
		var f *vm.Fault
		if errors.As(err, &f); f == nil {
			f = &vm.Fault{}
		}
		if got != tt.want || f.Code != tt.code || f.Detail != tt.detail {
			t.Errorf("%s: got %q, %v; want %q, %s %s", tt.name, got, err, tt.want, tt.code, tt.detail)
		}
	}
}

func TestNewDiskCheck(t *testing.T) {
	tests := []struct {
		name  string
		disk  vm.NewDisk
		field string // of the fault; empty: valid
	}{
		{"a size", vm.NewDisk{SizeMiB: 1}, ""},
		{"the maximum size", vm.NewDisk{SizeMiB: vm.MaxDiskMiB, MountPoint: "/dev/vdc"}, ""},
		{"the size of an image", vm.NewDisk{Image: "debian-12"}, ""},
		{"the size of a disk", vm.NewDisk{FromDisk: "disk-x"}, ""},
		{"no size", vm.NewDisk{}, "/size"},
		{"a negative size", vm.NewDisk{SizeMiB: -1, Image: "debian-12"}, "/size"},
		{"too large", vm.NewDisk{SizeMiB: vm.MaxDiskMiB + 1}, "/size"},
		{"two sources", vm.NewDisk{Image: "debian-12", FromDisk: "disk-x"}, "/from_disk"},
		{"the root disk's place", vm.NewDisk{SizeMiB: 1, MountPoint: "/dev/sda"}, "/mount_point"},
	}
	for _, tt := range tests {
		err := tt.disk.Check()
		var f *vm.Fault
		if errors.As(err, &f); (tt.field == "") != (err == nil) || f != nil && f.Fields[0].Field != tt.field {
			t.Errorf("%s: got %v; want a fault of %q", tt.name, err, tt.field)
		}
	}
}

func TestReleasedDisk(t *testing.T) {
	d := vm.Disk{ID: "disk-x", State: vm.DiskDetaching, VMID: "web-1", MountPoint: "/dev/sdb", Reason: "the guest is busy"}
	want := vm.DiskUpdate{From: vm.DiskDetaching, Disk: vm.Disk{ID: "disk-x", State: vm.DiskAvailable}}
	if got := d.Released(""); got != want {
		t.Errorf("Released = %+v; want %+v", got, want)
	}
}
