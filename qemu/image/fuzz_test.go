package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// FuzzInspect inspects files of zeros with arbitrary bytes at the beginning and at
// another offset.
func FuzzInspect(f *testing.F) {
	for _, good := range []func() []byte{goodQcow2, goodVMDK, goodVDI, goodVHDX, goodVPC, goodFixedVPC, goodISO, goodRaw} {
		b := good()
		f.Add(b[:min(len(b), 64<<10)], uint64(len(b)), []byte(nil), uint32(0))
	}
	b := goodQcow2()
	f.Add(b[:512], uint64(len(b)), b[3*64<<10:][:512], uint32(3*64<<10))
	b = goodVHDX()
	f.Add(b[:320<<10], uint64(len(b)), b[2*mib:][:128<<10], uint32(2*mib))
	b = goodISO()
	f.Add([]byte(nil), uint64(len(b)), b[isoStart:], uint32(isoStart))
	f.Fuzz(func(t *testing.T, head []byte, size uint64, more []byte, at uint32) {
		if size > maxFile {
			size %= maxFile
		}
		if uint64(len(head)) > size {
			head = head[:size]
		}
		c := &counter{ReaderAt: twoParts{head, more, int64(at)}}
		info, err := Inspect(c, int64(size))
		n := info.VirtualBytes
		sized := n > 0 && n <= maxVirtual+isoSector && n%sectorBytes == 0
		if err == nil && (!sized || info.Format == "") {
			t.Errorf("accepted as %+v", info)
		}
		if c.reads > maxReads || c.bytes > maxReads*chunkBytes {
			t.Errorf("%d reads of %d bytes", c.reads, c.bytes)
		}
	})
}

// twoParts is a file of zeros with some bytes at the beginning and some at an offset.
type twoParts struct {
	head, more []byte
	at         int64
}

func (f twoParts) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for _, part := range []struct {
		b  []byte
		at int64
	}{{f.head, 0}, {f.more, f.at}} {
		if from := off - part.at; from >= 0 && from < int64(len(part.b)) {
			copy(p, part.b[from:])
		} else if from < 0 && -from < int64(len(p)) {
			copy(p[-from:], part.b)
		}
	}
	return len(p), nil
}

func gzipped(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	write(t, w, b)
	return out.Bytes()
}

func xzed(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, b)
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, b)
	return out.Bytes()
}

func write(t testing.TB, w io.WriteCloser, b []byte) {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// FuzzImport imports arbitrary bytes, which expand to at most 4 MiB, as a stream and as
// an upload in two pieces. Both must have the same result and leave only content.
func FuzzImport(f *testing.F) {
	small := goodVDI()[:2048]
	for _, b := range [][]byte{small, goodRaw(), nil, bytes.Repeat([]byte{0}, 8192)} {
		f.Add(b, uint16(1))
		f.Add(gzipped(f, b), uint16(7))
		f.Add(xzed(f, b), uint16(13))
		f.Add(zstded(f, b), uint16(5))
	}
	two := xzed(f, goodRaw())
	f.Add(append(append(two, 0, 0, 0, 0), two...), uint16(100))
	f.Add(append(gzipped(f, goodRaw()), gzipped(f, goodRaw())...), uint16(100))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		i, dir := testImporter(t, Options{MaxBytes: 4 * mib})
		c, err := i.Import(t.Context(), bytes.NewReader(b), Want{})
		at := min(int(cut), len(b))
		for _, piece := range [][]byte{b[:at], b[at:]} {
			done, err := i.Uploaded("x")
			if err != nil {
				t.Fatal(err)
			}
			_, err = i.Append(context.Background(), "x", done, bytes.NewReader(piece))
			if err != nil && len(b) < 4*mib {
				t.Fatal(err)
			}
		}
		u, errUpload := i.Finish(t.Context(), "x", Want{})
		if (err == nil) != (errUpload == nil) || c != u {
			t.Errorf("imported: %+v, %v; uploaded: %+v, %v", c, err, u, errUpload)
		}
		if err := i.Drop("x"); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			wantFiles(t, dir, c.SHA256)
			if st, err := os.Stat(filepath.Join(dir, c.SHA256)); err != nil || st.Size() != c.Bytes {
				t.Errorf("%+v: %v, %v", c, st, err)
			}
		} else {
			wantFiles(t, dir)
		}
	})
}
