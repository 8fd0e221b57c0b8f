package qemu

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vmand/vm"
)

func TestASurveySeesProcessesAndFiles(t *testing.T) {
	h := newHost(t)
	h.start("runs", guestDeaf)
	h.create("stopped", guestDeaf)
	h.create("broken", guestDeaf)
	h.disk("data", "", "")
	if err := h.state.Remove(vmRootDisk("broken")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"disks/.data2.qcow2.tmp", "disks/README", "vms/Not-A-Name"} {
		if err := os.WriteFile(h.layout.inState(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	seen, err := h.Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ids := slices.Collect(maps.Keys(seen.VMs)); !slices.Equal(ids, []string{"runs"}) {
		t.Errorf("the survey sees the processes of %q", ids)
	}
	if want := map[string]bool{"runs": true, "stopped": true, "broken": false}; !maps.Equal(seen.VMFiles, want) {
		t.Errorf("the survey sees the VMs %v; want %v", seen.VMFiles, want)
	}
	if want := map[string]int64{"data": 16}; !maps.Equal(seen.DiskFiles, want) {
		t.Errorf("the survey sees the disks %v; want %v", seen.DiskFiles, want)
	}
}

func TestALogOfQEMUIsBounded(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	if err := os.Truncate(h.layout.inState(vmQEMULog("web")), maxQEMULog+1); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Survey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, err := h.state.Stat(vmQEMULog("web")); err != nil || st.Size() != 0 {
		t.Errorf("the log has %d bytes, %v", st.Size(), err)
	}
}

func TestASurveyOfProcessesListsNoFiles(t *testing.T) {
	dir := tempDir(t)
	d := newDryRun(t, dir)
	version := func() string {
		t.Helper()
		v, err := d.FilesVersion(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	empty := version()
	for _, id := range []string{"off", "on", "lost"} {
		if err := d.CreateVM(t.Context(), id, vm.DiskFile{SizeMiB: 1}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	withVMs := version()
	if withVMs == empty {
		t.Errorf("the version is %q with VMs and without", empty)
	}
	for _, id := range []string{"on", "lost"} {
		if _, err := d.Start(t.Context(), vm.Spec{ID: id}, func(string, string) {}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "state", vmRootDisk("lost"))); err != nil {
		t.Fatal(err)
	}
	if v := version(); v != withVMs {
		t.Errorf("version %q after a start, want %q still", v, withVMs)
	}
	if err := d.CreateDisk(t.Context(), "data", vm.DiskFile{SizeMiB: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if v := version(); v == withVMs {
		t.Errorf("the version is %q with a data disk and without", v)
	}
	seen, err := d.SurveyProcesses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]bool{"on": true, "lost": false}; !maps.Equal(seen.VMFiles, want) || len(seen.VMs) != 2 {
		t.Errorf("%d processes, files of VMs %v; want 2 and %v", len(seen.VMs), seen.VMFiles, want)
	}
	if seen.DiskFiles != nil || seen.Images != nil || seen.Storage.SizeMiB == 0 {
		t.Errorf("%+v: want no disks and no images, but the storage", seen)
	}
}
