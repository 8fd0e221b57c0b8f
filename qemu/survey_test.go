package qemu

import (
	"maps"
	"os"
	"slices"
	"testing"
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
