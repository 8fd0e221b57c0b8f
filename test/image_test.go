package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
)

// guestImage returns a variant of the test guest as it is.
func guestImage(t testing.TB, variant string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(guests, "disk-"+variant+".qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestFromAnImageToAGuestThatAnswers is what the README shows of images.
func TestFromAnImageToAGuestThatAnswers(t *testing.T) {
	d := startDaemon(t)
	d.template()
	content := guestImage(t, "agent")
	sum := sha256.Sum256(content)
	i := as[openapi.Image](d.call("POST", "/images?name=guest&sha256="+hex.EncodeToString(sum[:]), content).want(201))
	if i.State != "available" || *i.SHA256 != hex.EncodeToString(sum[:]) || string(*i.Format) != "qcow2" || *i.SizeBytes != int64(len(content)) {
		t.Errorf("uploaded: %+v", i)
	}
	d.upload("disc", isoImage(1))
	v := as[openapi.VM](d.call("POST", "/vms?wait_for=agent", map[string]any{"template_name": "small", "name": "a", "image": "guest", "start": true,
		"root_disk_size": 1, "cdroms": []any{map[string]any{"image": "disc"}}, "cloud_init": map[string]any{"hostname": "seeded"}},
		"Prefer: wait=240").want(201))
	if v.State != "running" || v.Image == nil || *v.Image != "guest" || len(v.CDROMs) != 2 || v.Boot.AgentAt == nil {
		t.Fatalf("started: %+v", v)
	}
	g := d.guest("a")
	g.says("VMT: seed instance=" + v.UUID + " hostname=seeded")
	g.says(`VMT: disk-add name=sr\d bytes=38912 ro=1`)
	if got := d.runs("a", "cat /mnt/sr*/user-data | head -n 1; blockdev --getsize64 /dev/vda"); got != "#cloud-config\n1073741824" {
		t.Errorf("the guest has %q", got)
	}
	t.Run("a disk of the image is plugged in", func(t *testing.T) {
		disk := as[openapi.Disk](d.call("POST", "/disks", map[string]any{"image": "guest", "size": 0.5}).want(201))
		d.attach(disk.ID, "a")
		seen := g.says(`VMT: disk-add name=(sd\w+) bytes=536870912 ro=0 serial=` + disk.ID)
		if got := d.runs("a", "dd if=/dev/"+seen[1]+" bs=512 count=1 2>/dev/null | tail -c 2 | hexdump -e '/1 \"%02x\"'"); got != "55aa" {
			t.Errorf("its first sector ends with %q", got)
		}
		d.runs("a", "echo mine | dd of=/dev/"+seen[1]+" bs=512 seek=1 conv=fsync 2>/dev/null")
		d.call("DELETE", "/images/guest", nil).problem(409, "in-use", "1 VM", "1 disk")
		d.call("POST", "/disks/"+disk.ID+"/detach", nil).want(200)
		d.call("POST", "/images", map[string]any{"name": "copy", "from_disk": disk.ID}, wait).want(201)
		copied := d.call("GET", "/images/copy/content", nil).want(200)
		file := filepath.Join(t.TempDir(), "copy.qcow2")
		if err := os.WriteFile(file, copied.body, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("qemu-io", "-f", "qcow2", "-r", "-c", "read -v 512 16", file).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "mine") {
			t.Errorf("the copy has %v\n%s", err, out)
		}
		d.call("DELETE", "/disks/"+disk.ID, nil).want(204)
		d.call("DELETE", "/images/copy", nil).want(204)
	})
	t.Run("discs come and go", func(t *testing.T) {
		d.upload("other", isoImage(2))
		c := as[openapi.CDROM](d.call("POST", "/vms/a/cdroms", map[string]any{"image": "other"}).want(201))
		seen := g.says(`VMT: disk-add name=(sr\d) bytes=38912 ro=1`)
		d.call("DELETE", "/images/other", nil).problem(409, "in-use", "1 VM")
		d.call("DELETE", "/vms/a/cdroms/"+c.ID, nil).want(204)
		g.says("VMT: disk-remove name=" + seen[1])
		d.call("DELETE", "/vms/a/cdroms/seed", nil).want(204)
		d.call("DELETE", "/images/other", nil).want(204)
		d.kill()
		d.start()
		d.passes(2)
		if got := d.vm("a"); got.State != "running" || len(got.CDROMs) != 1 {
			t.Errorf("after a kill: %+v", got)
		}
	})
	d.call("DELETE", "/vms/a", nil).want(204)
	d.call("DELETE", "/images/guest", nil).want(204)
	d.call("DELETE", "/images/disc", nil).want(204)
	if left := d.names(filepath.Join(d.state, "images")); len(left) != 0 {
		t.Errorf("in images are left %q", left)
	}
}

// runs runs a shell command in a guest with an agent and returns what it wrote.
func (d *daemon) runs(id, command string) string {
	d.t.Helper()
	r := as[openapi.ExecResult](d.call("POST", "/vms/"+id+"/exec", map[string]any{"command": []string{"/bin/sh", "-c", command}, "timeout_seconds": 60}).want(200))
	if r.ExitCode == nil || *r.ExitCode != 0 {
		d.t.Fatalf("%s ended with %+v", command, r)
	}
	return strings.TrimSpace(word(r.Stdout))
}

// TestAnImageIsDownloaded has a server that is slow, breaks off and sends on.
func TestAnImageIsDownloaded(t *testing.T) {
	content := rawImage(7)
	gate := make(chan struct{})
	broken := false
	mux := http.NewServeMux()
	mux.HandleFunc("/good", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("Range") == "" && !broken {
			broken = true
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Write(content[:len(content)/2])
			return // in the middle
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		w.Write(content[:4096])
		w.(http.Flusher).Flush()
		select {
		case <-gate:
		case <-r.Context().Done():
		}
	})
	mux.Handle("/away", http.RedirectHandler("http://192.0.2.1/image", http.StatusFound))
	s := httptest.NewServer(mux)
	defer s.Close()
	defer close(gate)

	d := startDaemon(t, "VMAN_IMAGES_ALLOW_PRIVATE=127.0.0.1")
	sum := sha256.Sum256(content)
	body := map[string]any{"name": "a", "url": s.URL + "/good?token=secret", "sha256": hex.EncodeToString(sum[:])}
	i := as[openapi.Image](d.call("POST", "/images", body, wait).want(201))
	if i.State != "available" || i.Source != s.URL+"/good" || *i.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("downloaded: %+v", i)
	}
	for _, log := range []string{d.said(), string(d.call("GET", "/events?limit=1000", nil).body), string(d.call("GET", "/operations", nil).body)} {
		if strings.Contains(log, "secret") {
			t.Error("the secret of a URL is told")
		}
	}
	d.call("POST", "/images", map[string]any{"name": "b", "url": s.URL + "/away"}, wait).problem(503, "fetch-failed", "192.0.2.1")
	d.call("POST", "/images", map[string]any{"name": "b", "url": s.URL + "/nothing"}, wait).problem(503, "fetch-failed", "404")
	d.call("POST", "/images", map[string]any{"name": "b", "url": s.URL + "/good", "sha256": strings.Repeat("0", 64)}, wait).problem(400, "checksum-mismatch")
	d.call("POST", "/images", map[string]any{"name": "b", "url": "file:///etc/passwd"}).problem(400, "invalid-request", "url")

	a := d.call("POST", "/images", map[string]any{"name": "b", "url": s.URL + "/slow"}).want(202)
	if i := as[openapi.Image](a); i.State != "importing" {
		t.Errorf("accepted: %+v", i)
	}
	d.call("DELETE", "/images/b", nil).problem(409, "busy")
	d.call("POST", a.header.Get("Location")+"/cancel", nil).want(202)
	d.call("GET", "/images/b", nil).want(404)
	d.call("POST", "/images", map[string]any{"name": "b", "url": s.URL + "/slow"}).want(202)
	d.kill()
	d.start()
	d.call("GET", "/images/b", nil).want(404)
	for _, v := range d.violations() {
		t.Error(v)
	}
}

// TestAnUploadGoesOnAfterAKill sends an image in pieces to two daemons.
func TestAnUploadGoesOnAfterAKill(t *testing.T) {
	d := startDaemon(t)
	content := rawImage(3)
	half := len(content) / 2
	i := as[openapi.Image](d.call("POST", "/images?name=a&more=true", content[:half]).want(202))
	if i.State != "uploading" || *i.UploadedBytes != int64(half) {
		t.Errorf("half of it: %+v", i)
	}
	d.kill()
	d.start()
	d.call("PATCH", "/images/a/content?offset=1", content[1:]).problem(412, "precondition-failed", fmt.Sprint(half))
	i = as[openapi.Image](d.call("PATCH", fmt.Sprintf("/images/a/content?offset=%d", half), content[half:]).want(200))
	sum := sha256.Sum256(content)
	if i.State != "available" || *i.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("all of it: %+v", i)
	}
	part := d.call("GET", "/images/a/content", nil, "Range: bytes=16-31").want(206)
	if !bytes.Equal(part.body, content[16:32]) {
		t.Errorf("a part of it is %q", part.body)
	}
	d.call("POST", "/images?name=b", []byte("\x1f\x8bgarbage")).problem(400, "unsafe-image")
	d.call("GET", "/images/b", nil).want(404)
}

// TestAnImageThatIsLostIsSaid takes content away and brings it back.
func TestAnImageThatIsLostIsSaid(t *testing.T) {
	d := startDaemon(t, "VMAN_OBSERVER_INTERVAL=250ms")
	d.template()
	i := d.upload("a", rawImage(1))
	d.call("POST", "/vms", map[string]any{"template_name": "small", "name": "v", "image": "a"}).want(201)
	file := filepath.Join(d.state, "images", *i.SHA256)
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	state := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, "the image to be "+want, func() error {
			if got := as[openapi.Image](d.call("GET", "/images/a", nil).want(200)); string(got.State) != want {
				return fmt.Errorf("it is %+v", got)
			}
			return nil
		})
	}
	state("error")
	d.call("POST", "/vms/v/actions/start", nil, wait).problem(503, "operation-failed", "image a")
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	state("available")
	d.do("v", "start")
}
