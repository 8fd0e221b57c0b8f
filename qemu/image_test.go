package qemu

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"vmand/host"
	"vmand/vm"
)

// filesBelow returns the names of all files below the state directory that are those
// of VMs, disks or images.
func filesBelow(t *testing.T, d *Driver) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(d.layout.state, func(path string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(d.layout.state, path); !slices.Contains([]string{".", disksDir, vmsDir, imagesDir, probesFile}, rel) {
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestADiskIsCreatedOnceAndBelongsToQEMU(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{})
	for _, size := range []int64{16, vm.MaxDiskMiB} {
		if err := d.CreateDisk(t.Context(), "data", vm.DiskFile{SizeMiB: size}, nil, nil); err != nil {
			t.Fatal(err)
		}
		if got, err := d.DiskSize(t.Context(), "data"); got != size || err != nil {
			t.Errorf("the disk has %d MiB, %v; want %d", got, err, size)
		}
		if err := d.CreateDisk(t.Context(), "data", vm.DiskFile{SizeMiB: size}, nil, nil); codeOf(err) != vm.CodeExists {
			t.Errorf("once more: %v", err)
		}
		st, err := d.state.Stat(dataDisk("data"))
		if err != nil {
			t.Fatal(err)
		}
		owner := st.Sys().(*syscall.Stat_t)
		if st.Mode().Perm() != 0o600 || int(owner.Uid) != d.account.UID || int(owner.Gid) != d.account.GID {
			t.Errorf("the file has mode %o and belongs to %d:%d", st.Mode().Perm(), owner.Uid, owner.Gid)
		}
		for range 2 {
			if err := d.DeleteDisk(t.Context(), "data"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.DiskSize(t.Context(), "data"); codeOf(err) != vm.CodeNotFound {
			t.Errorf("the size of no disk: %v", err)
		}
	}
	if left := filesBelow(t, d); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestAVMsFilesAreMadeAndRemoved(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{})
	has := func(want bool) {
		t.Helper()
		if got, err := d.HasVM(t.Context(), "web"); got != want || err != nil {
			t.Errorf("HasVM returns %v, %v; want %v", got, err, want)
		}
	}
	has(false)
	if err := d.CreateVM(t.Context(), "web", vm.DiskFile{SizeMiB: 64}, nil, nil); err != nil {
		t.Fatal(err)
	}
	has(true)
	if err := d.CreateVM(t.Context(), "web", vm.DiskFile{SizeMiB: 64}, nil, nil); codeOf(err) != vm.CodeExists {
		t.Errorf("once more: %v", err)
	}
	has(true)
	for range 2 {
		if err := d.DeleteVM(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
	}
	has(false)
	if left := filesBelow(t, d); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestARootDiskIsAnOverlayOfTheBootImage(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{})
	base := writeGuest(t, tempDir(t), guestDeaf)
	if err := os.Chmod(base, 0o600); err != nil { // QEMU's user cannot open it
		t.Fatal(err)
	}
	if err := d.CreateVM(t.Context(), "web", vm.DiskFile{SizeMiB: 32, Base: base, BaseFormat: formatRaw}, nil, nil); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("qemu-img", "info", "--output=json", "-U", d.layout.inState(vmRootDisk("web"))).Output()
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Size    int64  `json:"virtual-size"`
		Backing string `json:"backing-filename"`
		Format  string `json:"backing-filename-format"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	if info.Size != 32*mib || info.Backing != base || info.Format != formatRaw {
		t.Errorf("the root disk is %+v", info)
	}
	for what, c := range map[string]struct {
		root vm.DiskFile
		want vm.Code
	}{
		"smaller than its image": {vm.DiskFile{SizeMiB: 0, Base: base, BaseFormat: formatRaw}, vm.CodeInvalid},
		"an image that changed":  {vm.DiskFile{SizeMiB: 32, Base: base, BaseFormat: formatQcow2}, vm.CodeOperationFailed},
		"a missing image":        {vm.DiskFile{SizeMiB: 32, Base: base + ".gone", BaseFormat: formatRaw}, vm.CodeOperationFailed},
	} {
		if err := d.CreateVM(t.Context(), "other", c.root, nil, nil); codeOf(err) != c.want {
			t.Errorf("%s: %v, want code %s", what, err, c.want)
		}
		if has, err := d.HasVM(t.Context(), "other"); has || err != nil {
			t.Errorf("%s: files are left: %v", what, err)
		}
	}
}

func TestFailedCreationLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string
		want   vm.Code
	}{
		"the disk is full":    {"echo half >\"$8\"; echo 'qemu-img: x: Could not resize file: No space left on device' >&2; exit 1", vm.CodeInsufficientStorage},
		"the quota is used":   {"echo 'qemu-img: x: Disk quota exceeded' >&2; exit 1", vm.CodeInsufficientStorage},
		"it complains":        {"echo 'qemu-img: bad thing' >&2; exit 1", vm.CodeOperationFailed},
		"it says nothing":     {"exit 1", vm.CodeOperationFailed},
		"it takes for ever":   {"sleep 100", vm.CodeUnavailable},
		"another has it open": {"echo 'Is another process using the image [x]?' >&2; exit 1", vm.CodeState},
		"it removes the file": {"rm -f \"$8\"; exit 2", vm.CodeOperationFailed},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t, Options{ImgBinary: fakeTool(t, c.script)})
			must(t, d.CreateDisk(t.Context(), "source", vm.DiskFile{SizeMiB: 16}, nil, nil))
			source := vm.CopySource{Resource: vm.DiskResource("source"), File: vm.DiskFile{SizeMiB: 16}}
			patience := time.Minute
			if c.want == vm.CodeUnavailable {
				patience = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := d.CreateDisk(ctx, "data", vm.DiskFile{SizeMiB: 16}, &source, nil); codeOf(err) != c.want {
				t.Errorf("a disk: %v, want code %s", err, c.want)
			}
			ctx, cancel = context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := d.CreateVM(ctx, "web", vm.DiskFile{SizeMiB: 16}, &source, nil); codeOf(err) != c.want {
				t.Errorf("a VM: %v, want code %s", err, c.want)
			}
			ctx, cancel = context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := d.ImageOfDisk(ctx, source, vm.Import{}); codeOf(err) != c.want && name != "it removes the file" {
				t.Errorf("an image: %v, want code %s", err, c.want)
			}
			must(t, d.DeleteDisk(t.Context(), "source"))
			if left := filesBelow(t, d); len(left) != 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

func TestUnfinishedFilesOfAKilledVmandAreRemoved(t *testing.T) {
	d := newDriver(t, Options{})
	temp := host.TempName(dataDisk("data"))
	if err := d.state.WriteFile(temp, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := New(t.Context(), d.opts, d.log)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if left := filesBelow(t, d); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}
