package qemu

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"vmand/vm"
)

// imageHost is the part of a driver, or of a dry run, that keeps images.
type imageHost interface {
	vm.Images
	Survey(context.Context) (vm.Survey, error)
}

// content imports bytes as content and returns its SHA-256.
func (h *testHost) content(b []byte) string {
	h.t.Helper()
	return bring(h.t, h.Driver, b).SHA256
}

func bring(t testing.TB, d vm.Images, b []byte) vm.ImageContent {
	t.Helper()
	_, err := d.UploadImage(t.Context(), "upload", 0, bytes.NewReader(b))
	must(t, err)
	c, err := d.FinishUpload(t.Context(), "upload", vm.Import{})
	must(t, err)
	return c
}

// bringFile imports a file as content.
func (h *testHost) bringFile(path string) vm.ImageContent {
	h.t.Helper()
	b, err := os.ReadFile(path)
	must(h.t, err)
	return bring(h.t, h.Driver, b)
}

// rawImage returns a raw image of 1 MiB that begins with a text.
func rawImage(word string) []byte {
	b := make([]byte, mib)
	copy(b, word)
	return b
}

func sumOf(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func serveImages(t testing.TB, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// eachImageHost runs a test on a driver and on a dry run.
func eachImageHost(t *testing.T, o ImageOptions, test func(t *testing.T, d imageHost, dir string)) {
	t.Run("driver", func(t *testing.T) {
		d := newDriver(t, Options{Images: o})
		test(t, d, d.layout.inState(imagesDir))
	})
	t.Run("dry run", func(t *testing.T) {
		dir := tempDir(t)
		d, err := NewDryRun(Options{StateDir: filepath.Join(dir, "state"), RuntimeDir: filepath.Join(dir, "run"), Images: o})
		must(t, err)
		t.Cleanup(func() { d.Close() })
		test(t, d, d.layout.inState(imagesDir))
	})
}

func TestAnImageIsDownloadedKeptAndDeleted(t *testing.T) {
	b := rawImage("download")
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write(b)
	w.Close()
	url := serveImages(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(packed.Bytes()) })
	eachImageHost(t, ImageOptions{AllowPrivate: loopback}, func(t *testing.T, d imageHost, dir string) {
		ctx := t.Context()
		var ready []vm.ImageContent
		var done, total int64
		i := vm.Import{
			Sum: vm.ImageSum{SHA256: sumOf(packed.Bytes())}, Format: vm.FormatRaw,
			Progress: func(d, t int64) { done, total = d, t },
			Ready: func(c vm.ImageContent) error {
				if has, err := d.HasImage(ctx, c.SHA256); has || err != nil {
					t.Errorf("the content exists before it is recorded, %v", err)
				}
				ready = append(ready, c)
				return nil
			},
		}
		want := vm.ImageContent{SHA256: sumOf(b), Layout: vm.FormatRaw, VirtualMiB: 1, Bytes: mib}
		c, err := d.FetchImage(ctx, url+"/image?key=1", i)
		if err != nil || c != want || len(ready) != 1 || ready[0] != want {
			t.Fatalf("the content is %+v, %v; Ready got %+v", c, err, ready)
		}
		if n := int64(packed.Len()); done != n || total != n {
			t.Errorf("the progress ends at %d of %d; want %d", done, total, n)
		}
		if has, err := d.HasImage(ctx, c.SHA256); !has || err != nil {
			t.Errorf("the content does not exist: %v", err)
		}
		if seen, err := d.Survey(ctx); err != nil || len(seen.Images) != 1 || seen.Images[c.SHA256] != mib {
			t.Errorf("a survey sees %v, %v", seen.Images, err)
		}
		r, err := d.OpenImage(ctx, c.SHA256)
		must(t, err)
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, b) {
			t.Errorf("reading it returns %d bytes, %v", len(got), err)
		}
		for range 2 {
			must(t, d.DeleteImage(ctx, c.SHA256))
		}
		_, err = d.OpenImage(ctx, c.SHA256)
		mustFail(t, err, vm.CodeNotFound)
		for _, other := range []string{"", "..", strings.Repeat("A0", 32)} {
			_, err = d.OpenImage(ctx, other)
			mustFail(t, err, vm.CodeNotFound)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

func TestContentIsReadableByQEMUAndWritableByNoUser(t *testing.T) {
	d := newDriver(t, Options{})
	c := bring(t, d, rawImage("mine"))
	path := d.layout.content(c.SHA256)
	st, err := os.Stat(path)
	must(t, err)
	if os.Geteuid() != 0 {
		if st.Mode() != 0o400 {
			t.Errorf("it has mode %v", st.Mode())
		}
		return
	}
	if owner := st.Sys().(*syscall.Stat_t); st.Mode() != 0o440 || owner.Uid != 0 || int(owner.Gid) != d.account.GID {
		t.Errorf("it has mode %v and is %d:%d's", st.Mode(), owner.Uid, owner.Gid)
	}
	must(t, d.account.CanRead(path))
	err = d.account.Do(func() error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		return err
	})
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("QEMU's user can open it for writing: %v", err)
	}
	if err := d.account.Do(func() error { return os.Remove(path) }); !errors.Is(err, os.ErrPermission) {
		t.Errorf("QEMU's user can remove it: %v", err)
	}
}

func TestEveryImageErrorHasACode(t *testing.T) {
	b := rawImage("image")
	full := errors.New("nothing can be recorded")
	url := serveImages(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/image":
			w.Write(b)
		case "/none":
			w.Write([]byte("<html>no image"))
		case "/large":
			w.Write(make([]byte, 5*mib))
		case "/away":
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	})
	eachImageHost(t, ImageOptions{AllowPrivate: loopback, MaxBytes: 4 * mib}, func(t *testing.T, d imageHost, dir string) {
		for name, c := range map[string]struct {
			url  string
			i    vm.Import
			want vm.Code
		}{
			"no image":          {url + "/none?secret", vm.Import{}, vm.CodeUnsupportedImage},
			"another format":    {url + "/image?secret", vm.Import{Format: vm.FormatQcow2}, vm.CodeUnsupportedImage},
			"another sum":       {url + "/image?secret", vm.Import{Sum: vm.ImageSum{SHA512: strings.Repeat("0", 128)}}, vm.CodeChecksumMismatch},
			"too large":         {url + "/large?secret", vm.Import{}, vm.CodeTooLarge},
			"not found":         {url + "/lost?secret", vm.Import{}, vm.CodeFetchFailed},
			"a redirect":        {url + "/away?secret", vm.Import{}, vm.CodeFetchFailed},
			"a private address": {"http://10.0.0.1/?secret", vm.Import{}, vm.CodeFetchFailed},
			"nothing recorded":  {url + "/image?secret", vm.Import{Ready: func(vm.ImageContent) error { return fault(vm.CodeInUse, full, "no") }}, vm.CodeInUse},
		} {
			_, err := d.FetchImage(t.Context(), c.url, c.i)
			if codeOf(err) != c.want || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v, want code %s", name, err, c.want)
			}
			var f *vm.Fault
			if hint := "images.allow_private"; name == "a private address" && errors.As(err, &f) && !strings.Contains(f.Hint, hint) {
				t.Errorf("the hint does not name %s: %q", hint, f.Hint)
			}
		}
		if _, err := d.FetchImage(t.Context(), url+"/image", vm.Import{Ready: func(vm.ImageContent) error { return full }}); err != full {
			t.Errorf("the error of Ready became %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, err := d.FetchImage(ctx, url+"/image", vm.Import{Progress: func(int64, int64) { cancel() }})
		mustFail(t, err, vm.CodeCancelled)
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		must(t, d.CheckURL(url))
		for _, bad := range []string{"ftp://host/image", "/etc/passwd", "http://user:secret@host/", "http://"} {
			err := d.CheckURL(bad)
			var f *vm.Fault
			named := errors.As(err, &f) && f.Code == vm.CodeInvalid && len(f.Fields) == 1 && f.Fields[0].Field == "/url"
			if !named || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v", bad, err)
			}
		}
	})
}

func TestAnUploadContinuesAfterALostConnection(t *testing.T) {
	eachImageHost(t, ImageOptions{MaxBytes: 4 * mib}, func(t *testing.T, d imageHost, dir string) {
		ctx, b, lost := t.Context(), rawImage("upload"), errors.New("the client is lost")
		at, err := d.UploadImage(ctx, "new", 0, io.MultiReader(bytes.NewReader(b[:mib/2]), iotest.ErrReader(lost)))
		if at != mib/2 || !errors.Is(err, lost) || codeOf(err) != "" {
			t.Errorf("UploadImage returns %d, %v", at, err)
		}
		if at, err = d.Uploaded(ctx, "new"); at != mib/2 || err != nil {
			t.Errorf("uploaded %d, %v", at, err)
		}
		at, err = d.UploadImage(ctx, "new", 0, bytes.NewReader(b))
		mustFail(t, err, vm.CodePrecondition)
		_, err = d.FinishUpload(ctx, "new", vm.Import{Sum: vm.ImageSum{SHA256: sumOf(b)}})
		mustFail(t, err, vm.CodeChecksumMismatch)
		if at, err = d.UploadImage(ctx, "new", at, bytes.NewReader(b[at:])); at != mib || err != nil {
			t.Errorf("UploadImage returns %d, %v", at, err)
		}
		_, err = d.UploadImage(ctx, "new", at, bytes.NewReader(make([]byte, 4*mib)))
		mustFail(t, err, vm.CodeTooLarge)
		must(t, d.DropUpload(ctx, "new"))
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		for range 2 {
			if c := bring(t, d, b); c.SHA256 != sumOf(b) {
				t.Errorf("the content is %+v", c)
			}
		}
	})
}
