package image

import (
	"bytes"
	"context"
	"crypto/sha512"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

const benchBytes = 1 << 30

// benchFile writes a file of 1 GiB without holes, which is then in the page cache.
func benchFile(b *testing.B, dir string) string {
	b.Helper()
	name := filepath.Join(dir, "file")
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	block := noise(mib)
	for range benchBytes / mib {
		block = append(block[512:], block[:512]...)
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return name
}

// BenchmarkImport imports 1 GiB as a stream and as an upload, and compares with the
// same by hand: cp, which does not wait for the disk, sha256sum and sync. Each
// iteration does all of them in turn. The metrics are the ratio of the times, and the
// growth of the heap.
func BenchmarkImport(b *testing.B) {
	dir := b.TempDir()
	name := benchFile(b, dir)
	i, store := testImporter(b, Options{})
	var heap uint64
	base := heapInUse()
	last := int64(0)
	sample := func(done, _ int64) {
		if done-last >= 64*mib || done < last {
			last = done
			heap = max(heap, heapInUse()-min(base, heapInUse()))
		}
	}
	var byHand, byHandSynced, stream, pieces time.Duration
	for b.Loop() {
		start := time.Now()
		run(b, dir, "sh", "-c", "cp "+name+" copy && sha256sum copy")
		byHand += time.Since(start)
		run(b, dir, "sync", "copy")
		byHandSynced += time.Since(start)
		if err := os.Remove(dir + "/copy"); err != nil {
			b.Fatal(err)
		}
		stream += timed(b, name, store, func(f *os.File) (Content, error) {
			return i.Import(b.Context(), f, Want{Progress: sample})
		})
		pieces += timed(b, name, store, func(f *os.File) (Content, error) {
			return benchUpload(b.Context(), i, f, sample)
		})
	}
	n := float64(b.N)
	b.ReportMetric(byHand.Seconds()/n, "s-cp+sha256sum")
	b.ReportMetric(byHandSynced.Seconds()/n, "s-with-sync")
	b.ReportMetric(stream.Seconds()/n, "s-import")
	b.ReportMetric(pieces.Seconds()/n, "s-upload")
	b.ReportMetric(stream.Seconds()/byHand.Seconds(), "x-import")
	b.ReportMetric(pieces.Seconds()/byHand.Seconds(), "x-upload")
	b.ReportMetric(float64(heap)/mib, "MiB-heap")
}

// benchUpload uploads a file in eight pieces.
func benchUpload(
	ctx context.Context, i *Importer, f *os.File, sample func(done, total int64),
) (Content, error) {
	for at := int64(0); at < benchBytes; {
		n, err := i.Append(ctx, "disk", at, io.LimitReader(f, benchBytes/8))
		if err != nil {
			return Content{}, err
		}
		at = n
		sample(at, 0)
	}
	return i.Finish(ctx, "disk", Want{})
}

// timed returns how long take needs to import a file, and removes the content.
func timed(b *testing.B, name, store string, take func(*os.File) (Content, error)) time.Duration {
	b.Helper()
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	start := time.Now()
	c, err := take(f)
	took := time.Since(start)
	if err != nil || c.Bytes != benchBytes {
		b.Fatalf("%+v, %v", c, err)
	}
	if err := os.Remove(filepath.Join(store, c.SHA256)); err != nil {
		b.Fatal(err)
	}
	return took
}

func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// BenchmarkExpand measures expanding, hashing and storing per compression format.
func BenchmarkExpand(b *testing.B) {
	data := noise(16 * mib)
	for i := range data { // text-like: 4 bits in each byte
		data[i] &= 0x0f
	}
	for _, c := range []struct {
		name  string
		in    []byte
		bytes int64
	}{
		{"gzip", gzipped(b, data), 16 * mib},
		{"xz", xzed(b, data[:4*mib]), 4 * mib},
		{"zstd", zstded(b, data), 16 * mib},
	} {
		b.Run(c.name, func(b *testing.B) {
			i, _ := testImporter(b, Options{})
			b.SetBytes(c.bytes)
			for b.Loop() {
				sum := Sum{SHA512: fmt.Sprintf("%x", sha512.Sum512(c.in))}
				if _, err := i.Import(b.Context(), bytes.NewReader(c.in), Want{Sum: sum}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
