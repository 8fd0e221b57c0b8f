package qemu

import (
	"cmp"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmand/host"
	"vmand/vm"
)

func TestTheNewestMachineTypeIsFound(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  string
	}{
		{[]string{"pc-q35-7.2", "q35", "pc-q35-7.1", "pc-i440fx-7.2", "none"}, "pc-q35-7.2"},
		{[]string{"pc-q35-9.2", "pc-q35-10.0", "pc-q35-2.12"}, "pc-q35-10.0"},
		{[]string{"pc-q35-10.1", "pc-q35-10.0.1", "pc-q35-10.2-alpha"}, "pc-q35-10.1"},
		{[]string{"q35", "microvm"}, ""},
	} {
		if got := newestQ35(c.names); got != c.want {
			t.Errorf("the newest of %q is %q; want %q", c.names, got, c.want)
		}
		slices.Reverse(c.names)
		if got := newestQ35(c.names); got != c.want {
			t.Errorf("the newest of %q is %q; want %q", c.names, got, c.want)
		}
	}
}

// fakeTool writes a program that every user can run.
func fakeTool(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(tempDir(t), "tool")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// newDriver returns a driver for a test that starts no guest. Unless the options name an
// accelerator, it does not probe KVM, which writes to the state directory.
func newDriver(t *testing.T, o Options) *Driver {
	t.Helper()
	o.Accel = cmp.Or(o.Accel, accelTCG)
	dir := tempDir(t)
	o.StateDir, o.RuntimeDir = filepath.Join(dir, "state"), filepath.Join(dir, "run")
	d, err := New(t.Context(), o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestErrorNamesTheMissingQEMUPackage(t *testing.T) {
	d := newDriver(t, Options{Binary: "no-such-qemu", ImgBinary: "/no/such/qemu-img"})
	_, err := d.Platform(t.Context())
	mustName := func(err error, pkg string) {
		t.Helper()
		if codeOf(err) != vm.CodeQEMUUnavailable || !strings.Contains(err.Error(), pkg) {
			t.Errorf("got %v, want the package %s", err, pkg)
		}
	}
	mustName(err, "qemu-system-x86")
	_, err = d.Start(t.Context(), testSpec(), nil)
	mustName(err, "qemu-system-x86")
	must(t, d.CreateDisk(t.Context(), "data", vm.DiskFile{SizeMiB: 16}, nil, nil)) // which needs none
	copied := &vm.CopySource{Resource: vm.DiskResource("data"), File: vm.DiskFile{SizeMiB: 16}}
	mustName(d.ResizeDisk(t.Context(), vm.Disk{ID: "data"}, 32), "qemu-utils")
	mustName(d.CreateDisk(t.Context(), "copy", vm.DiskFile{SizeMiB: 16}, copied, nil), "qemu-utils")
	mustName(d.CreateVM(t.Context(), "web", vm.DiskFile{SizeMiB: 16}, copied, nil), "qemu-utils")
	must(t, d.DeleteDisk(t.Context(), "data"))
	tools := d.CheckTools(t.Context())
	mustName(tools.QEMU.Err, "qemu-system-x86")
	mustName(tools.Img.Err, "qemu-utils")
	if seen, err := d.Survey(t.Context()); err != nil || len(seen.VMFiles)+len(seen.DiskFiles) != 0 {
		t.Errorf("a survey still sees %+v, %v", seen, err)
	}
}

func TestTheErrorOfABrokenQEMUIsQuoted(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"it complains":  {"echo 'libfoo.so: cannot open' >&2; exit 127", "libfoo.so: cannot open"},
		"it ends":       {"exit 3", "exit status 3"},
		"it is no QEMU": {"echo hello >&3; exec sleep 100", "not a QMP server"},
	} {
		d := newDriver(t, Options{Binary: fakeTool(t, c.script)})
		if _, err := d.Platform(t.Context()); codeOf(err) != vm.CodeQEMUUnavailable || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestQEMUIsProbedOnce(t *testing.T) {
	needQEMU(t)
	real, err := host.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	runs := filepath.Join(tempDir(t), "runs")
	if err := os.WriteFile(runs, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(runs, 0o666); err != nil {
		t.Fatal(err)
	}
	tool := fakeTool(t, "echo run >>"+runs+"; exec "+real+` "$@"`)
	d := newDriver(t, Options{Binary: tool, Accel: "tcg"})
	ask := func(d *Driver, want int) {
		t.Helper()
		for range 2 {
			p, err := d.Platform(t.Context())
			if err != nil || p.Version == "" || !strings.HasPrefix(p.Machine, "pc-q35-") || p.Accel != vm.TCG || p.Warning != "" {
				t.Fatalf("got %+v, %v", p, err)
			}
		}
		b, err := os.ReadFile(runs)
		if got := strings.Count(string(b), "run"); got != want || err != nil {
			t.Errorf("QEMU was started %d times; want %d; %v", got, want, err)
		}
	}
	ask(d, 1)
	d.Close()
	again, err := New(t.Context(), d.opts, d.log) // a restart of vmand
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	ask(again, 1)
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(tool, later, later); err != nil { // an upgrade of QEMU
		t.Fatal(err)
	}
	ask(again, 2)
}

func TestTheToolsAreReported(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{Accel: "tcg"})
	for range 2 {
		tools := d.CheckTools(t.Context())
		works := func(tool Tool) bool { return tool.Err == nil && tool.Version != "" }
		if !works(tools.QEMU) || !works(tools.Img) || tools.Accel != vm.TCG {
			t.Errorf("got %+v", tools)
		}
	}
}

func TestAnUnknownAcceleratorIsRefused(t *testing.T) {
	dir := tempDir(t)
	if _, err := New(t.Context(), Options{StateDir: dir + "/s", RuntimeDir: dir + "/r", Accel: "warp"}, testLog(t)); err == nil {
		t.Error("an unknown accelerator was accepted")
	}
}
