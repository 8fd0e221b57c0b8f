package test

import (
	"bytes"
	endian "encoding/binary"

	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"

	"vmand/openapi"
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
		request: func(x target) (string, string, any) { return "POST", "/images?name=" + x.vm, rawImage(x.n) },
		status:  201, done: imageIsThere, refused: 409, why: "already exists"},
	{name: "image.update", once: true, prepare: imaged,
		request: func(x target) (string, string, any) {
			return "PATCH", "/images/" + x.image, map[string]any{"description": "new"}
		}, status: 200,
		done: func(d *daemon, x target) bool { return d.census().images[x.image].Description == "new" }},
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
		done: func(d *daemon, _ target) bool { return len(d.census().disks) > 0 }},
	{name: "disk.create, a copy", inner: imageSeams, prepare: stopped,
		request: func(x target) (string, string, any) { return "POST", "/disks", map[string]any{"from_disk": x.vm} }, status: 201,
		done: func(d *daemon, _ target) bool { return len(d.census().disks) > 0 }},

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
		w.Write(rawImage(n))
	}))
})

// rawImage returns an image of 1 MiB like no other.
func rawImage(n int) []byte { return bytes.Repeat(fmt.Appendf(nil, "image %09d\n", n), 1<<20/16) }

// isoImage returns an ISO image with nothing in it, of 19 sectors of 2048 bytes:
// ECMA-119, a primary volume descriptor, its end, a root directory.
func isoImage(n int) []byte {
	const sector, root = 2048, 18
	b := make([]byte, 19*sector)
	both := func(at int, n uint32) {
		endian.LittleEndian.PutUint32(b[at:], n)
		endian.BigEndian.PutUint32(b[at+4:], n)
	}
	pvd := 16 * sector
	copy(b[pvd:], "\x01CD001\x01")
	copy(b[pvd+40:], fmt.Sprintf("DISC%d", n))
	both(pvd+80, 19)
	endian.LittleEndian.PutUint16(b[pvd+128:], sector)
	endian.BigEndian.PutUint16(b[pvd+130:], sector)
	record := pvd + 156
	b[record], b[record+25], b[record+32] = 34, 2, 1
	both(record+2, root)
	both(record+10, sector)
	copy(b[17*sector:], "\xffCD001\x01")
	return b
}

// upload makes an image.
func (d *daemon) upload(name string, content []byte) openapi.Image {
	d.t.Helper()
	return as[openapi.Image](d.call("POST", "/images?name="+name, content).want(201))
}

func imaged(d *daemon, x *target) {
	x.image = x.vm
	d.upload(x.image, rawImage(x.n))
}

func discs(d *daemon, x *target) {
	x.image = x.vm
	d.upload(x.image, isoImage(x.n))
}

func loaded(d *daemon, x *target) {
	discs(d, x)
	method, path, body := insert(*x)
	d.call(method, path, body).want(201)
}

func seeded(d *daemon, x *target) {
	d.call("POST", "/vms", map[string]any{"name": x.vm, "template_name": "small", "cloud_init": map[string]any{}}).want(201)
}

func imageIsThere(d *daemon, x target) bool { return d.census().images[x.vm].State == "available" }

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

func inserted(d *daemon, x target) bool { return len(d.vm(x.vm).CDROMs) > 0 }
func ejected(d *daemon, x target) bool  { return len(d.vm(x.vm).CDROMs) == 0 }

func seed(x target) (string, string, any) {
	return "PUT", "/vms/" + x.vm + "/cloud_init", map[string]any{"hostname": "seeded"}
}

func isSeeded(d *daemon, x target) bool {
	return d.call("GET", "/vms/"+x.vm+"/cloud_init", nil).status == 200
}
