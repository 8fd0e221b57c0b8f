package qemu

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"vmand/vm"
)

// disc writes an ISO image from which a BIOS boots a guest of guest_test.go.
func disc(t testing.TB, guest string) string {
	t.Helper()
	dir := t.TempDir()
	workspace := filepath.Join(dir, "files")
	must(t, os.Mkdir(workspace, 0o755))
	sector := make([]byte, isoSector)
	copy(sector, guest)
	must(t, os.WriteFile(filepath.Join(workspace, "boot.bin"), sector, 0o644))
	must(t, os.WriteFile(filepath.Join(workspace, "z"), []byte("z"), 0o644))
	f, err := os.Create(filepath.Join(dir, "disc.iso"))
	must(t, err)
	defer f.Close()
	iso, err := iso9660.Create(file.New(f, false), 0, 0, isoSector, workspace)
	must(t, err)
	boot := &iso9660.ElToritoEntry{Platform: iso9660.BIOS, Emulation: iso9660.NoEmulation, BootFile: "/boot.bin"}
	must(t, iso.Finalize(iso9660.FinalizeOptions{
		RockRidge:        true,
		VolumeIdentifier: "DISC",
		ElTorito:         &iso9660.ElTorito{Entries: []*iso9660.ElToritoEntry{boot}},
	}))
	return f.Name()
}

// guestSaysCD is guestSaysHi with the output "cd".
var guestSaysCD = strings.NewReplacer("\x68", "c", "\x69", "d").Replace(guestSaysHi)

func TestTheBootIndexChoosesTheBootDevice(t *testing.T) {
	h := newHost(t)
	cd := h.bringFile(disc(t, guestSaysCD))
	if cd.Layout != vm.FormatISO {
		t.Fatalf("the disc is %+v", cd)
	}
	for id, c := range map[string]struct {
		index int
		says  string
	}{
		"disc":  {vm.RootBootIndex - 1, "cd\n"},
		"disk":  {vm.RootBootIndex + 1, "hi\n"},
		"never": {0, "hi\n"},
	} {
		s := h.create(id, guestSaysHi)
		s.CDROMs = []vm.CDROM{{ID: "cd-2", Image: "disc", SHA256: cd.SHA256, BootIndex: c.index}}
		h.startSpec(s)
		h.awaitSerial(id, c.says)
		if got := h.serialLog(id); strings.Contains(got, "hi") && strings.Contains(got, "cd") {
			t.Errorf("%s: both disks have booted: %q", id, got)
		}
	}
	// An empty root disk cannot boot, so the disc does.
	s := h.createOn("empty", vm.DiskFile{SizeMiB: 8})
	s.CDROMs = []vm.CDROM{{ID: "cd-1", Image: "disc", SHA256: cd.SHA256, BootIndex: 99}}
	h.startSpec(s)
	h.awaitSerial("empty", "cd\n")
}

// drives returns the ids and the files of a VM's CD-ROM drives, from its monitor.
func (h *testHost) drives(id string) map[string]string {
	h.t.Helper()
	s, err := h.live(id)
	must(h.t, err)
	has, err := s.cdroms(h.t.Context())
	must(h.t, err)
	all := map[string]string{}
	for id, d := range has {
		if !d.device {
			h.t.Errorf("drive %s is half plugged: %+v", id, d)
		}
		all[id] = d.file
	}
	return all
}

func TestDrivesArePluggedAndUnpluggedWhileAVMRuns(t *testing.T) {
	for name, c := range map[string]struct {
		guest  string
		before func(h *testHost)
	}{
		"running":  {guestDeaf, func(h *testHost) { h.awaitStatus("web", vm.StatusRunning) }},
		"paused":   {guestDeaf, func(h *testHost) { must(h.t, h.Pause(h.t.Context(), "web")) }},
		"panicked": {guestPanics, func(h *testHost) { h.awaitStatus("web", "guest-panicked") }},
	} {
		t.Run(name, func(t *testing.T) {
			h, ctx := newHost(t), t.Context()
			first, second := h.content(rawImage("first")), h.content(rawImage("second"))
			s := h.create("web", c.guest)
			must(t, h.WriteSeed(ctx, "web", map[string][]byte{"meta-data": []byte("instance-id: 1\n")}))
			drive := func(id, content string) vm.CDROM { return vm.CDROM{ID: id, Image: "disc", SHA256: content} }
			s.CDROMs = []vm.CDROM{{ID: vm.SeedCDROM}, drive("cd-3", first)}
			h.startSpec(s)
			c.before(h)
			for _, want := range [][]vm.CDROM{
				s.CDROMs, // nothing to do
				{{ID: vm.SeedCDROM}, drive("cd-1", first), drive("cd-2", first), drive("cd-3", second), drive("cd-4", second)},
				{drive("cd-1", second), drive("cd-2", first)}, // one drive with other content, one with the same
				{},
				{{ID: vm.SeedCDROM}},
				nil,
			} {
				for range 2 {
					must(t, h.SetCDROMs(ctx, "web", want))
					if o := h.Observe(ctx, "web"); o.CDROMs == nil || !slices.Equal(o.CDROMs, idsOf(want)) {
						t.Fatalf("the drives are %q, want %+v", o.CDROMs, want)
					}
				}
				files := h.drives("web")
				for _, d := range want {
					if got := files[d.ID]; got != cdromFile("web", d, h.layout) {
						t.Errorf("drive %s holds %s", d.ID, got)
					}
				}
			}
			if got := h.nodeNames("web"); len(got) != 4 {
				t.Errorf("nodes are left: %q", got)
			}
			if got := h.plugged("web"); len(got) != 0 {
				t.Errorf("drives are listed as disks: %q", got)
			}
		})
	}
}

func TestAHalfPluggedDriveIsCompletedOrRemoved(t *testing.T) {
	h, ctx := newHost(t), t.Context()
	content := h.content(rawImage("disc"))
	h.start("web", guestDeaf)
	s, err := h.live("web")
	must(t, err)
	one, two := vm.CDROM{ID: "cd-1", SHA256: content}, vm.CDROM{ID: "cd-2", SHA256: content}
	must(t, s.blockdevAdd(ctx, cdromNodes("web", one, h.layout)))
	must(t, s.blockdevAdd(ctx, cdromNodes("web", two, h.layout)))
	must(t, h.SetCDROMs(ctx, "web", []vm.CDROM{two}))
	if got := h.drives("web"); len(got) != 1 || got["cd-2"] != h.layout.content(content) {
		t.Errorf("the drives are %v", got)
	}
	// A drive with deleted content stays, and the other drives can change.
	lost := h.content(rawImage("lost"))
	three := vm.CDROM{ID: "cd-3", SHA256: lost}
	must(t, h.SetCDROMs(ctx, "web", []vm.CDROM{two, three}))
	must(t, h.DeleteImage(ctx, lost))
	must(t, h.SetCDROMs(ctx, "web", []vm.CDROM{three}))
	must(t, h.SetCDROMs(ctx, "web", []vm.CDROM{two}))
	mustFail(t, h.SetCDROMs(ctx, "web", []vm.CDROM{two, three}), vm.CodeOperationFailed)
	// The first drive stays, and QEMU refuses the second: its address is in use.
	taken, err := cdromSCSI(vm.CDROM{ID: "cd-3", SHA256: content})
	must(t, err)
	taken.ID, taken.Drive = "other", ""
	must(t, s.deviceAdd(ctx, taken))
	mustFail(t, h.SetCDROMs(ctx, "web", []vm.CDROM{one, two, {ID: "cd-3", SHA256: content}}), vm.CodeOperationFailed)
	if got := h.drives("web"); len(got) != 2 {
		t.Errorf("the drives are %v", got)
	}
}

func TestInvalidDrivesAreRefused(t *testing.T) {
	h, ctx := newHost(t), t.Context()
	content := h.content(rawImage("disc"))
	s := h.create("web", guestDeaf)
	s.CDROMs = []vm.CDROM{{ID: "cd-1", SHA256: content}}
	mustFail(t, h.SetCDROMs(ctx, "web", s.CDROMs), vm.CodeState)
	h.launch(s, "") // as Start does, without the last step
	h.awaitStatus("web", vm.StatusPrelaunch)
	mustFail(t, h.SetCDROMs(ctx, "web", nil), vm.CodeUnavailable)
	must(t, h.SetCDROMs(ctx, "web", s.CDROMs))
	for what, d := range map[string]vm.CDROM{
		"missing content":            {ID: "cd-2", Image: "gone", SHA256: strings.Repeat("00", 32)},
		"a seed that does not exist": {ID: vm.SeedCDROM},
	} {
		if err := h.SetCDROMs(ctx, "web", append(s.CDROMs, d)); codeOf(err) != vm.CodeOperationFailed {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, id := range []string{"cd-0", "cd-5", "cd-", "cd-01", "1", "disk"} {
		mustFail(t, h.SetCDROMs(ctx, "web", []vm.CDROM{{ID: id, SHA256: content}}), vm.CodeInvalid)
	}
	if got := h.drives("web"); len(got) != 1 {
		t.Errorf("the drives are %v", got)
	}
}
