package api

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
	"vmand/test/harness"
)

// TestBootFromAnImage boots a VM of an uploaded image, with a CD-ROM and
// cloud-init data.
func TestBootFromAnImage(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	content := harness.GuestImage(t, "agent")
	sum := sha256.Sum256(content)
	upload := d.Call("POST", "/images?name=guest&sha256="+hex.EncodeToString(sum[:]), content)
	i := harness.As[openapi.Image](upload.Want(201))
	if i.State != "available" || *i.SHA256 != hex.EncodeToString(sum[:]) ||
		string(*i.Format) != "qcow2" || *i.SizeBytes != int64(len(content)) {
		t.Errorf("the uploaded image is %+v, want a qcow2 of %d bytes", i, len(content))
	}
	d.UploadImage("disc", harness.ISOImage(1))
	body := map[string]any{
		"template_name":  "small",
		"name":           "a",
		"image":          "guest",
		"start":          true,
		"root_disk_size": 1,
		"cdroms":         []any{map[string]any{"image": "disc"}},
		"cloud_init":     map[string]any{"hostname": "seeded"},
	}
	v := harness.As[openapi.VM](d.Call("POST", "/vms?wait_for=agent", body, "Prefer: wait=240").Want(201))
	if v.State != "running" || harness.Deref(v.Image) != "guest" || len(v.CDROMs) != 2 || v.Boot.AgentAt == nil {
		t.Fatalf("the VM is %+v, want running with two CD-ROM drives and an agent", v)
	}
	g := d.Serial("a")
	g.Expect("VMT: seed instance=" + v.UUID + " hostname=seeded")
	g.Expect(`VMT: disk-add name=sr\d bytes=38912 ro=1`)
	got := d.Exec("a", "cat /mnt/sr*/user-data | head -n 1; blockdev --getsize64 /dev/vda")
	if got != "#cloud-config\n1073741824" {
		t.Errorf("the guest printed %q, want the user data and a disk of 1 GiB", got)
	}
	t.Run("a disk of the image is plugged in", func(t *testing.T) {
		disk := harness.As[openapi.Disk](d.Call("POST", "/disks", map[string]any{"image": "guest", "size": 0.5}).Want(201))
		d.AttachDisk(disk.ID, "a")
		seen := g.Expect(`VMT: disk-add name=(sd\w+) bytes=536870912 ro=0 serial=` + disk.ID)
		got := d.Exec("a", "dd if=/dev/"+seen[1]+" bs=512 count=1 2>/dev/null | tail -c 2 | hexdump -e '/1 \"%02x\"'")
		if got != "55aa" {
			t.Errorf("the first sector of the disk ends with %q, want 55aa", got)
		}
		d.Exec("a", "echo mine | dd of=/dev/"+seen[1]+" bs=512 seek=1 conv=fsync 2>/dev/null")
		d.Call("DELETE", "/images/guest", nil).Problem(409, "in-use", "1 VM", "1 disk")
		d.Call("POST", "/disks/"+disk.ID+"/detach", nil).Want(200)
		d.Call("POST", "/images", map[string]any{"name": "copy", "from_disk": disk.ID}, harness.Wait).Want(201)
		copied := d.Call("GET", "/images/copy/content", nil).Want(200)
		file := filepath.Join(t.TempDir(), "copy.qcow2")
		if err := os.WriteFile(file, copied.Body, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("qemu-io", "-f", "qcow2", "-r", "-c", "read -v 512 16", file).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "mine") {
			t.Errorf("qemu-io reads from the copy: %v, want the word mine\n%s", err, out)
		}
		d.Call("DELETE", "/disks/"+disk.ID, nil).Want(204)
		d.Call("DELETE", "/images/copy", nil).Want(204)
	})
	t.Run("discs come and go", func(t *testing.T) {
		d.UploadImage("other", harness.ISOImage(2))
		c := harness.As[openapi.CDROM](d.Call("POST", "/vms/a/cdroms", map[string]any{"image": "other"}).Want(201))
		seen := g.Expect(`VMT: disk-add name=(sr\d) bytes=38912 ro=1`)
		d.Call("DELETE", "/images/other", nil).Problem(409, "in-use", "1 VM")
		d.Call("DELETE", "/vms/a/cdroms/"+c.ID, nil).Want(204)
		g.Expect("VMT: disk-remove name=" + seen[1])
		d.Call("DELETE", "/vms/a/cdroms/seed", nil).Want(204)
		d.Call("DELETE", "/images/other", nil).Want(204)
		d.Kill()
		d.Start()
		d.WaitPasses(2)
		if got := d.VM("a"); got.State != "running" || len(got.CDROMs) != 1 {
			t.Errorf("after a kill, the VM is %+v, want running with one CD-ROM drive", got)
		}
	})
	d.Call("DELETE", "/vms/a", nil).Want(204)
	d.Call("DELETE", "/images/guest", nil).Want(204)
	d.Call("DELETE", "/images/disc", nil).Want(204)
	if left := d.FileNames(filepath.Join(d.StateDir, "images")); len(left) != 0 {
		t.Errorf("the directory of images contains %q, want nothing", left)
	}
}

// TestBootFromAnOVA boots a VM of the second of two disks of an uploaded OVA.
func TestBootFromAnOVA(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	dir := t.TempDir()
	write := func(name string, content []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) {
		t.Helper()
		c := exec.Command(name, args...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
	}
	write("guest.qcow2", harness.GuestImage(t, "agent"))
	run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "guest.qcow2", "guest-disk1.vmdk")
	write("guest-disk2.img", harness.RawImage(1))
	disk, err := os.ReadFile(filepath.Join(dir, "guest-disk1.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	write("guest.ovf", []byte(`<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"><References>
<File ovf:id="f1" ovf:href="guest-disk2.img"/><File ovf:id="f2" ovf:href="guest-disk1.vmdk"/></References>
<DiskSection><Disk ovf:diskId="d1" ovf:fileRef="f1"/><Disk ovf:diskId="d2" ovf:fileRef="f2"/></DiskSection></Envelope>`))
	write("guest.mf", fmt.Appendf(nil, "SHA256(guest-disk1.vmdk)= %x\n", sha256.Sum256(disk)))
	run("tar", "--format=ustar", "-cf", "guest.ova", "guest.ovf", "guest.mf", "guest-disk2.img", "guest-disk1.vmdk")
	ova, err := os.ReadFile(filepath.Join(dir, "guest.ova"))
	if err != nil {
		t.Fatal(err)
	}
	d.Call("POST", "/images?name=guest", ova).Problem(400, "unsupported-image", "guest-disk2.img, guest-disk1.vmdk")
	d.Call("POST", "/images?name=guest&disk=guest-disk3.vmdk", ova).Problem(400, "unsupported-image", "guest-disk3.vmdk")
	i := harness.As[openapi.Image](d.Call("POST", "/images?name=guest&disk=guest-disk1.vmdk", ova).Want(201))
	if sum := sha256.Sum256(disk); string(*i.Format) != "vmdk" || *i.SHA256 != hex.EncodeToString(sum[:]) {
		t.Fatalf("the image is %+v, want the vmdk", i)
	}
	body := map[string]any{"template_name": "small", "name": "a", "image": "guest", "start": true}
	v := harness.As[openapi.VM](d.Call("POST", "/vms?wait_for=agent", body, "Prefer: wait=240").Want(201))
	if v.State != "running" || v.Boot.AgentAt == nil {
		t.Errorf("the VM is %+v, want running with an agent", v)
	}
}

// TestImageIsDownloaded downloads from a server that is slow and breaks off once.
func TestImageIsDownloaded(t *testing.T) {
	content := harness.RawImage(7)
	gate := make(chan struct{})
	broken := false
	mux := http.NewServeMux()
	mux.HandleFunc("/good", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("Range") == "" && !broken {
			broken = true
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Write(content[:len(content)/2])
			return // breaks off
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

	d := harness.StartDaemon(t, "VMAN_IMAGES_ALLOW_PRIVATE=127.0.0.1")
	sum := sha256.Sum256(content)
	body := map[string]any{"name": "a", "url": s.URL + "/good?token=secret", "sha256": hex.EncodeToString(sum[:])}
	i := harness.As[openapi.Image](d.Call("POST", "/images", body, harness.Wait).Want(201))
	if i.State != "available" || i.Source != s.URL+"/good" || *i.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("the downloaded image is %+v, want available, without the query in its source", i)
	}
	for where, text := range map[string]string{
		"the log":    d.Log(),
		"events":     string(d.Call("GET", "/events?limit=1000", nil).Body),
		"operations": string(d.Call("GET", "/operations", nil).Body),
	} {
		if strings.Contains(text, "secret") {
			t.Errorf("the query of the URL is shown in %s", where)
		}
	}
	for path, detail := range map[string]string{"/away": "not on the public Internet", "/nothing": "404"} {
		body = map[string]any{"name": "b", "url": s.URL + path}
		d.Call("POST", "/images", body, harness.Wait).Problem(503, "fetch-failed", detail)
	}
	body = map[string]any{"name": "b", "url": s.URL + "/good", "sha256": strings.Repeat("0", 64)}
	d.Call("POST", "/images", body, harness.Wait).Problem(400, "checksum-mismatch")
	body = map[string]any{"name": "b", "url": "file:///etc/passwd"}
	d.Call("POST", "/images", body).Problem(400, "invalid-request", "url")

	a := d.Call("POST", "/images", map[string]any{"name": "b", "url": s.URL + "/slow"}).Want(202)
	if i := harness.As[openapi.Image](a); i.State != "importing" {
		t.Errorf("the image is %+v, want importing", i)
	}
	d.Call("DELETE", "/images/b", nil).Problem(409, "busy")
	d.Call("POST", a.Header.Get("Location")+"/cancel", nil).Want(202)
	d.Call("GET", "/images/b", nil).Want(404)
	d.Call("POST", "/images", map[string]any{"name": "b", "url": s.URL + "/slow"}).Want(202)
	d.Kill()
	d.Start()
	d.Call("GET", "/images/b", nil).Want(404)
	for _, v := range d.Violations() {
		t.Error(v)
	}
}

// TestUploadContinuesAfterAKill uploads an image in two parts, with a kill between them.
func TestUploadContinuesAfterAKill(t *testing.T) {
	d := harness.StartDaemon(t)
	content := harness.RawImage(3)
	half := len(content) / 2
	i := harness.As[openapi.Image](d.Call("POST", "/images?name=a&more=true", content[:half]).Want(202))
	if i.State != "uploading" || *i.UploadedBytes != int64(half) {
		t.Errorf("after one half the image is %+v, want uploading, %d bytes", i, half)
	}
	d.Kill()
	d.Start()
	d.Call("PATCH", "/images/a/content?offset=1", content[1:]).Problem(412, "precondition-failed", fmt.Sprint(half))
	rest := d.Call("PATCH", fmt.Sprintf("/images/a/content?offset=%d", half), content[half:])
	i = harness.As[openapi.Image](rest.Want(200))
	sum := sha256.Sum256(content)
	if i.State != "available" || *i.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("after both halves the image is %+v, want available", i)
	}
	part := d.Call("GET", "/images/a/content", nil, "Range: bytes=16-31").Want(206)
	if !bytes.Equal(part.Body, content[16:32]) {
		t.Errorf("bytes 16 to 31 are %q, want %q", part.Body, content[16:32])
	}
	d.Call("POST", "/images?name=b", []byte("\x1f\x8bgarbage")).Problem(400, "damaged-image")
	d.Call("GET", "/images/b", nil).Want(404)
}

// TestLostImageIsReported moves the content of an image away and back.
func TestLostImageIsReported(t *testing.T) {
	d := harness.StartDaemon(t, "VMAN_OBSERVER_INTERVAL=250ms")
	d.CreateTemplate()
	i := d.UploadImage("a", harness.RawImage(1))
	d.Call("POST", "/vms", map[string]any{"template_name": "small", "name": "v", "image": "a"}).Want(201)
	file := filepath.Join(d.StateDir, "images", *i.SHA256)
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	state := func(want string) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, "the image to be "+want, func() error {
			if got := harness.Get[openapi.Image](d, "/images/a"); string(got.State) != want {
				return fmt.Errorf("the image is %+v", got)
			}
			return nil
		})
	}
	state("error")
	d.Call("POST", "/vms/v/actions/start", nil, harness.Wait).Problem(503, "operation-failed", "image a")
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	state("available")
	d.Action("v", "start")
}
