package image

import (
	"bytes"
	"context"
	"crypto/sha512"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

const benchBytes = 1 << 30

// benchFile makes a file of 1 GiB that has no holes, and has it in the page cache.
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

// BenchmarkImport imports 1 GiB as a stream, and as an upload, beside what a person
// would do by hand: cp, which does not wait for the disk, sync, and sha256sum. Each
// iteration does all in turn; the metrics are how many times as long ours take, and
// by how much the heap grows.
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
		if out, err := exec.Command("sh", "-c", fmt.Sprintf("cp %s %s/copy && sha256sum %s/copy", name, dir, dir)).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		byHand += time.Since(start)
		if out, err := exec.Command("sync", dir+"/copy").CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		byHandSynced += time.Since(start)
		if err := os.Remove(dir + "/copy"); err != nil {
			b.Fatal(err)
		}
		stream += timed(b, name, store, func(f *os.File) (Content, error) { return i.Import(b.Context(), f, Want{Progress: sample}) })
		pieces += timed(b, name, store, func(f *os.File) (Content, error) { return benchUpload(b.Context(), i, f, sample) })
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
func benchUpload(ctx context.Context, i *Importer, f *os.File, sample func(done, total int64)) (Content, error) {
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

// BenchmarkExpand is how fast each format is expanded, hashed and stored.
func BenchmarkExpand(b *testing.B) {
	data := noise(16 * mib)
	for i := range data { // text-like: 4 bits in each byte
		data[i] &= 0x0f
	}
	for name, in := range map[string][]byte{"gzip": gzipped(b, data), "xz": xzed(b, data[:4*mib]), "zstd": zstded(b, data)} {
		b.Run(name, func(b *testing.B) {
			i, _ := testImporter(b, Options{})
			b.SetBytes(int64(len(data)))
			if name == "xz" {
				b.SetBytes(4 * mib)
			}
			for b.Loop() {
				if _, err := i.Import(b.Context(), bytes.NewReader(in), Want{Sum: Sum{SHA512: fmt.Sprintf("%x", sha512.Sum512(in))}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
