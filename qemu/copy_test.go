package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmand/vm"
)

// write writes bytes at an offset of the disk in a qcow2 file of vmand's.
func (h *testHost) write(path string, at int64, b []byte) {
	h.t.Helper()
	raw := filepath.Join(h.t.TempDir(), "raw")
	img(h.t, "convert", "-f", "qcow2", "-O", "raw", path, raw)
	f, err := os.OpenFile(raw, os.O_WRONLY, 0)
	must(h.t, err)
	_, err = f.WriteAt(b, at)
	must(h.t, errors.Join(err, f.Close()))
	img(h.t, "convert", "-n", "-f", "raw", "-O", "qcow2", raw, path)
}

// read returns the bytes at an offset of the disk in a qcow2 image without a base.
func (h *testHost) read(path string, at int64, n int) []byte {
	h.t.Helper()
	raw := filepath.Join(h.t.TempDir(), "raw")
	img(h.t, "convert", "-f", "qcow2", "-O", "raw", path, raw)
	f, err := os.Open(raw)
	must(h.t, err)
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, at)
	must(h.t, err)
	return b
}

// A progress records the reports of an operation.
type progress struct{ all [][2]int64 }

func (p *progress) tell(done, total int64) { p.all = append(p.all, [2]int64{done, total}) }

// mustBeOf fails the test if the progress did not rise to the end of a disk of total
// bytes.
func (p *progress) mustBeOf(t testing.TB, total int64) {
	t.Helper()
	rising := slices.IsSortedFunc(p.all, func(a, b [2]int64) int { return int(a[0] - b[0]) })
	if len(p.all) == 0 || p.all[len(p.all)-1] != [2]int64{total, total} || !rising {
		t.Errorf("the progress was %v, of %d", p.all, total)
	}
}

func TestACopyOfADiskIncludesItsBase(t *testing.T) {
	h, ctx := newHost(t), t.Context()
	raw := writeGuest(t, h.dir, guestSaysHi)
	c := h.bringFile(converted(t, raw, "vmdk"))
	base := overlay(c, 8)
	must(t, h.CreateDisk(ctx, "first", base, nil, nil))
	h.write(h.layout.inState(dataDisk("first")), 3*mib+512, []byte("its own"))
	must(t, h.CreateVM(ctx, "first", base, nil, nil))
	h.write(h.layout.inState(vmRootDisk("first")), 3*mib+512, []byte("of root"))
	operators := h.create("operators", guestSaysHi)
	if os.Geteuid() == 0 {
		from := vm.CopySource{Resource: vm.VMResource("operators"), File: operators.Root}
		err := h.CreateDisk(ctx, "denied", vm.DiskFile{SizeMiB: 8}, &from, nil)
		var f *vm.Fault
		if !errors.As(err, &f) || f.Code != vm.CodeOperationFailed || !strings.Contains(f.Hint, "chmod o+r "+operators.Root.Base) {
			t.Errorf("an image that QEMU's user cannot read: %v", err)
		}
	}
	must(t, os.Chmod(operators.Root.Base, 0o644))
	for name, s := range map[string]struct {
		from vm.CopySource
		own  string
		size int64
	}{
		"disk":    {vm.CopySource{Resource: vm.DiskResource("first"), File: base}, "its own", 8},
		"root":    {vm.CopySource{Resource: vm.VMResource("first"), File: base}, "of root", 8},
		"theirs":  {vm.CopySource{Resource: vm.VMResource("operators"), File: operators.Root}, "", 8},
		"content": {vm.CopySource{File: base}, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			var p progress
			must(t, h.CreateDisk(ctx, name, vm.DiskFile{SizeMiB: 16}, &s.from, p.tell))
			p.mustBeOf(t, s.size*mib)
			must(t, h.CreateVM(ctx, name, vm.DiskFile{SizeMiB: 16}, &s.from, nil))
			for _, file := range []string{dataDisk(name), vmRootDisk(name)} {
				path := h.layout.inState(file)
				if i := infoOf(t, path); i.Size != 16*mib || i.Backing != "" || i.Format != formatQcow2 {
					t.Errorf("%s is %+v", file, i)
				}
				img(t, "check", "-q", path)
				if got := h.read(path, 3*mib+512, len("its own")); string(bytes.Trim(got, "\x00")) != s.own {
					t.Errorf("%s holds %q; want %q", file, got, s.own)
				}
			}
			spec := operators
			spec.ID, spec.Root = name, vm.DiskFile{SizeMiB: 16}
			h.startSpec(spec)
			h.awaitSerial(name, "hi\n")
			mustFail(t, h.CreateDisk(ctx, "more", vm.DiskFile{SizeMiB: 16}, &vm.CopySource{Resource: vm.VMResource(name), File: spec.Root}, nil), vm.CodeState)
			must(t, h.Shutdown(ctx, name, vm.StopOptions{Force: true}, nil))
			if s.size > 1 {
				mustFail(t, h.CreateDisk(ctx, "less", vm.DiskFile{SizeMiB: s.size - 1}, &s.from, nil), vm.CodeInvalid)
			}
		})
	}
}

func TestAnImageIsMadeOfADisk(t *testing.T) {
	h, ctx := newHost(t), t.Context()
	root := overlay(h.bringFile(writeGuest(t, h.dir, guestSaysHi)), 8)
	s := h.createOn("web", root)
	from := vm.CopySource{Resource: vm.VMResource("web"), File: root}
	var p progress
	var ready vm.ImageContent
	c, err := h.ImageOfDisk(ctx, from, vm.Import{Progress: p.tell, Ready: func(c vm.ImageContent) error { ready = c; return nil }})
	if err != nil || c != ready || c.Layout != vm.FormatQcow2 || c.VirtualMiB != 8 {
		t.Fatalf("the content is %+v, %v; Ready got %+v", c, err, ready)
	}
	p.mustBeOf(t, 8*mib)
	must(t, h.account.CanRead(h.layout.content(c.SHA256)))
	if i := infoOf(t, h.layout.content(c.SHA256)); i.Backing != "" {
		t.Errorf("the image is based on %s", i.Backing)
	}
	h.startSpec(h.createOn("copy", overlay(c, 16)))
	h.awaitSerial("copy", "hi\n")

	h.startSpec(s)
	_, err = h.ImageOfDisk(ctx, from, vm.Import{})
	mustFail(t, err, vm.CodeState)
	must(t, h.Shutdown(ctx, "web", vm.StopOptions{Force: true}, nil))
	full := errors.New("full")
	_, err = h.ImageOfDisk(ctx, from, vm.Import{Ready: func(vm.ImageContent) error { return fault(vm.CodeInUse, full, "no") }})
	mustFail(t, err, vm.CodeInUse)
	small := newDriver(t, Options{Images: ImageOptions{MaxBytes: mib}})
	must(t, small.CreateDisk(ctx, "data", vm.DiskFile{SizeMiB: 8}, nil, nil))
	h.write(small.layout.inState(dataDisk("data")), 0, bytes.Repeat([]byte("data"), mib/2))
	_, err = small.ImageOfDisk(ctx, vm.CopySource{Resource: vm.DiskResource("data"), File: vm.DiskFile{SizeMiB: 8}}, vm.Import{})
	mustFail(t, err, vm.CodeTooLarge)
	for d, want := range map[*Driver]int{h.Driver: 2, small: 0} {
		if left, err := os.ReadDir(d.layout.inState(imagesDir)); err != nil || len(left) != want {
			t.Errorf("the directory of images holds %v, %v", left, err)
		}
	}
}

func TestInvalidCopySourcesAreRefused(t *testing.T) {
	needQEMU(t)
	d, ctx := newDriver(t, Options{}), t.Context()
	plain := vm.DiskFile{SizeMiB: 8}
	must(t, d.CreateDisk(ctx, "data", plain, nil, nil))
	must(t, d.CreateDisk(ctx, "forged", plain, nil, nil))
	img(t, "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", d.layout.inState(dataDisk("forged")))
	must(t, d.CreateDisk(ctx, "held", plain, nil, nil))
	held, err := d.state.OpenFile(dataDisk("held"), os.O_RDWR, 0)
	must(t, err)
	defer held.Close()
	lockFile(t, held)
	for name, c := range map[string]struct {
		from vm.CopySource
		want vm.Code
	}{
		"a file of the host":          {vm.CopySource{File: vm.DiskFile{Base: "/etc/passwd", BaseFormat: "raw"}}, vm.CodeInvalid},
		"missing content":             {vm.CopySource{File: vm.DiskFile{Base: vm.ContentBase(strings.Repeat("0", 64))}}, vm.CodeOperationFailed},
		"no disk":                     {vm.CopySource{Resource: vm.DiskResource("none"), File: plain}, vm.CodeNotFound},
		"no VM":                       {vm.CopySource{Resource: vm.VMResource("none"), File: plain}, vm.CodeNotFound},
		"no name":                     {vm.CopySource{Resource: vm.DiskResource("../data"), File: plain}, vm.CodeInvalid},
		"a disk that names another":   {vm.CopySource{Resource: vm.DiskResource("forged"), File: plain}, vm.CodeOperationFailed},
		"a disk that should name one": {vm.CopySource{Resource: vm.DiskResource("data"), File: vm.DiskFile{SizeMiB: 8, Base: "/x", BaseFormat: "raw"}}, vm.CodeOperationFailed},
		"a disk in use":               {vm.CopySource{Resource: vm.DiskResource("held"), File: plain}, vm.CodeState},
	} {
		if err := d.CreateDisk(ctx, "copy", vm.DiskFile{SizeMiB: 64}, &c.from, nil); codeOf(err) != c.want {
			t.Errorf("%s: %v, want code %s", name, err, c.want)
		}
		_, err := d.ImageOfDisk(ctx, c.from, vm.Import{})
		mustFail(t, err, c.want)
	}
	for _, name := range []string{"data", "forged", "held"} {
		must(t, d.state.Remove(dataDisk(name)))
	}
	if left := filesBelow(t, d); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestACopyThatIsCancelledEndsAtOnceAndLeavesNothing(t *testing.T) {
	pid := filepath.Join(tempDir(t), "pid")
	must(t, os.WriteFile(pid, nil, 0o666))
	must(t, os.Chmod(pid, 0o666))
	d := newDriver(t, Options{ImgBinary: fakeTool(t, "echo '    (12.50/100%)'; echo $$ >"+pid+"; exec sleep 1000")})
	must(t, d.CreateDisk(t.Context(), "data", vm.DiskFile{SizeMiB: 8}, nil, nil))
	from := vm.CopySource{Resource: vm.DiskResource("data"), File: vm.DiskFile{SizeMiB: 8}}
	for name, make := range map[string]func(context.Context, func(done, total int64)) error{
		"a disk": func(ctx context.Context, p func(done, total int64)) error {
			return d.CreateDisk(ctx, "copy", vm.DiskFile{SizeMiB: 8}, &from, p)
		},
		"a VM": func(ctx context.Context, p func(done, total int64)) error {
			return d.CreateVM(ctx, "copy", vm.DiskFile{SizeMiB: 8}, &from, p)
		},
		"an image": func(ctx context.Context, p func(done, total int64)) error {
			_, err := d.ImageOfDisk(ctx, from, vm.Import{Progress: p})
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		err := make(ctx, func(done, total int64) {
			if done != mib || total != 8*mib {
				t.Errorf("%s: the progress is %d of %d", name, done, total)
			}
			cancel()
		})
		mustFail(t, err, vm.CodeCancelled)
		f, err := os.Open(pid)
		must(t, err)
		b, err := io.ReadAll(f)
		must(t, errors.Join(err, f.Close()))
		if _, err := os.Stat("/proc/" + strings.TrimSpace(string(b))); len(b) == 0 || !os.IsNotExist(err) {
			t.Errorf("%s: the process %q still runs: %v", name, b, err)
		}
		if left := filesBelow(t, d); len(left) != 1 {
			t.Errorf("%s: left: %q", name, left)
		}
	}
}
