package crash

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"

	"vmand/test/harness"
)

// Seams of bringing an image in, and of what is made of it.
var (
	importSeams = []string{"image.noted", "image.stored"}
	driveSeams  = []string{"cdrom.node-added", "cdrom.device-added"}
)

// imageOperations are those on images, on what is made of them, on CD-ROM drives
// and on cloud-init data.
var imageOperations = []operation{
	{name: "image.create, of a disk", inner: importSeams, prepare: disk,
		request: func(x target) (string, string, any) {
			return "POST", "/images", map[string]any{"name": x.vm, "from_disk": x.disk}
		}, status: 201, done: imageIsThere, refused: 409, why: "already exists"},
	{name: "image.create, downloaded", env: []string{"VMAN_IMAGES_ALLOW_PRIVATE=127.0.0.0/8"}, inner: importSeams,
		request: func(x target) (string, string, any) {
			return "POST", "/images", map[string]any{"name": x.vm, "url": imageServer().URL + fmt.Sprintf("/%d", x.n)}
		}, status: 201, done: imageIsThere, refused: 409, why: "already exists"},
	{name: "image.upload", inner: join([]string{"image.uploaded"}, importSeams),
		request: func(x target) (string, string, any) { return "POST", "/images?name=" + x.vm, harness.RawImage(x.n) },
		status:  201, done: imageIsThere, refused: 409, why: "already exists"},
	{name: "image.update", once: true, prepare: imaged,
		request: func(x target) (string, string, any) {
			return "PATCH", "/images/" + x.image, map[string]any{"description": "new"}
		}, status: 200,
		done: func(d *harness.Daemon, x target) bool { return d.Census().Images[x.image].Description == "new" }},
	{name: "image.delete", inner: []string{"image.delete.row-gone"}, prepare: imaged,
		request: remove(imagePath), status: 204, done: gone(imagePath), refused: 404},

	{name: "vm.create, of an image", inner: join([]string{"dir.made"}, imageSeams, []string{"image.synced"}), prepare: imaged,
		request: ofImage(nil), status: 201, done: there(vmPath), refused: 409, why: "already exists"},
	{name: "vm.create, a full clone", inner: join([]string{"dir.made"}, imageSeams, []string{"image.synced"}), prepare: imaged,
		request: ofImage(map[string]any{"full_clone": true}), status: 201, done: there(vmPath), refused: 409, why: "already exists"},
	{name: "vm.start, with a seed", inner: join([]string{"seed.written"}, startSeams), prepare: seeded,
		request: act("start", nil), status: 200, done: is("running"), refused: 409, why: "already running"},
	{name: "disk.create, of an image", inner: imageSeams, prepare: imaged,
		request: func(x target) (string, string, any) { return "POST", "/disks", map[string]any{"image": x.image} }, status: 201,
		done: func(d *harness.Daemon, _ target) bool { return len(d.Census().Disks) > 0 }},
	{name: "disk.create, a copy", inner: imageSeams, prepare: stopped,
		request: func(x target) (string, string, any) { return "POST", "/disks", map[string]any{"from_disk": x.vm} }, status: 201,
		done: func(d *harness.Daemon, _ target) bool { return len(d.Census().Disks) > 0 }},

	{name: "cdrom.attach", prepare: both(stopped, discs),
		request: insert, status: 201, done: inserted},
	{name: "cdrom.attach, running", inner: driveSeams, prepare: both(running, discs),
		request: insert, status: 201, done: inserted},
	{name: "cdrom.eject", prepare: both(stopped, loaded),
		request: remove(drivePath), status: 204, done: ejected, refused: 404},
	{name: "cdrom.eject, running", inner: []string{"cdrom.device-deleted", "cdrom.node-deleted"}, prepare: both(running, loaded),
		request: remove(drivePath), status: 204, done: ejected, refused: 404},
	{name: "cloud_init.update", prepare: stopped, request: seed, status: 200, done: isSeeded},
	{name: "cloud_init.update, running", inner: join([]string{"seed.written"}, driveSeams), prepare: running, request: seed, status: 200, done: isSeeded, untold: true},
}

func imagePath(x target) string { return "/images/" + x.image }

func drivePath(x target) string { return "/vms/" + x.vm + "/cdroms/cd-1" }

// imageServer has an image at every path that is a number.
var imageServer = sync.OnceValue(func() *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var n int
		if _, err := fmt.Sscanf(r.URL.Path, "/%d", &n); err != nil {
			http.NotFound(w, r)
			return
		}
		w.Write(harness.RawImage(n))
	}))
})

func imaged(d *harness.Daemon, x *target) {
	x.image = x.vm
	d.UploadImage(x.image, harness.RawImage(x.n))
}

func discs(d *harness.Daemon, x *target) {
	x.image = x.vm
	d.UploadImage(x.image, harness.ISOImage(x.n))
}

func loaded(d *harness.Daemon, x *target) {
	discs(d, x)
	method, path, body := insert(*x)
	d.Call(method, path, body).Want(201)
}

func seeded(d *harness.Daemon, x *target) {
	d.Call("POST", "/vms", map[string]any{"name": x.vm, "template_name": "small", "cloud_init": map[string]any{}}).Want(201)
}

func imageIsThere(d *harness.Daemon, x target) bool {
	return d.Census().Images[x.vm].State == "available"
}

func ofImage(more map[string]any) func(target) (string, string, any) {
	return func(x target) (string, string, any) {
		body := map[string]any{"name": x.vm, "template_name": "small", "image": x.image}
		for key, value := range more {
			body[key] = value
		}
		return "POST", "/vms", body
	}
}

func insert(x target) (string, string, any) {
	return "POST", "/vms/" + x.vm + "/cdroms", map[string]any{"image": x.image}
}

func inserted(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).CDROMs) > 0 }

func ejected(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).CDROMs) == 0 }

func seed(x target) (string, string, any) {
	return "PUT", "/vms/" + x.vm + "/cloud_init", map[string]any{"hostname": "seeded"}
}

func isSeeded(d *harness.Daemon, x target) bool {
	return d.Call("GET", "/vms/"+x.vm+"/cloud_init", nil).Status == 200
}
