package qemu

import (
	"fmt"
	"slices"
	"testing"

	"vmand/vm"
)

func (h *testHost) plugged(id string) []string {
	h.t.Helper()
	o := h.Observe(h.t.Context(), id)
	if o.Plugged == nil {
		h.t.Fatalf("the plugged disks of VM %s are unknown: %+v", id, o)
	}
	return o.Plugged
}

func TestADiskIsPluggedAndUnpluggedInEveryState(t *testing.T) {
	for name, c := range map[string]struct {
		guest  string
		before func(h *testHost)
	}{
		"running":  {guestDeaf, func(h *testHost) { h.awaitStatus("web", vm.StatusRunning) }},
		"booting":  {guestSaysHi, func(*testHost) {}},
		"panicked": {guestPanics, func(h *testHost) { h.awaitStatus("web", "guest-panicked") }},
		"off":      {guestPowersOff, func(h *testHost) { h.awaitStatus("web", vm.StatusShutdown) }},
		"paused": {guestDeaf, func(h *testHost) {
			if err := h.Pause(h.t.Context(), "web"); err != nil {
				h.t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.start("web", c.guest)
			disk := h.disk("data", "web", "/dev/sdb")
			c.before(h)
			for range 2 {
				for range 2 { // the second time there is nothing to do
					if err := h.AttachDisk(t.Context(), disk); err != nil {
						t.Fatal(err)
					}
				}
				if got := h.plugged("web"); !slices.Equal(got, []string{"data"}) {
					t.Fatalf("plugged: %q", got)
				}
				for range 2 {
					if err := h.DetachDisk(t.Context(), disk); err != nil {
						t.Fatal(err)
					}
				}
				if got := h.plugged("web"); len(got) != 0 {
					t.Fatalf("still plugged: %q", got)
				}
			}
			if err := h.DeleteDisk(t.Context(), "data"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestADetachSucceedsIfQEMUDies(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	disk := h.disk("data", "web", "/dev/sdb")
	if err := h.AttachDisk(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	h.suspend("web") // so that it dies with the command in progress
	detached := make(chan error, 1)
	go func() { detached <- h.DetachDisk(t.Context(), disk) }()
	if err := h.kill("web"); err != nil {
		t.Fatal(err)
	}
	if err := <-detached; err != nil {
		t.Errorf("detached: %v", err)
	}
}

func TestADiskOfTheCommandLineIsUnplugged(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	s.Disks = []vm.Disk{h.disk("data", "web", "/dev/sdb"), h.disk("logs", "web", "/dev/sdd")}
	h.startSpec(s)
	if err := h.DetachDisk(t.Context(), s.Disks[0]); err != nil {
		t.Fatal(err)
	}
	if got := h.plugged("web"); !slices.Equal(got, []string{"logs"}) {
		t.Errorf("plugged: %q", got)
	}
}

func TestAVMHasRoomForAllItsDisks(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	for i := range vm.MaxDisks {
		disk := h.disk(fmt.Sprintf("a-disk-of-20-chars%02d", i), "web", fmt.Sprintf("/dev/sd%c", 'b'+i))
		if err := h.AttachDisk(t.Context(), disk); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(h.plugged("web")); n != vm.MaxDisks {
		t.Errorf("%d disks are plugged", n)
	}
}

func TestRefusedAttachLeavesNothing(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	first, second := h.disk("first", "web", "/dev/sdb"), h.disk("second", "web", "/dev/sdb")
	if err := h.AttachDisk(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if err := h.AttachDisk(t.Context(), second); codeOf(err) != vm.CodeOperationFailed {
		t.Errorf("a second disk in the same slot: %v", err)
	}
	s, err := h.live("web")
	if err != nil {
		t.Fatal(err)
	}
	if has, err := s.hasNode(t.Context(), diskNode("second")); has || err != nil {
		t.Errorf("a block node is left: %v", err)
	}
	second.MountPoint = "/dev/sdc"
	if err := h.AttachDisk(t.Context(), second); err != nil {
		t.Errorf("in its own slot: %v", err)
	}
	if err := h.AttachDisk(t.Context(), vm.Disk{ID: "gone", VMID: "web", MountPoint: "/dev/sdd"}); codeOf(err) != vm.CodeOperationFailed {
		t.Errorf("a disk without a file: %v", err)
	}
}

func TestInterruptedAttachIsFinishedByTheNext(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	disk := h.disk("data", "web", "/dev/sdb")
	s, err := h.live("web")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.blockdevAdd(t.Context(), diskNodes(disk, h.layout)); err != nil {
		t.Fatal(err)
	}
	if err := h.AttachDisk(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	if got := h.plugged("web"); !slices.Equal(got, []string{"data"}) {
		t.Errorf("plugged: %q", got)
	}
}

func TestADiskIsNotUnpluggedBeforeTheGuestRuns(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	s.Disks = []vm.Disk{h.disk("data", "web", "/dev/sdb")}
	h.launch(s, "") // as Start does, without the last step
	h.awaitStatus("web", vm.StatusPrelaunch)
	if err := h.DetachDisk(t.Context(), s.Disks[0]); codeOf(err) != vm.CodeUnavailable {
		t.Errorf("got %v", err)
	}
	if got := h.plugged("web"); !slices.Equal(got, []string{"data"}) {
		t.Errorf("plugged: %q", got)
	}
}

func TestADiskOfAVMThatDoesNotRunIsNotPlugged(t *testing.T) {
	h := newHost(t)
	disk := h.disk("data", "web", "/dev/sdb")
	if err := h.AttachDisk(t.Context(), disk); codeOf(err) != vm.CodeState {
		t.Errorf("attach: %v", err)
	}
	if err := h.DetachDisk(t.Context(), disk); err != nil {
		t.Errorf("detach: %v", err)
	}
}

func TestADiskGrowsPluggedOrNotAndNeverShrinks(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	disk := h.disk("data", "web", "/dev/sdb")
	size := int64(16)
	grow := func(when string) {
		t.Helper()
		size += 16
		if err := h.ResizeDisk(t.Context(), disk, size); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if got, err := h.DiskSize(t.Context(), "data"); got != size || err != nil {
			t.Errorf("%s: the disk has %d MiB, %v; want %d", when, got, err, size)
		}
		if err := h.ResizeDisk(t.Context(), disk, size); err != nil {
			t.Errorf("%s, to the present size: %v", when, err)
		}
		if err := h.ResizeDisk(t.Context(), disk, size-1); codeOf(err) != vm.CodeInvalid {
			t.Errorf("%s, smaller: %v", when, err)
		}
	}
	grow("not plugged")
	if err := h.AttachDisk(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	grow("plugged")
	if err := h.Pause(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	grow("paused")
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil); err != nil {
		t.Fatal(err)
	}
	grow("stopped")
	if err := h.ResizeDisk(t.Context(), vm.Disk{ID: "gone"}, 32); codeOf(err) != vm.CodeNotFound {
		t.Errorf("a disk without a file: %v", err)
	}
}
