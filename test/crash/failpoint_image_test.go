package crash

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"

	"vmand/test/harness"
)

// Fail points of importing an image and of plugging a CD-ROM drive.
var (
	importSeams = []string{"image.noted", "image.stored"}
	driveSeams  = []string{"cdrom.node-added", "cdrom.device-added"}
)

// imageOperations are the changes of images, of VMs and disks made of them, of CD-ROM drives
// and of cloud-init data.
var imageOperations = []operation{
	{
		name:    "image.create, of a disk",
		inner:   importSeams,
		prepare: disk,
		request: func(x target) (string, string, any) {
			return "POST", "/images", map[string]any{"name": x.vm, "from_disk": x.disk}
		},
		status:  201,
		done:    imageIsAvailable,
		refused: 409,
		refusal: "already exists",
	},
	{
		name:  "image.create, downloaded",
		env:   []string{"VMAN_IMAGES_ALLOW_PRIVATE=127.0.0.0/8"},
		inner: importSeams,
		request: func(x target) (string, string, any) {
			return "POST", "/images", map[string]any{"name": x.vm, "url": imageServer().URL + fmt.Sprintf("/%d", x.n)}
		},
		status:  201,
		done:    imageIsAvailable,
		refused: 409,
		refusal: "already exists",
	},
	{
		name:  "image.upload",
		inner: slices.Concat([]string{"image.uploaded"}, importSeams),
		request: func(x target) (string, string, any) {
			return "POST", "/images?name=" + x.vm, harness.RawImage(x.n)
		},
		status:  201,
		done:    imageIsAvailable,
		refused: 409,
		refusal: "already exists",
	},
	{
		name:    "image.update",
		single:  true,
		prepare: withImage,
		request: func(x target) (string, string, any) {
			return "PATCH", "/images/" + x.image, map[string]any{"description": "new"}
		},
		status: 200,
		done:   func(d *harness.Daemon, x target) bool { return d.Census().Images[x.image].Description == "new" },
	},
	{
		name:    "image.delete",
		inner:   []string{"image.delete.row-gone"},
		prepare: withImage,
		request: deleteRequest(imagePath),
		status:  204,
		done:    isGone(imagePath),
		refused: 404,
	},

	{
		name:    "vm.create, of an image",
		inner:   slices.Concat([]string{"dir.made"}, imageSeams, []string{"image.synced"}),
		prepare: withImage,
		request: createOfImage(nil),
		status:  201,
		done:    exists(vmPath),
		refused: 409,
		refusal: "already exists",
	},
	{
		name:    "vm.create, a full clone",
		inner:   slices.Concat([]string{"dir.made"}, imageSeams, []string{"image.synced"}),
		prepare: withImage,
		request: createOfImage(map[string]any{"full_clone": true}),
		status:  201,
		done:    exists(vmPath),
		refused: 409,
		refusal: "already exists",
	},
	{
		name:    "vm.start, with a seed",
		inner:   slices.Concat([]string{"seed.written"}, startSeams),
		prepare: withSeed,
		request: vmAction("start", nil),
		status:  200,
		done:    is("running"),
		refused: 409,
		refusal: "already running",
	},
	{
		name:    "disk.create, of an image",
		inner:   imageSeams,
		prepare: withImage,
		request: func(x target) (string, string, any) { return "POST", "/disks", map[string]any{"image": x.image} },
		status:  201,
		done:    func(d *harness.Daemon, _ target) bool { return len(d.Census().Disks) > 0 },
	},
	{
		name:    "disk.create, a copy",
		inner:   imageSeams,
		prepare: stopped,
		request: func(x target) (string, string, any) { return "POST", "/disks", map[string]any{"from_disk": x.vm} },
		status:  201,
		done:    func(d *harness.Daemon, _ target) bool { return len(d.Census().Disks) > 0 },
	},

	{
		name:    "cdrom.attach",
		prepare: inOrder(stopped, withDisc),
		request: insertDisc,
		status:  201,
		done:    hasDrive,
	},
	{
		name:    "cdrom.attach, running",
		inner:   driveSeams,
		prepare: inOrder(running, withDisc),
		request: insertDisc,
		status:  201,
		done:    hasDrive,
	},
	{
		name:    "cdrom.eject",
		prepare: inOrder(stopped, withDrive),
		request: deleteRequest(drivePath),
		status:  204,
		done:    hasNoDrive,
		refused: 404,
	},
	{
		name:    "cdrom.eject, running",
		inner:   []string{"cdrom.device-deleted", "cdrom.node-deleted"},
		prepare: inOrder(running, withDrive),
		request: deleteRequest(drivePath),
		status:  204,
		done:    hasNoDrive,
		refused: 404,
	},
	{
		name:    "cloud_init.update",
		prepare: stopped,
		request: putSeed,
		status:  200,
		done:    hasSeed,
	},
	{
		name:    "cloud_init.update, running",
		inner:   slices.Concat([]string{"seed.written"}, driveSeams),
		prepare: running,
		request: putSeed,
		status:  200,
		done:    hasSeed,
		vague:   true,
	},
}

func imagePath(x target) string { return "/images/" + x.image }

func drivePath(x target) string { return "/vms/" + x.vm + "/cdroms/cd-1" }

// imageServer serves the raw image n at the path /n.
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

func withImage(d *harness.Daemon, x *target) {
	x.image = x.vm
	d.UploadImage(x.image, harness.RawImage(x.n))
}

func withDisc(d *harness.Daemon, x *target) {
	x.image = x.vm
	d.UploadImage(x.image, harness.ISOImage(x.n))
}

func withDrive(d *harness.Daemon, x *target) {
	withDisc(d, x)
	method, path, body := insertDisc(*x)
	d.Call(method, path, body).Want(201)
}

func withSeed(d *harness.Daemon, x *target) {
	d.CreateVMWith(x.vm, map[string]any{"cloud_init": map[string]any{}})
}

func imageIsAvailable(d *harness.Daemon, x target) bool {
	return d.Census().Images[x.vm].State == "available"
}

func createOfImage(more map[string]any) requester {
	return func(x target) (string, string, any) {
		body := map[string]any{"name": x.vm, "template_name": "small", "image": x.image}
		maps.Copy(body, more)
		return "POST", "/vms", body
	}
}

func insertDisc(x target) (string, string, any) {
	return "POST", "/vms/" + x.vm + "/cdroms", map[string]any{"image": x.image}
}

func hasDrive(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).CDROMs) > 0 }

func hasNoDrive(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).CDROMs) == 0 }

func putSeed(x target) (string, string, any) {
	return "PUT", "/vms/" + x.vm + "/cloud_init", map[string]any{"hostname": "seeded"}
}

func hasSeed(d *harness.Daemon, x target) bool {
	return d.Call("GET", "/vms/"+x.vm+"/cloud_init", nil).Status == 200
}
