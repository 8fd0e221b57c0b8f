package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/iotest"
)

// sendPieces appends b in pieces. All but the last end with an error.
func sendPieces(t *testing.T, i *Importer, name string, b []byte, pieces int) {
	t.Helper()
	lost := errors.New("connection lost")
	for n := range pieces {
		at, err := i.Uploaded(name)
		if err != nil {
			t.Fatal(err)
		}
		end := len(b) * (n + 1) / pieces
		var r io.Reader = bytes.NewReader(b[at:end])
		var want error
		if n < pieces-1 {
			r, want = io.MultiReader(r, iotest.ErrReader(lost)), lost
		}
		got, err := i.Append(t.Context(), name, at, r)
		if !errors.Is(err, want) || got != int64(end) {
			t.Fatalf("piece %d: offset %d, %v; want %d, %v", n, got, err, end, want)
		}
	}
}

func TestAnUploadIsResumed(t *testing.T) {
	t.Parallel()
	b := noise(mib + 512)
	clear(b[mib/2 : mib/2+256<<10])
	for name, in := range map[string][]byte{
		"raw":  b,
		"gzip": gzipped(t, b),
		"xz":   xzed(t, b),
		"zstd": zstded(t, b),
	} {
		i, dir := testImporter(t, Options{})
		sendPieces(t, i, "disk", in, 7)
		c, err := i.Finish(t.Context(), "disk", Want{Sum: Sum{SHA256: sumOf(in)}})
		if err != nil || c.SHA256 != sumOf(b) || c.Bytes != int64(len(b)) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
		wantFiles(t, dir, sumOf(b))
		if at, err := i.Uploaded("disk"); at != 0 || err != nil {
			t.Errorf("%s: %d bytes uploaded after Finish, %v", name, at, err)
		}
	}
}

func TestAnUploadIsResumedAfterAKill(t *testing.T) {
	t.Parallel()
	b := noise(3 * mib)
	i, dir := testImporter(t, Options{})
	sendPieces(t, i, "disk", b[:mib], 1)
	// More bytes arrived, but their offset was not recorded.
	f, err := os.OpenFile(filepath.Join(dir, ".upload-disk.part"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, mib)); err != nil {
		t.Fatal(err)
	}
	i, err = NewImporter(i.dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if at, err := i.Uploaded("disk"); err != nil || at != mib {
		t.Fatalf("uploaded %d, %v", at, err)
	}
	sendPieces(t, i, "disk", b, 2)
	c, err := i.Finish(t.Context(), "disk", Want{})
	if err != nil || c.SHA256 != sumOf(b) {
		t.Errorf("%+v, %v", c, err)
	}
	wantFiles(t, dir, sumOf(b))
}

func TestAPieceAtAnotherOffsetIsRefused(t *testing.T) {
	t.Parallel()
	i, _ := testImporter(t, Options{})
	sendPieces(t, i, "disk", goodRaw(), 1)
	for _, at := range []int64{0, 1, 1023, 1025, -1} {
		var offset *OffsetError
		n, err := i.Append(t.Context(), "disk", at, bytes.NewReader(goodRaw()))
		if !errors.As(err, &offset) || offset.Want != 1024 || n != 1024 {
			t.Errorf("at %d: %d, %v", at, n, err)
		}
	}
	for _, name := range []string{"", "..", "a/b", ".x", "a\x00b"} {
		if _, err := i.Append(t.Context(), name, 0, bytes.NewReader(nil)); err == nil {
			t.Errorf("the name %q is accepted", name)
		}
	}
}

func TestARefusedUploadCanBeContinued(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{MaxBytes: 4 * mib})
	b := append(goodVHDX()[:mib-7:mib-7], noise(7)...)
	sendPieces(t, i, "disk", b[:mib-7], 1)
	if _, err := i.Finish(t.Context(), "disk", Want{}); !errors.As(err, new(*Rejected)) {
		t.Errorf("an incomplete upload: %v", err)
	}
	sendPieces(t, i, "disk", b, 1)
	if _, err := i.Finish(t.Context(), "disk", Want{Sum: Sum{SHA512: "00"}}); !errors.As(err, new(*Mismatch)) {
		t.Errorf("a wrong sum: %v", err)
	}
	var large *TooLarge
	_, err := i.Append(t.Context(), "disk", mib, bytes.NewReader(noise(4*mib)))
	if !errors.As(err, &large) || large.Max != 4*mib {
		t.Errorf("more than MaxBytes: %v", err)
	}
	if err := i.Drop("disk"); err != nil {
		t.Error(err)
	}
	if err := i.Drop("disk"); err != nil {
		t.Error(err)
	}
	wantFiles(t, dir)
	if _, err := i.Finish(t.Context(), "disk", Want{}); err == nil {
		t.Error("a dropped upload can be finished")
	}
}

func TestAnUploadHasOneCallerAtATime(t *testing.T) {
	t.Parallel()
	i, _ := testImporter(t, Options{})
	r, w := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := i.Append(t.Context(), "disk", 0, r)
		done <- err
	}()
	if _, err := w.Write(goodRaw()); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Append(t.Context(), "disk", 0, bytes.NewReader(nil)); !errors.Is(err, ErrBusy) {
		t.Errorf("append: %v", err)
	}
	if _, err := i.Finish(t.Context(), "disk", Want{}); !errors.Is(err, ErrBusy) {
		t.Errorf("finish: %v", err)
	}
	if err := i.Drop("disk"); !errors.Is(err, ErrBusy) {
		t.Errorf("drop: %v", err)
	}
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// diskUse returns how many bytes the files of a directory take on the disk.
func diskUse(t *testing.T, dir string) (n int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if st, err := e.Info(); err == nil { // no error: the file was not removed since ReadDir
			n += st.Sys().(*syscall.Stat_t).Blocks * 512
		}
	}
	return n
}

func TestCompressedUploadIsStoredOnce(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	b := noise(96 * mib)
	sendPieces(t, i, "disk", zstded(t, b), 1)
	var most int64
	c, err := i.Finish(t.Context(), "disk", Want{
		Progress: func(int64, int64) { most = max(most, diskUse(t, dir)) },
	})
	if err != nil || c.SHA256 != sumOf(b) {
		t.Fatalf("%+v, %v", c, err)
	}
	if most > 128*mib {
		t.Errorf("%d MiB on the disk for an image of 96 MiB", most>>20)
	}
	wantFiles(t, dir, sumOf(b))
}
