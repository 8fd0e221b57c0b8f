package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// sectorsOf returns b padded with zeros to whole sectors.
func sectorsOf(b []byte) []byte {
	return append(b[:len(b):len(b)], make([]byte, -len(b)&(sectorBytes-1))...)
}

func TestARawImageIsPaddedToWholeSectors(t *testing.T) {
	t.Parallel()
	i, dir := testImporter(t, Options{})
	for _, size := range []int{513, 1023, 3*mib + 7} {
		b := noise(size)
		sum := sha256.Sum256(sectorsOf(b))
		given := sha256.Sum256(b)
		want := Content{
			SHA256: hex.EncodeToString(sum[:]),
			Bytes:  int64(len(sectorsOf(b))),
			Info:   Info{Raw, int64(len(sectorsOf(b)))},
		}
		sums := Want{Sum: Sum{SHA256: hex.EncodeToString(given[:])}}
		for name, send := range map[string]func() (Content, error){
			"as a stream": func() (Content, error) { return i.Import(t.Context(), bytes.NewReader(b), sums) },
			"compressed": func() (Content, error) {
				return i.Import(t.Context(), bytes.NewReader(gzipped(t, b)), Want{})
			},
			"as an upload": func() (Content, error) {
				sendPieces(t, i, "disk", b, 1)
				return i.Finish(t.Context(), "disk", sums)
			},
		} {
			if got, err := send(); err != nil || got != want {
				t.Errorf("%d bytes %s: got %+v, %v; want %+v", size, name, got, err, want)
			}
			stored, err := os.ReadFile(filepath.Join(dir, want.SHA256))
			if err != nil || !bytes.Equal(stored, sectorsOf(b)) {
				t.Errorf("%d bytes %s: stored %d bytes, %v", size, name, len(stored), err)
			}
		}
	}
}

func TestAFileSmallerThanASectorIsNoDisk(t *testing.T) {
	t.Parallel()
	b := []byte("\x1f\x8bgarbage")
	var rejected *Rejected
	if info, err := Inspect(bytes.NewReader(b), int64(len(b))); !errors.As(err, &rejected) || rejected.Flaw != Damaged {
		t.Errorf("got %+v, %v; want a damaged image", info, err)
	}
}

// goodUDF returns a disc with UDF only, as far as it is inspected.
func goodUDF() []byte {
	b := make([]byte, 300*isoSector)
	for i, id := range []string{udfBegin, "NSR03", udfEnd} {
		copy(b[isoStart+i*isoSector+1:], id)
	}
	le.PutUint16(b[256*isoSector:], 2)
	le.PutUint32(b[256*isoSector+12:], 256)
	return b
}

func TestADiscWithUDFOnlyIsADisc(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(b []byte)
		want   Format
		flaw   Flaw
	}{
		"a disc":                  {func([]byte) {}, ISO, 0},
		"version 2":               {func(b []byte) { copy(b[isoStart+isoSector+1:], "NSR02") }, ISO, 0},
		"a disk without anchor":   {func(b []byte) { clear(b[256*isoSector:]) }, Raw, 0},
		"a disc without a volume": {func(b []byte) { copy(b[isoStart+isoSector+1:], "BOOT2") }, "", Damaged},
		"a disc without an end":   {func(b []byte) { clear(b[isoStart+2*isoSector : isoStart+3*isoSector]) }, "", Damaged},
	} {
		b := goodUDF()
		c.change(b)
		info, err := Inspect(bytes.NewReader(b), int64(len(b)))
		var rejected *Rejected
		switch {
		case c.want != "" && (err != nil || info != Info{c.want, int64(len(b))}):
			t.Errorf("%s: got %+v, %v; want %s", name, info, err, c.want)
		case c.want == "" && (!errors.As(err, &rejected) || rejected.Flaw != c.flaw):
			t.Errorf("%s: got %+v, %v; want a %v image", name, info, err, c.flaw)
		}
	}
}

func TestARejectedImageIsHostileDamagedOrUnsupported(t *testing.T) {
	t.Parallel()
	flaws := map[string]Flaw{}
	for _, h := range hostileImages("/etc/shadow") {
		_, err := Inspect(bytes.NewReader(h.content), int64(len(h.content)))
		var rejected *Rejected
		if errors.As(err, &rejected) {
			flaws[h.name] = rejected.Flaw
		}
	}
	for name, want := range map[string]Flaw{
		"qcow2 with a backing file":                    Hostile,
		"vmdk with a parent after the end of the text": Hostile,
		"vhdx with a block in a parent":                Hostile,
		"vhdx that is cut off":                         Damaged,
		"iso that is cut off":                          Damaged,
		"an empty file":                                Damaged,
		"vhdx with sectors of 1 byte":                  Unsupported,
		"vmdk of the old kind":                         Unsupported,
		"web page":                                     Unsupported,
		"text":                                         Unsupported,
	} {
		if got, ok := flaws[name]; !ok || got != want {
			t.Errorf("%s is %v (%v), want %v", name, got, ok, want)
		}
	}
}

// bzipped is 45 MiB of the letter x, compressed with bzip2.
var bzipped, _ = base64.StdEncoding.DecodeString("QlpoOTFBWSZTWbTrVKABX44AgIBAAAggADCATUZCoCWpCoCXMUFZJlNZPaGWxQAJ2oCEgEAAAQAIIAAwzAmqaZIhW1REK8XckU4UJBUdz+EA")

// This test is not parallel: it measures the allocations of the process.
func TestDecompressorsAreBoundedInMemoryAndOutput(t *testing.T) {
	i, dir := testImporter(t, Options{MaxBytes: 64 * mib})
	for name, b := range map[string][]byte{
		"gzip":                             repeated(t, 'x', 96*mib),
		"zeros":                            repeated(t, 0, 65*mib),
		"bzip2":                            bytes.Repeat(bzipped, 4),
		"xz, blocks with a large window":   xzBlocks(20000, 28), // 64 MiB
		"zstd, frames with a large window": bytes.Repeat(zstded(t, noise(mib)), 20),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := i.Import(t.Context(), bytes.NewReader(b), Want{})
		runtime.ReadMemStats(&after)
		if err == nil && got.Bytes > 64*mib {
			t.Errorf("%s: stored %d bytes", name, got.Bytes)
		}
		allocated := after.TotalAlloc - before.TotalAlloc
		t.Logf("%s: %d bytes in, %d KiB allocated: %v", name, len(b), allocated/1024, err)
		if allocated > 160*mib {
			t.Errorf("%s: %d MiB allocated, want at most 160", name, allocated/mib)
		}
		if err == nil {
			if err := i.Delete(got.SHA256); err != nil {
				t.Error(err)
			}
		}
	}
	wantFiles(t, dir)
}
