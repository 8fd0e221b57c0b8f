package bench

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"vmand/openapi"
	"vmand/store"
	"vmand/test/harness"
	"vmand/vm"
)

// benchClone creates VMs of images of 2 and of 20 GiB. The reference is an overlay made by
// qemu-img and one durable transaction.
func benchClone(b *testing.B, t *table) {
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL=5s", "VMAN_NETWORK_MODE=user")
	d.Start()
	d.SkipContract()
	d.CreateTemplate()
	small := uploadStream(d, "small", zeros(2<<30))
	large := uploadStream(d, "large", zeros(20<<30))
	dir := b.TempDir()
	s, err := store.Open(b.Context(), store.Options{
		Path: filepath.Join(dir, "by-hand.db"),
		Log:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	file := filepath.Join(dir, "disk.qcow2")
	byHand := func() {
		base := filepath.Join(d.StateDir, "images", *large.SHA256)
		create := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, file)
		if out, err := create.CombinedOutput(); err != nil {
			b.Fatalf("qemu-img: %v\n%s", err, out)
		}
		if _, err := s.Apply(context.Background(), vm.Change{Events: []vm.Event{vm.NewEvent("vm.created", vm.VMResource("a"), map[string]any{})}}); err != nil {
			b.Fatal(err)
		}
	}
	var of2, of20, refs []time.Duration
	for b.Loop() {
		for _, image := range []struct {
			name string
			took *[]time.Duration
		}{{small.Name, &of2}, {large.Name, &of20}} {
			*image.took = append(*image.took, took(func() {
				d.Call("POST", "/vms", map[string]any{"template_name": "small", "name": "a", "image": image.name}).Want(201)
			}))
			d.Call("DELETE", "/vms/a", nil).Want(204)
		}
		refs = append(refs, took(byHand))
		if err := os.Remove(file); err != nil {
			b.Fatal(err)
		}
	}
	t.atMost("VM of an image of 20 GiB, against one of 2 GiB", of20, of2, 1.2)
	t.atMost("VM of an image of 20 GiB, against qemu-img create -b and a transaction", of20, refs, 1.2)
}

// benchImport uploads content that cannot be compressed. The reference is cp and sha256sum.
func benchImport(b *testing.B, t *table) {
	const size = 1 << 30
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL=5s")
	d.Start()
	d.SkipContract()
	dir := b.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	f, err := os.Create(src)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, noise(1), size); err != nil {
		b.Fatal(err)
	}
	var values, refs []time.Duration
	for range 3 { // each round takes seconds
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			b.Fatal(err)
		}
		values = append(values, took(func() { uploadStream(d, "x", f) }))
		d.Call("DELETE", "/images/x", nil).Want(204)
		refs = append(refs, took(func() {
			for _, args := range [][]string{{"cp", src, dst}, {"sha256sum", dst}} {
				if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
					b.Fatalf("%s: %v\n%s", args[0], err, out)
				}
			}
		}))
	}
	for b.Loop() { // required; the rounds are above
	}
	t.atMost("upload of an image of 1 GiB, on the disk, against cp and sha256sum", values, refs, 1.3)
}

// benchUploadMemory measures the memory of the daemon during an upload of 4 GiB.
func benchUploadMemory(b *testing.B, t *table) {
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL=5s")
	d.Start()
	d.SkipContract()
	uploadStream(d, "warm", io.LimitReader(noise(1), 64<<20))
	idle := d.MemoryMiB("VmRSS")
	uploadStream(d, "x", io.LimitReader(noise(2), 4<<30))
	most := d.MemoryMiB("VmHWM")
	for b.Loop() { // required; the measurement is above
	}
	t.add(row{
		what:      "memory added by the upload of an image of 4 GiB",
		value:     fmt.Sprintf("%d MiB", most-idle),
		reference: fmt.Sprintf("idle %d MiB", idle),
		target:    "under 32 MiB",
		met:       most-idle < 32,
	})
}

// uploadStream creates an image of the content of r without reading it into memory.
func uploadStream(d *harness.Daemon, name string, r io.Reader) openapi.Image {
	d.T.Helper()
	req, err := http.NewRequestWithContext(d.T.Context(), "POST", "http://vmand/images?name="+name, io.NopCloser(r))
	if err != nil {
		d.T.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := d.HTTP.Do(req)
	if err != nil {
		d.T.Fatal(err)
	}
	defer resp.Body.Close()
	a := harness.Answer{T: d.T, Request: "POST /images", Status: resp.StatusCode, Header: resp.Header}
	if a.Body, err = io.ReadAll(resp.Body); err != nil {
		d.T.Fatal(err)
	}
	return harness.As[openapi.Image](a.Want(201))
}

// zeros returns n zero bytes, compressed by zstd.
func zeros(n int64) io.Reader {
	r, w := io.Pipe()
	go func() {
		z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err == nil {
			_, err = io.CopyN(z, zero{}, n)
		}
		if err == nil {
			err = z.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// noise returns an endless stream that cannot be compressed and in which no sector repeats.
func noise(seed uint64) io.Reader {
	key := sha256.Sum256(fmt.Append(nil, seed))
	return rand.NewChaCha8(key)
}
