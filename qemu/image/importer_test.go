package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"vmand/test/need"

	"golang.org/x/sys/unix"
)

func testImporter(t testing.TB, o Options) (*Importer, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	i, err := NewImporter(root, o)
	if err != nil {
		t.Fatal(err)
	}
	return i, dir
}

// wantFiles checks the names of all files in a directory.
func wantFiles(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, filepath.Base(e.Name()))
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}

// noise returns n bytes that do not compress. Inspect takes them as a raw image.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func sumOf(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func TestContentIsStoredOnceInEveryCompression(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	b := noise(mib + 512)
	clear(b[256<<10 : 768<<10])
	want := Content{SHA256: sumOf(b), Bytes: int64(len(b)), Info: Info{Raw, int64(len(b))}}
	for name, in := range map[string][]byte{
		"none": b,
		"gzip": gzipped(t, b),
		"xz":   xzed(t, b),
		"zstd": zstded(t, b),
	} {
		var last int64
		got, err := i.Import(t.Context(), iotest.HalfReader(bytes.NewReader(in)), Want{
			Sum:      Sum{SHA256: strings.ToUpper(sumOf(in)), SHA512: fmt.Sprintf("%x", sha512.Sum512(in))},
			Progress: func(n, _ int64) { last = n },
		})
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
		if last != int64(len(in)) {
			t.Errorf("%s: the progress ends at %d of %d", name, last, len(in))
		}
	}
	wantFiles(t, dir, want.SHA256)
	stored, err := os.ReadFile(filepath.Join(dir, want.SHA256))
	if err != nil || !bytes.Equal(stored, b) {
		t.Errorf("the stored content differs: %v", err)
	}
	st, err := os.Stat(filepath.Join(dir, want.SHA256))
	if err != nil || st.Mode() != contentMode {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > mib-256<<10 {
		t.Errorf("%d bytes on disk: blocks of zeros take room", used)
	}
	all, err := i.Contents()
	if err != nil || len(all) != 1 || all[want.SHA256] != want.Bytes {
		t.Errorf("contents %v, %v", all, err)
	}
	if err := i.Delete(want.SHA256); err != nil {
		t.Error(err)
	}
	if _, err := i.Open(want.SHA256); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of deleted content: %v", err)
	}
	if err := i.Delete(want.SHA256); err != nil {
		t.Error(err)
	}
	wantFiles(t, dir)
}

// repeated returns n bytes c, compressed with gzip; n is a multiple of 1 MiB. Each MiB
// is a gzip member of its own, so that only one of them is compressed here.
func repeated(t *testing.T, c byte, n int) []byte {
	return bytes.Repeat(gzipped(t, bytes.Repeat([]byte{c}, mib)), n/mib)
}

// xzBlocks returns the beginning of an xz stream with n empty blocks; dict is the
// encoded dictionary size in their headers.
func xzBlocks(n int, dict byte) []byte {
	const lzma2 = 0x21
	sum := func(b []byte) []byte { return le.AppendUint32(nil, crc32.ChecksumIEEE(b)) }
	out := append([]byte(xzMagic), 0, 0)
	out = append(out, sum(out[6:8])...)
	h := []byte{2, 0, lzma2, 1, dict, 0, 0, 0}
	block := slices.Concat(h, sum(h), []byte{0, 0, 0, 0})
	return append(out, bytes.Repeat(block, n)...)
}

func TestBrokenAndOversizedStreamsAreRefused(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{MaxBytes: 256 * mib, MaxVirtualBytes: 512 << 20})
	window := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x01, 0x00, 0x00}
	truncated := zstded(t, noise(mib))[:mib/2]
	changed := xzed(t, noise(mib/4))
	changed[mib/8]++
	for name, c := range map[string]struct {
		in     []byte
		reason string
	}{
		"a bomb":                    {repeated(t, 'x', 100*mib), "expand to more"},
		"a bomb of zeros":           {bytes.Repeat(bzip2Zeros(t), 5), "nearly all of them zeros"},
		"more than is allowed":      {repeated(t, 0, 257*mib), "larger than"},
		"a larger disk":             {goodQcow2(), "the disk in the image is larger"},
		"two layers":                {gzipped(t, gzipped(t, goodRaw())), "the file is gzip"},
		"an xz dictionary of 1 GiB": {xzBlocks(1, 36), "dictionary"},
		"tiny xz blocks":            {xzBlocks(5000, 12), "xz stream is broken"},
		"a zstd window of 1 TiB":    {window, "window"},
		"a cut off gzip":            {gzipped(t, noise(mib))[:mib/2], "gzip stream is broken: unexpected EOF"},
		"a cut off xz":              {xzed(t, noise(mib/4))[:mib/8], "xz stream is broken: xz: data is truncated"},
		"a cut off zstd":            {truncated, "zstd stream is broken"},
		"garbage after gzip":        {append(gzipped(t, goodRaw()), "garbage"...), "gzip stream is broken"},
		"garbage after xz":          {append(xzed(t, goodRaw()), "garbage"...), "xz stream is broken"},
		"garbage after zstd":        {append(zstded(t, goodRaw()), "garbage"...), "zstd stream is broken"},
		"a changed byte in xz":      {changed, "xz stream is broken"},
	} {
		got, err := i.Import(t.Context(), bytes.NewReader(c.in), Want{})
		refused := errors.As(err, new(*Rejected)) || errors.As(err, new(*TooLarge))
		if !refused || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: got %+v, %v; want %q", name, got, err, c.reason)
		}
	}
	wantFiles(t, dir)
}

func TestAWrongSumLeavesNoFile(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	b := goodRaw()
	for _, in := range [][]byte{b, gzipped(t, b)} {
		for _, sum := range []Sum{
			{SHA256: sumOf([]byte("other"))},
			{SHA512: sumOf([]byte("other"))},
			{SHA256: sumOf(in), SHA512: "00"},
		} {
			var mismatch *Mismatch
			if _, err := i.Import(t.Context(), bytes.NewReader(in), Want{Sum: sum}); !errors.As(err, &mismatch) {
				t.Errorf("%+v: %v", sum, err)
			}
		}
	}
	wantFiles(t, dir)
}

func TestABrokenReaderLeavesNoFile(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	lost := errors.New("lost")
	for name, b := range map[string][]byte{
		"raw":  noise(mib),
		"gzip": gzipped(t, noise(mib)),
		"xz":   xzed(t, noise(mib/2+512)),
		"zstd": zstded(t, noise(mib)),
	} {
		for _, failure := range []error{lost, io.ErrUnexpectedEOF, fmt.Errorf("closed: %w", io.EOF)} {
			r := io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(failure))
			if c, err := i.Import(t.Context(), r, Want{}); !errors.Is(err, failure) || errors.As(err, new(*Rejected)) {
				t.Errorf("%s: %+v, %v; want %v", name, c, err, failure)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, err := i.Import(ctx, bytes.NewReader(b), Want{Progress: func(int64, int64) { cancel() }})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: cancelled: %v", name, err)
		}
	}
	wantFiles(t, dir)
}

func TestAFullDiskFailsWithENOSPCAndLeavesNoFile(t *testing.T) {
	t.Parallel()
	_, dir := testImporter(t, Options{})
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		need.Privilege(t, err)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	i, err := NewImporter(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Import(t.Context(), bytes.NewReader(noise(4*mib)), Want{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("import: %v", err)
	}
	wantFiles(t, dir)
	n, err := i.Append(t.Context(), "disk", 0, bytes.NewReader(noise(4*mib)))
	if !errors.Is(err, unix.ENOSPC) || n < mib {
		t.Errorf("upload: %d, %v", n, err)
	}
	if at, err := i.Uploaded("disk"); err != nil || at != n {
		t.Errorf("uploaded %d, %v; want %d", at, err, n)
	}
	if err := i.Drop("disk"); err != nil {
		t.Error(err)
	}
	wantFiles(t, dir)
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	b := goodQcow2()
	for range 2 {
		temp := i.TempName()
		if err := os.WriteFile(filepath.Join(dir, temp), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := i.Adopt(t.Context(), temp, Want{}); err != nil || c.SHA256 != sumOf(b) || c.Format != Qcow2 {
			t.Errorf("%+v, %v", c, err)
		}
	}
	wantFiles(t, dir, sumOf(b))
	temp := i.TempName()
	if err := os.WriteFile(filepath.Join(dir, temp), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Adopt(t.Context(), temp, Want{}); !errors.As(err, new(*Rejected)) {
		t.Errorf("a file that is not an image: %v", err)
	}
	wantFiles(t, dir, sumOf(b))
}

// A process that has the file open for writing could change the content later.
func TestAFileOpenForWritingIsNotAdopted(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	temp := i.TempName()
	f, err := os.Create(filepath.Join(dir, temp))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(goodQcow2()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // do not wait for the writer to close the file
	if _, err := i.Adopt(ctx, temp, Want{}); err == nil || !strings.Contains(err.Error(), "open for writing") {
		t.Errorf("got %v, want an error: the file is open for writing", err)
	}
	wantFiles(t, dir)
}

func TestNewImporterRemovesUnfinishedImports(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	if _, err := i.Append(t.Context(), "disk", 0, bytes.NewReader(goodRaw())); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, i.TempName()), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewImporter(i.dir, Options{}); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, ".upload-disk.part", ".upload-disk.offset")
}

func TestReadyIsCalledBeforeContentHasItsName(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	b := goodQcow2()
	full := errors.New("the records are full")
	for name, importAs := range map[string]func(w Want) (Content, error){
		"import": func(w Want) (Content, error) {
			return i.Import(t.Context(), bytes.NewReader(gzipped(t, b)), w)
		},
		"adopt": func(w Want) (Content, error) {
			temp := i.TempName()
			if err := os.WriteFile(filepath.Join(dir, temp), b, 0o600); err != nil {
				t.Fatal(err)
			}
			return i.Adopt(t.Context(), temp, w)
		},
		"upload": func(w Want) (Content, error) {
			if at, err := i.Uploaded("disk"); err != nil || at == 0 {
				sendPieces(t, i, "disk", b, 2)
			}
			return i.Finish(t.Context(), "disk", w)
		},
	} {
		var ready []Content
		fails := func(c Content) error {
			ready = append(ready, c)
			if has, err := i.Has(c.SHA256); has || err != nil {
				t.Errorf("%s: the content has its name before Ready returns, %v", name, err)
			}
			return full
		}
		if c, err := importAs(Want{Ready: fails}); !errors.Is(err, full) || c != (Content{}) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
		if all, err := i.Contents(); len(all) != 0 || err != nil {
			t.Errorf("%s: content remains after Ready failed: %v, %v", name, all, err)
		}
		if c, err := importAs(Want{Format: VMDK}); !errors.As(err, new(*Rejected)) {
			t.Errorf("%s as vmdk: %+v, %v", name, c, err)
		}
		c, err := importAs(Want{Format: Qcow2, Ready: func(Content) error { return nil }})
		if err != nil || len(ready) != 1 || ready[0] != c {
			t.Errorf("%s: got %+v, %v; Ready got %+v", name, c, err, ready)
		}
		if has, err := i.Has(c.SHA256); !has || err != nil {
			t.Errorf("%s: the content has no name, %v", name, err)
		}
		wantFiles(t, dir, sumOf(b))
		if err := i.Delete(c.SHA256); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExistingContentIsSealedAgain(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{Seal: func(f *os.File) error { return f.Chmod(0o440) }})
	for range 2 {
		c, err := i.Import(t.Context(), bytes.NewReader(goodRaw()), Want{})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, c.SHA256)
		if st, err := os.Stat(path); err != nil || st.Mode() != 0o440 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// bzip2Zeros returns 45 MB of zeros, compressed to 50 bytes.
func bzip2Zeros(t *testing.T) []byte {
	t.Helper()
	b, err := hex.DecodeString("425a6839314159265359c901b6c80158ab4020c00010000008200030cc0529a65248526c5492149e2ee48a70a12192036d90")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An empty disk is an honest image in each format that does not exceed the ratio.
func TestMostlyEmptyDisksAreAccepted(t *testing.T) {
	t.Parallel()
	i, _ := testImporter(t, Options{MaxBytes: 1 << 30})
	raw := make([]byte, 128*mib)
	copy(raw, goodRaw())
	for name, in := range map[string][]byte{"gzip": gzipped(t, raw), "zstd": zstded(t, raw)} {
		c, err := i.Import(t.Context(), bytes.NewReader(in), Want{})
		if err != nil || c.Bytes != int64(len(raw)) {
			t.Errorf("%s, 1/%d: %+v, %v", name, len(raw)/len(in), c, err)
		}
	}
	for in, end := range map[int64]int64{30 << 20: 10 << 30, 1 << 20: 32 << 30, 2 << 10: 128 << 20} {
		c := copier{inputBytes: func() int64 { return in }}
		if err := c.checkRatio(end); err != nil {
			t.Errorf("%d bytes that expand to %d: %v", in, end, err)
		}
		if err := c.checkRatio((in+1)*maxZeroRatio + bombAllowance); err == nil {
			t.Errorf("%d bytes that expand to %d times as much are accepted", in, maxZeroRatio)
		}
	}
}

func TestStreamThatWaitsForTheNetworkTakesNoTurn(t *testing.T) {
	t.Parallel()
	i, _ := testImporter(t, Options{})
	i.turns = make(turns, 1)
	b := gzipped(t, noise(2*mib))
	r, w := io.Pipe()
	slow := make(chan error)
	go func() {
		_, err := i.Import(t.Context(), r, Want{})
		slow <- err
	}()
	if _, err := w.Write(b[:mib]); err != nil { // all of it has been read, most of it expanded
		t.Fatal(err)
	}
	if _, err := i.Import(t.Context(), bytes.NewReader(gzipped(t, goodRaw())), Want{}); err != nil {
		t.Error(err)
	}
	go func() {
		_, _ = w.Write(b[mib:])
		w.Close()
	}()
	if err := <-slow; err != nil && !errors.As(err, new(*Rejected)) { // noise is no image
		t.Error(err)
	}
	if len(i.turns) != 0 {
		t.Error("a turn is not given back")
	}
}

func TestExpandedStreamsWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	i.turns = make(turns, 1)
	i.turns <- struct{}{} // another stream
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	packed := bytes.NewReader(gzipped(t, goodRaw()))
	in := readerFunc(func(p []byte) (int, error) {
		n, err := packed.Read(p)
		cancel(gone) // it has what it needs to wait for its turn
		return n, err
	})
	if _, err := i.Import(ctx, in, Want{}); !errors.Is(err, gone) {
		t.Errorf("while another stream is expanded: %v", err)
	}
	wantFiles(t, dir)
	if _, err := i.Import(t.Context(), bytes.NewReader(goodRaw()), Want{}); err != nil {
		t.Errorf("a stream that is not compressed: %v", err)
	}
	<-i.turns
	if _, err := i.Import(t.Context(), bytes.NewReader(gzipped(t, goodRaw())), Want{}); err != nil {
		t.Error(err)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
