package harness

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"testing"

	"vmand/openapi"
)

// BootDisk returns the setting that makes every root disk an overlay of a variant of the
// guest (test/guest/build.sh).
func BootDisk(variant string) string {
	return "VMAN_DEFAULT_BOOT_DISK=" + GuestFile("disk-"+variant+".qcow2")
}

// GuestImage returns the content of the disk of a variant of the guest.
func GuestImage(t testing.TB, variant string) []byte {
	t.Helper()
	content, err := os.ReadFile(GuestFile("disk-" + variant + ".qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// RawImage returns a raw image of 1 MiB, with other content for each n.
func RawImage(n int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "image %09d\n", n), 1<<20/16)
}

// ISOImage returns an empty ISO image of 19 sectors of 2048 bytes, with other content for
// each n: a primary volume descriptor, the set terminator, a root directory (ECMA-119).
func ISOImage(n int) []byte {
	const sector, root = 2048, 18
	b := make([]byte, 19*sector)
	both := func(at int, n uint32) {
		binary.LittleEndian.PutUint32(b[at:], n)
		binary.BigEndian.PutUint32(b[at+4:], n)
	}
	pvd := 16 * sector
	copy(b[pvd:], "\x01CD001\x01")
	copy(b[pvd+40:], fmt.Sprintf("DISC%d", n))
	both(pvd+80, 19)
	binary.LittleEndian.PutUint16(b[pvd+128:], sector)
	binary.BigEndian.PutUint16(b[pvd+130:], sector)
	record := pvd + 156
	b[record], b[record+25], b[record+32] = 34, 2, 1
	both(record+2, root)
	both(record+10, sector)
	copy(b[17*sector:], "\xffCD001\x01")
	return b
}

// UploadImage creates an image.
func (d *Daemon) UploadImage(name string, content []byte) openapi.Image {
	d.T.Helper()
	return As[openapi.Image](d.Call("POST", "/images?name="+name, content).Want(201))
}
