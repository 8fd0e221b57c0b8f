package manager_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"vmand/vm"
)

const somewhere = "https://example.org/debian.qcow2?token=secret"

func sumOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// fetch imports an image from a URL with the given bytes.
func (w *world) fetch(name, content string) vm.Image {
	w.t.Helper()
	w.driver.Offer(somewhere, []byte(content))
	_, op, err := w.Images.Create(w.t.Context(), vm.NewImage{Name: name, URL: somewhere})
	must(w.t)(err)
	op, err = w.Operations.Wait(w.t.Context(), op.ID)
	must(w.t)(err)
	if op.State != vm.OpSucceeded {
		w.t.Fatalf("the import ended with %+v", op)
	}
	return w.image(name)
}

func (w *world) image(name string) vm.Image {
	w.t.Helper()
	i, err := w.store.Image(w.t.Context(), name)
	must(w.t)(err)
	return i
}

func TestImageFromAURL(t *testing.T) {
	w := newWorld(t)
	i := w.fetch("debian", "the content")
	want := vm.ImageContent{SHA256: sumOf("the content"), Layout: vm.FormatRaw, VirtualMiB: 16, Bytes: 11}
	if i.State != vm.ImageAvailable || i.ImageContent != want || i.Source != "https://example.org/debian.qcow2" {
		t.Errorf("image %+v", i)
	}
	_, content, err := w.Images.Open(t.Context(), "debian")
	must(t)(err)
	if got, err := io.ReadAll(content); string(got) != "the content" || err != nil {
		t.Errorf("content %q, %v", got, err)
	}
	must(t)(content.Close())
	_, _, err = w.Images.Create(t.Context(), vm.NewImage{Name: "debian", URL: somewhere})
	wantCode(t, err, vm.CodeExists, "debian")
	labels := map[string]string{"os": "debian"}
	must(t)(w.Images.Update(t.Context(), "debian", vm.ImageEdits{Labels: &labels}, nil))
	if got := w.image("debian"); got.Labels["os"] != "debian" || got.ImageContent != want {
		t.Errorf("edited image %+v", got)
	}
	must(t)(w.Images.Delete(t.Context(), "debian", nil, false))
	if got := w.driver.Contents(); len(got) != 0 {
		t.Errorf("the contents %q remain, want none", got)
	}
	wantCode(t, w.Images.Delete(t.Context(), "debian", nil, false), vm.CodeNotFound)
}

func TestFailedImportRemovesTheImage(t *testing.T) {
	w := newWorld(t)
	tests := map[string]struct {
		content string
		image   vm.NewImage
		want    vm.Code
	}{
		"nothing there":   {"", vm.NewImage{URL: "https://example.org/nothing"}, vm.CodeFetchFailed},
		"unsafe":          {"bad", vm.NewImage{URL: somewhere}, vm.CodeUnsafeImage},
		"another sum":     {"good", vm.NewImage{URL: somewhere, Sum: vm.ImageSum{SHA256: sumOf("else")}}, vm.CodeChecksumMismatch},
		"another format":  {"good", vm.NewImage{URL: somewhere, Format: vm.FormatQcow2}, vm.CodeUnsupportedImage},
		"a full disk":     {"full", vm.NewImage{URL: somewhere}, vm.CodeInsufficientStorage},
		"a panic of ours": {"panic", vm.NewImage{URL: somewhere}, vm.CodeInternal},
	}
	for name, tt := range tests {
		w.driver.Offer(somewhere, []byte(tt.content))
		w.driver.Hook = func(_ context.Context, method, _ string) error {
			switch {
			case method == "FetchImage" && tt.content == "full":
				return &vm.Fault{Code: vm.CodeInsufficientStorage, Detail: "the disk is full"}
			case method == "FetchImage" && tt.content == "panic":
				panic("a defect")
			}
			return nil
		}
		tt.image.Name = "x"
		_, op, err := w.Images.Create(t.Context(), tt.image)
		must(t)(err)
		op, err = w.Operations.Wait(t.Context(), op.ID)
		must(t)(err)
		if op.State != vm.OpFailed || op.Problem.Code != tt.want {
			t.Errorf("%s: operation is %s with %+v", name, op.State, op.Problem)
		}
		if _, err := w.store.Image(t.Context(), "x"); !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("%s: Image returns %v, want not found", name, err)
		}
		if got := w.driver.Contents(); len(got) != 0 {
			t.Errorf("%s: the contents %q are left", name, got)
		}
	}
}

func TestInvalidImagesAreRefused(t *testing.T) {
	w := newWorld(t)
	for field, n := range map[string]vm.NewImage{
		"/name":        {Name: "No", URL: somewhere},
		"/url":         {Name: "x"},
		"/sha256":      {Name: "x", URL: somewhere, Sum: vm.ImageSum{SHA256: "12"}},
		"/sha512":      {Name: "x", URL: somewhere, Sum: vm.ImageSum{SHA512: strings.Repeat("g", 128)}},
		"/description": {Name: "x", URL: somewhere, Description: "\x00"},
		"/labels":      {Name: "x", URL: somewhere, Labels: map[string]string{"?": ""}},
		"/from_disk":   {Name: "x", FromDisk: "nothing"},
	} {
		_, _, err := w.Images.Create(t.Context(), n)
		if f := wantCode(t, err, vm.CodeInvalid); f.Fields[0].Field != field {
			t.Errorf("field %s: fault %+v", field, f)
		}
	}
	_, _, err := w.Images.Create(t.Context(), vm.NewImage{Name: "x", URL: "ftp://example.org/"})
	wantCode(t, err, vm.CodeInvalid)
}

func TestContentIsSharedAndRemovedWithItsLastImage(t *testing.T) {
	w := newWorld(t)
	sum := w.fetch("one", "same").SHA256
	w.fetch("two", "same")
	if got := w.driver.Contents(); !slices.Equal(got, []string{sum}) {
		t.Fatalf("contents %q", got)
	}
	must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "a", Template: "small", Image: "one"}))
	must(t)(w.Images.Delete(t.Context(), "one", nil, false)) // the other name has it still
	wantCode(t, w.Images.Delete(t.Context(), "two", nil, false), vm.CodeInUse, "1 VM")
	if got := w.driver.Contents(); !slices.Equal(got, []string{sum}) {
		t.Fatalf("contents %q", got)
	}
	must(t)(w.VMs.Delete(t.Context(), "a", nil, false))
	must(t)(w.Images.Delete(t.Context(), "two", nil, false))
	if got := w.driver.Contents(); len(got) != 0 {
		t.Fatalf("contents %q", got)
	}
}

func TestUploadInParts(t *testing.T) {
	w := newWorld(t)
	i, _, err := w.Images.Upload(t.Context(), vm.NewImage{Name: "x", Sum: vm.ImageSum{SHA256: sumOf("abcdef")}}, strings.NewReader("ab"), true)
	must(t)(err)
	if i.State != vm.ImageUploading || i.Uploaded != 2 {
		t.Fatalf("after the first part: image %+v", i)
	}
	_, err = w.VMs.Create(t.Context(), vm.NewVM{Template: "small", Image: "x"})
	wantCode(t, err, vm.CodeState, "uploading")
	// The second part is interrupted; its received bytes count.
	broken := errors.New("the line is dead")
	_, _, err = w.Images.ContinueUpload(t.Context(), "x", 2, io.MultiReader(strings.NewReader("cd"), iotest.ErrReader(broken)), false)
	if !errors.Is(err, broken) {
		t.Fatalf("the interrupted part: %v", err)
	}
	if i := w.image("x"); i.State != vm.ImageUploading || i.Uploaded != 4 {
		t.Fatalf("after the interrupted part: image %+v", i)
	}
	_, _, err = w.Images.ContinueUpload(t.Context(), "x", 2, strings.NewReader("cd"), false)
	wantCode(t, err, vm.CodePrecondition, "offset 4")
	// The upload starts again and is interrupted again.
	_, _, err = w.Images.Upload(t.Context(), vm.NewImage{Name: "x", Description: "new"}, io.MultiReader(strings.NewReader("abcd"), iotest.ErrReader(broken)), false)
	if i := w.image("x"); !errors.Is(err, broken) || i.Uploaded != 4 || i.Description != "new" {
		t.Fatalf("after the second start: image %+v, %v", i, err)
	}
	i, op, err := w.Images.ContinueUpload(t.Context(), "x", 4, strings.NewReader("ef"), false)
	must(t)(err)
	if i.State != vm.ImageAvailable || i.SHA256 != sumOf("abcdef") || i.Uploaded != 0 || op.State != vm.OpSucceeded {
		t.Errorf("after the last part: image %+v", i)
	}
	_, _, err = w.Images.ContinueUpload(t.Context(), "x", 6, strings.NewReader(""), false)
	wantCode(t, err, vm.CodeState, "not being uploaded")
	_, _, err = w.Images.ContinueUpload(t.Context(), "y", 0, strings.NewReader(""), false)
	wantCode(t, err, vm.CodeNotFound)
}

func TestRefusedUploadIsRemoved(t *testing.T) {
	w := newWorld(t)
	_, _, err := w.Images.Upload(t.Context(), vm.NewImage{Name: "x"}, strings.NewReader("bad"), false)
	wantCode(t, err, vm.CodeUnsafeImage)
	if _, err := w.store.Image(t.Context(), "x"); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("Image returns %v, want not found", err)
	}
	if n, _ := w.driver.Uploaded(t.Context(), "x"); n != 0 {
		t.Errorf("%d uploaded bytes remain", n)
	}
	i, _, err := w.Images.Upload(t.Context(), vm.NewImage{Name: "x"}, strings.NewReader("good"), false)
	must(t)(err)
	if i.State != vm.ImageAvailable {
		t.Errorf("next upload: image %+v", i)
	}
}

func TestUnrecordedUploadIsNotContinued(t *testing.T) {
	w := newWorld(t)
	must(t)(w.driver.UploadImage(t.Context(), "x", 0, strings.NewReader("of before")))
	i, _, err := w.Images.Upload(t.Context(), vm.NewImage{Name: "x"}, strings.NewReader("good"), false)
	if err != nil || i.State != vm.ImageAvailable || i.SHA256 != sumOf("good") {
		t.Errorf("image %+v, %v", i, err)
	}
}

func TestSettleAfterAKilledImport(t *testing.T) {
	content := vm.ImageContent{SHA256: sumOf("c"), Layout: vm.FormatRaw, VirtualMiB: 16, Bytes: 1}
	tests := map[string]struct {
		kind    vm.Kind
		image   vm.Image
		there   bool // the content exists
		want    vm.ImageState
		ended   vm.OpState
		uploads string
	}{
		"before the import":       {vm.ImageCreate, vm.Image{State: vm.ImageImporting}, false, "", vm.OpFailed, ""},
		"recorded, not renamed":   {vm.ImageCreate, vm.Image{State: vm.ImageImporting, ImageContent: content}, false, "", vm.OpFailed, ""},
		"renamed":                 {vm.ImageCreate, vm.Image{State: vm.ImageImporting, ImageContent: content}, true, vm.ImageAvailable, vm.OpSucceeded, ""},
		"in the middle of a part": {vm.ImageUpload, vm.Image{State: vm.ImageUploading}, false, vm.ImageUploading, vm.OpFailed, "abc"},
		"an upload recorded":      {vm.ImageUpload, vm.Image{State: vm.ImageUploading, ImageContent: content}, false, vm.ImageUploading, vm.OpFailed, "abc"},
		"an upload renamed":       {vm.ImageUpload, vm.Image{State: vm.ImageUploading, ImageContent: content}, true, vm.ImageAvailable, vm.OpSucceeded, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.image.Name = "x"
			id := w.open(tt.kind, "images/x", vm.Change{NewImage: &tt.image})
			if tt.there {
				w.fetch("other", "c")
			}
			if tt.uploads != "" {
				must(t)(w.driver.UploadImage(t.Context(), "x", 0, strings.NewReader(tt.uploads)))
			}
			must(t)(w.Recover(t.Context()))
			i, err := w.store.Image(t.Context(), "x")
			if tt.want == "" != errors.Is(err, vm.ErrNotFound) || i.State != tt.want || i.Uploaded != int64(len(tt.uploads)) {
				t.Errorf("image %+v, %v", i, err)
			}
			op, err := w.store.Operation(t.Context(), id)
			must(t)(err)
			if op.State != tt.ended {
				t.Errorf("operation %+v", op)
			}
		})
	}
}

func TestSettleAfterAKilledImageDeletion(t *testing.T) {
	w := newWorld(t)
	i := w.fetch("x", "c")
	must(t)(w.store.Apply(t.Context(), vm.Change{DeleteImage: "x"}))
	id := w.open(vm.ImageDelete, "images/x", vm.Change{})
	op, err := w.store.Operation(t.Context(), id)
	must(t)(err)
	op.Target.Content = i.SHA256
	must(t)(w.store.Apply(t.Context(), vm.Change{Operation: &op}))
	must(t)(w.Recover(t.Context()))
	if got := w.driver.Contents(); len(got) != 0 {
		t.Errorf("the contents %q remain, want none", got)
	}
	if op, err = w.store.Operation(t.Context(), id); err != nil || op.State != vm.OpSucceeded {
		t.Errorf("the operation is %+v, %v", op, err)
	}
}

func TestLostImageContentIsRecordedAsError(t *testing.T) {
	w := newWorld(t)
	i := w.fetch("x", "c")
	w.driver.LoseImage(i.SHA256)
	r, err := w.Settle(t.Context(), vm.ImageResource("x"))
	must(t)(err)
	if got := w.image("x"); !r.Changed || got.State != vm.ImageError || got.Reason == "" {
		t.Errorf("repair %+v: image %+v", r, got)
	}
	_, err = w.Disks.Create(t.Context(), vm.NewDisk{Image: "x"})
	wantCode(t, err, vm.CodeState, "error")
	w.fetch("again", "c")
	must(t)(w.Settle(t.Context(), vm.ImageResource("x")))
	if got := w.image("x"); got.State != vm.ImageAvailable {
		t.Errorf("image with restored content: %+v", got)
	}
}

// An upload that is interrupted after its checksum was noted is available if another image
// has the same content. Nothing of the upload remains.
func TestSettledUploadOfKnownContentLeavesNoFiles(t *testing.T) {
	w := newWorld(t)
	same := w.fetch("one", "same")
	must(t)(w.driver.UploadImage(t.Context(), "two", 0, strings.NewReader("same")))
	i := vm.Image{Name: "two", State: vm.ImageUploading, ImageContent: same.ImageContent, CreatedAt: time.Now()}
	must(t)(w.store.Apply(t.Context(), vm.Change{NewImage: &i}))
	must(t)(w.Settle(t.Context(), vm.ImageResource("two")))
	if got := w.image("two"); got.State != vm.ImageAvailable {
		t.Errorf("the image is %s, want available", got.State)
	}
	if n, err := w.driver.Uploaded(t.Context(), "two"); n != 0 || err != nil {
		t.Errorf("%d bytes of the upload remain, %v; want none", n, err)
	}
}

func TestDisksAndVMsOfImages(t *testing.T) {
	w := newWorld(t)
	raw, iso := w.fetch("raw", "c"), w.fetch("iso", "iso")
	base := vm.ContentBase(raw.SHA256)
	v, err := w.VMs.Create(t.Context(), vm.NewVM{ID: "a", Template: "small", Image: "raw", RootSizeMiB: 32, CDROMs: []vm.NewCDROM{{Image: "iso", BootIndex: 1}}})
	must(t)(err)
	if want := (vm.DiskFile{SizeMiB: 32, Image: "raw", Base: base, BaseFormat: "raw"}); v.Root != want {
		t.Errorf("root disk %+v", v.Root)
	}
	if want := (vm.CDROM{ID: "cd-1", Image: "iso", SHA256: iso.SHA256, BootIndex: 1}); len(v.CDROMs) != 1 || v.CDROMs[0] != want {
		t.Errorf("CD-ROM drives %+v", v.CDROMs)
	}
	full, err := w.VMs.Create(t.Context(), vm.NewVM{ID: "b", Template: "small", Image: "raw", FullClone: true})
	must(t)(err)
	if want := (vm.DiskFile{SizeMiB: 16, Image: "raw"}); full.Root != want {
		t.Errorf("the root disk of a full clone is %+v", full.Root)
	}
	d, err := w.Disks.Create(t.Context(), vm.NewDisk{Image: "raw"})
	must(t)(err)
	if want := (vm.DiskFile{SizeMiB: 16, Image: "raw", Base: base, BaseFormat: "raw"}); d.DiskFile != want || d.State != vm.DiskAvailable {
		t.Errorf("disk %+v", d)
	}
	wantCode(t, w.Images.Delete(t.Context(), "raw", nil, false), vm.CodeInUse, "1 VM", "1 disk")
	wantCode(t, w.Images.Delete(t.Context(), "iso", nil, false), vm.CodeInUse, "1 VM")
	for field, n := range map[string]vm.NewVM{
		"/image":               {Image: "nothing"},
		"/root_disk_size":      {Image: "raw", RootSizeMiB: 8},
		"/full_clone":          {FullClone: true},
		"/cdroms/0/image":      {CDROMs: []vm.NewCDROM{{Image: "raw"}}},
		"/cdroms/1/boot_index": {CDROMs: []vm.NewCDROM{{Image: "iso", BootIndex: 2}, {Image: "iso", BootIndex: 2}}},
		"/cdroms/0/boot_index": {CDROMs: []vm.NewCDROM{{Image: "iso", BootIndex: vm.RootBootIndex}}},
	} {
		n.Template = "small"
		_, err := w.VMs.Create(t.Context(), n)
		if f := wantCode(t, err, vm.CodeInvalid); f.Fields[0].Field != field {
			t.Errorf("field %s: fault %+v", field, f)
		}
	}
	_, err = w.VMs.Create(t.Context(), vm.NewVM{Template: "small", Image: "iso"})
	if f := wantCode(t, err, vm.CodeInvalid, "ISO"); !strings.Contains(f.Hint, "cdroms") {
		t.Errorf("an ISO as a root disk: %+v", f)
	}
	_, err = w.Disks.Create(t.Context(), vm.NewDisk{Image: "raw", SizeMiB: 8})
	wantCode(t, err, vm.CodeInvalid, "/size")
	// Nothing is held any more.
	must(t)(w.VMs.Delete(t.Context(), "a", nil, false))
	must(t)(w.VMs.Delete(t.Context(), "b", nil, false))
	must(t)(w.Disks.Delete(t.Context(), d.ID, nil, false))
	must(t)(w.Images.Delete(t.Context(), "raw", nil, false))
	must(t)(w.Images.Delete(t.Context(), "iso", nil, false))
}

func TestCopiesOfDisks(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	src := w.disk("")
	for _, from := range []string{src.ID, "a"} {
		d, op, err := w.Disks.Copy(t.Context(), vm.NewDisk{FromDisk: from, SizeMiB: 20 << 10})
		must(t)(err)
		op, err = w.Operations.Wait(t.Context(), op.ID)
		must(t)(err)
		if op.State != vm.OpSucceeded {
			t.Errorf("the copy ended with %+v", op)
		}
		w.wantDisk(d.ID, vm.DiskAvailable, "", "")
		_, op, err = w.Images.Create(t.Context(), vm.NewImage{Name: "of-" + from, FromDisk: from})
		must(t)(err)
		must(t)(w.Operations.Wait(t.Context(), op.ID))
		if i := w.image("of-" + from); i.State != vm.ImageAvailable || !strings.HasSuffix(i.Source, "/"+from) {
			t.Errorf("the image of %s is %+v", from, i)
		}
	}
	_, _, err := w.Disks.Copy(t.Context(), vm.NewDisk{FromDisk: src.ID, SizeMiB: 1})
	wantCode(t, err, vm.CodeInvalid, "/size")
	w.do("a", vm.OpStart)
	_, _, err = w.Disks.Copy(t.Context(), vm.NewDisk{FromDisk: "a"})
	wantCode(t, err, vm.CodeState, "not stopped")
	must(t)(w.Disks.Attach(t.Context(), src.ID, "a", ""))
	_, _, err = w.Images.Create(t.Context(), vm.NewImage{Name: "x", FromDisk: src.ID})
	wantCode(t, err, vm.CodeInUse, "attached")
}

func TestCancelledCopyLeavesNoFiles(t *testing.T) {
	w := newWorld(t)
	src := w.disk("")
	reached, release := w.blockOn("CreateDisk")
	defer release()
	d, op, err := w.Disks.Copy(t.Context(), vm.NewDisk{FromDisk: src.ID})
	must(t)(err)
	<-reached
	wantCode(t, w.Disks.Delete(t.Context(), src.ID, nil, false), vm.CodeBusy)
	op, err = w.Operations.Cancel(t.Context(), op.ID)
	must(t)(err)
	if op.State != vm.OpCancelled {
		t.Errorf("operation %+v, want cancelled", op)
	}
	if _, err := w.store.Disk(t.Context(), d.ID); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("Disk returns %v, want not found", err)
	}
	must(t)(w.Disks.Delete(t.Context(), src.ID, nil, false))
}

func TestCDROMDrives(t *testing.T) {
	w := newWorld(t)
	w.fetch("iso", "iso")
	w.create("a")
	for _, running := range []bool{false, true} {
		if running {
			w.do("a", vm.OpStart)
		}
		for n := 1; n <= vm.MaxCDROMs; n++ {
			c, err := w.CDROMs.Attach(t.Context(), "a", vm.NewCDROM{Image: "iso", BootIndex: n})
			must(t)(err)
			if c.ID != "cd-"+string(rune('0'+n)) || c.BootIndex != n {
				t.Errorf("running %t: drive %d is %+v", running, n, c)
			}
		}
		_, err := w.CDROMs.Attach(t.Context(), "a", vm.NewCDROM{Image: "iso"})
		wantCode(t, err, vm.CodeLimitReached)
		if seen := w.driver.Observe(t.Context(), "a"); running && !w.vm("a").SameCDROMs(seen) {
			t.Errorf("QEMU has %q", seen.CDROMs)
		}
		for n := vm.MaxCDROMs; n >= 1; n-- {
			must(t)(w.CDROMs.Eject(t.Context(), "a", "cd-"+string(rune('0'+n)), nil))
		}
	}
	wantCode(t, w.CDROMs.Eject(t.Context(), "a", "cd-1", nil), vm.CodeNotFound)
	w.driver.Hook = func(_ context.Context, m, _ string) error {
		if m == "SetCDROMs" {
			return &vm.Fault{Code: vm.CodeQEMUUnresponsive, Detail: "QEMU is mute"}
		}
		return nil
	}
	_, err := w.CDROMs.Attach(t.Context(), "a", vm.NewCDROM{Image: "iso"})
	wantCode(t, err, vm.CodeQEMUUnresponsive)
	if got := w.vm("a").CDROMs; len(got) != 0 {
		t.Errorf("recorded drives %+v", got)
	}
	must(t)(w.Images.Delete(t.Context(), "iso", nil, false)) // nothing is held
}

func TestMissingDrivesAreSettled(t *testing.T) {
	w := newWorld(t)
	w.fetch("iso", "iso")
	w.create("a")
	must(t)(w.CDROMs.Attach(t.Context(), "a", vm.NewCDROM{Image: "iso"}))
	w.do("a", vm.OpStart)
	must(t)(w.driver.SetCDROMs(t.Context(), "a", nil))
	r, err := w.Settle(t.Context(), vm.VMResource("a"))
	must(t)(err)
	if seen := w.driver.Observe(t.Context(), "a"); !r.Changed || !w.vm("a").SameCDROMs(seen) {
		t.Errorf("repair %+v: QEMU has the drives %q", r, seen.CDROMs)
	}
	if r, err = w.Settle(t.Context(), vm.VMResource("a")); err != nil || r.Changed {
		t.Errorf("settled again: repair %+v, %v", r, err)
	}
}
