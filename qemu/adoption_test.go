package qemu

import (
	"os"
	"os/exec"
	"testing"

	"vmand/vm"
)

func TestAnUnrecordedVMIsAdopted(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	stopped := func() {
		t.Helper()
		if known, root, err := h.AdoptVM(t.Context(), "web"); known != "" || root != s.Root || err != nil {
			t.Errorf("stopped: %q, %+v, %v; want %+v", known, root, err, s.Root)
		}
	}
	stopped()
	h.startSpec(s)
	h.reopen()
	if known, root, err := h.AdoptVM(t.Context(), "web"); known != s.UUID || root != s.Root || err != nil {
		t.Errorf("running: %q, %+v, %v; want %q, %+v", known, root, err, s.UUID, s.Root)
	}
	must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{}, nil))
	stopped()
	for _, id := range []string{"none", "..", ""} {
		_, _, err := h.AdoptVM(t.Context(), id)
		mustFail(t, err, vm.CodeNotFound)
	}
}

func TestAnUnrecordedVMWithoutAUUIDIsNotAdopted(t *testing.T) {
	f := newFakeHost(t, fakeQEMU(nil))
	must(t, f.CreateVM(t.Context(), "web", vm.DiskFile{SizeMiB: 16}, nil, nil))
	if known, _, err := f.AdoptVM(t.Context(), "web"); known != fakeUUID || err != nil {
		t.Errorf("AdoptVM returns the UUID %q, %v", known, err)
	}
	must(t, os.WriteFile(f.layout.inRun("web", uuidSuffix), []byte("00000000-0000-0000-0000-000000000000\n"), 0o600))
	f.server.HangUp()
	await(t, "the change is seen", func() bool {
		_, _, err := f.AdoptVM(t.Context(), "web")
		return codeOf(err) == vm.CodeQEMUUnresponsive
	})
}

func TestAForeignRootDiskIsNotAdopted(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{})
	for name, args := range map[string][]string{
		"a relative base":       {"-u", "-F", "raw", "-b", "secret"},
		"a base of vmdk":        {"-u", "-F", "vmdk", "-b", "/secret"},
		"data in another file":  {"-o", "data_file=" + tempDir(t) + "/secret"},
		"a base behind a proxy": {"-u", "-F", "raw", "-b", "nbd://host/secret"},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, d.CreateVM(t.Context(), "web", vm.DiskFile{SizeMiB: 16}, nil, nil))
			path := d.layout.inState(vmRootDisk("web"))
			must(t, os.Remove(path))
			args := append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "16M")
			if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			_, _, err := d.AdoptVM(t.Context(), "web")
			mustFail(t, err, vm.CodeOperationFailed)
			must(t, d.DeleteVM(t.Context(), "web"))
		})
	}
}
