package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// goodQcow2 is a disk of 1 GiB in clusters of 64 KiB: header, refcount table,
// a refcount block, L1 table, an L2 table, some data.
func goodQcow2() []byte {
	const cluster = 64 << 10
	b := make([]byte, 6*cluster)
	copy(b, qcow2Magic)
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], 1<<30)
	be.PutUint32(b[36:], 2)
	be.PutUint64(b[40:], 3*cluster)
	be.PutUint64(b[48:], cluster)
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], 104)
	be.PutUint64(b[cluster:], 2*cluster)
	be.PutUint64(b[3*cluster:], 4*cluster|1<<63)
	be.PutUint64(b[4*cluster:], 5*cluster|1<<63)
	return b
}

// withExtension puts a header extension into a qcow2 image.
func withExtension(kind uint32, data []byte) func([]byte) {
	return func(b []byte) {
		be.PutUint32(b[104:], kind)
		be.PutUint32(b[108:], uint32(len(data)))
		copy(b[112:], data)
	}
}

func bitmapsExtension(count uint32, size, offset uint64) []byte {
	b := make([]byte, 24)
	be.PutUint32(b, count)
	be.PutUint64(b[8:], size)
	be.PutUint64(b[16:], offset)
	return b
}

const goodDescriptor = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\n" +
	"# Extent description\nRW 2048 SPARSE \"disk.vmdk\"\n\n# The Disk Data Base\nddb.virtualHWVersion = \"4\"\n"

// goodVMDK is a disk of 1 MiB: header, descriptor, two grain directories and
// their tables.
func goodVMDK() []byte {
	b := make([]byte, 64<<10)
	copy(b, vmdkMagic)
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], 3)
	le.PutUint64(b[12:], 2048)
	le.PutUint64(b[20:], 128)
	le.PutUint64(b[28:], 1)
	le.PutUint64(b[36:], 20)
	le.PutUint32(b[44:], 512)
	le.PutUint64(b[48:], 21)
	le.PutUint64(b[56:], 26)
	le.PutUint64(b[64:], 128)
	copy(b[73:], "\n \r\n")
	describe(goodDescriptor)(b)
	le.PutUint32(b[21*512:], 22)
	le.PutUint32(b[26*512:], 27)
	return b
}

func describe(text string) func([]byte) {
	return func(b []byte) {
		clear(b[512 : 21*512])
		copy(b[512:21*512], text)
	}
}

// goodVDI is a disk of 2 MiB with one of its blocks.
func goodVDI() []byte {
	b := make([]byte, 1024+mib)
	copy(b, "<<< made by a test >>>\n")
	copy(b[0x40:], vdiMagic)
	le.PutUint32(b[0x44:], vdiVersion)
	le.PutUint32(b[0x48:], 0x180)
	le.PutUint32(b[0x4c:], vdiDynamic)
	le.PutUint32(b[0x154:], 512)
	le.PutUint32(b[0x158:], 1024)
	le.PutUint32(b[0x168:], 512)
	le.PutUint64(b[0x170:], 2*mib)
	le.PutUint32(b[0x178:], mib)
	le.PutUint32(b[0x180:], 2)
	le.PutUint32(b[0x184:], 1)
	le.PutUint32(b[512+4:], 0xffffffff)
	return b
}

func sealVHDX(b []byte, at, length int) {
	le.PutUint32(b[at+4:], 0)
	le.PutUint32(b[at+4:], crc32.Checksum(b[at:at+length], castagnoli))
}

// goodVHDX is a disk of 4 MiB in blocks of 1 MiB: log, metadata, block table, one
// block.
func goodVHDX() []byte {
	b := make([]byte, 5*mib)
	copy(b, vhdxMagic)
	for i, at := range []int{64 << 10, 128 << 10} {
		copy(b[at:], "head")
		le.PutUint64(b[at+8:], uint64(i+1))
		le.PutUint16(b[at+66:], 1)
		le.PutUint32(b[at+68:], mib)
		le.PutUint64(b[at+72:], mib)
	}
	for _, at := range []int{192 << 10, 256 << 10} {
		copy(b[at:], "regi")
		le.PutUint32(b[at+8:], 2)
		for i, g := range [][16]byte{guidBAT, guidMetadata} {
			e := b[at+16+32*i:]
			copy(e, g[:])
			le.PutUint64(e[16:], uint64(3-i)*mib)
			le.PutUint32(e[24:], mib)
			le.PutUint32(e[28:], 1)
		}
	}
	m := b[2*mib:]
	copy(m, "metadata")
	le.PutUint16(m[10:], 5)
	for i, g := range [][16]byte{guidParameters, guidSize, guidSector, guidPhysical, guidPage83} {
		e := m[32+32*i:]
		copy(e, g[:])
		le.PutUint32(e[16:], uint32(64<<10+8*i))
		le.PutUint32(e[20:], []uint32{8, 8, 4, 4, 16}[i])
		le.PutUint32(e[24:], 4)
	}
	le.PutUint32(m[64<<10:], mib)
	le.PutUint64(m[64<<10+8:], 4*mib)
	le.PutUint32(m[64<<10+16:], 512)
	le.PutUint32(m[64<<10+24:], 512)
	le.PutUint64(b[3*mib:], 4*mib|6)
	resealVHDX(b)
	return b
}

func resealVHDX(b []byte) {
	for _, at := range []int{64 << 10, 128 << 10} {
		sealVHDX(b, at, 4<<10)
	}
	for _, at := range []int{192 << 10, 256 << 10} {
		sealVHDX(b, at, 64<<10)
	}
}

// headers changes both headers of a VHDX image, regions both region tables.
func headers(change func(h []byte)) func([]byte) {
	return func(b []byte) { change(b[64<<10:]); change(b[128<<10:]); resealVHDX(b) }
}

func tables(change func(r []byte)) func([]byte) {
	return func(b []byte) { change(b[192<<10:]); change(b[256<<10:]); resealVHDX(b) }
}

func putBoth32(b []byte, n uint32) { le.PutUint32(b, n); be.PutUint32(b[4:], n) }

// goodISO is a volume of 20 blocks.
func goodISO() []byte {
	b := make([]byte, 20*isoSector)
	v := b[isoStart:]
	v[0], v[6] = isoPrimary, 1
	copy(v[1:], isoMagic)
	putBoth32(v[80:], 20)
	le.PutUint16(v[128:], isoSector)
	be.PutUint16(v[130:], isoSector)
	root := v[156:]
	root[0], root[25] = 34, directoryFlag
	putBoth32(root[2:], 19)
	putBoth32(root[10:], isoSector)
	e := v[isoSector:]
	e[0], e[6] = isoEnd, 1
	copy(e[1:], isoMagic)
	return b
}

func goodRaw() []byte { return bytes.Repeat([]byte("disk"), 256) }

// put32be and its like set a field of an image.
func put32be(at int, n uint32) func([]byte) { return func(b []byte) { be.PutUint32(b[at:], n) } }
func put64be(at int, n uint64) func([]byte) { return func(b []byte) { be.PutUint64(b[at:], n) } }
func put32(at int, n uint32) func([]byte)   { return func(b []byte) { le.PutUint32(b[at:], n) } }
func put64(at int, n uint64) func([]byte)   { return func(b []byte) { le.PutUint64(b[at:], n) } }
func text(s string) func([]byte)            { return func(b []byte) { copy(b, s) } }

func both(changes ...func([]byte)) func([]byte) {
	return func(b []byte) {
		for _, c := range changes {
			c(b)
		}
	}
}

// hostile are images that are refused. Those with secret in them name that file.
func hostile(secret string) []hostileImage {
	const cluster = 64 << 10
	backing := both(put64be(8, 512), put32be(16, uint32(len(secret))), func(b []byte) { copy(b[512:], secret) })
	parent := strings.ReplaceAll(goodDescriptor, "ffffffff", "deadbeef")
	return []hostileImage{
		{"qcow2 with a backing file", goodQcow2, backing, "backing file"},
		{"qcow2 with a backing file of no name", goodQcow2, put64be(8, 512), "backing file"},
		{"qcow2 of version 2 with a backing file", goodQcow2, both(put32be(4, 2), backing), "backing file"},
		{"qcow2 with data elsewhere, by feature", goodQcow2, put64be(72, incompatData), "another file"},
		{"qcow2 with data elsewhere, by extension", goodQcow2, withExtension(extData, []byte(secret)), "another file"},
		{"qcow2 with data elsewhere, by the second extension", goodQcow2, both(withExtension(7, make([]byte, 8)), put32be(120, extData)), "another file"},
		{"qcow2 with raw data elsewhere", goodQcow2, put64be(88, autoclearRaw), "another file"},
		{"qcow2 encrypted by AES", goodQcow2, put32be(32, 1), "encrypted"},
		{"qcow2 encrypted by LUKS", goodQcow2, put32be(32, 2), "encrypted"},
		{"qcow2 with an encryption header", goodQcow2, withExtension(extCrypt, make([]byte, 16)), "encrypted"},
		{"qcow2 with an unknown feature", goodQcow2, put64be(72, 1<<40), "unknown qcow2 features"},
		{"qcow2 that is corrupt", goodQcow2, put64be(72, incompatCorrupt), "corrupt"},
		{"qcow2 with an unknown compression", goodQcow2, both(put64be(72, incompatComp), put32be(100, 112), put32be(104, 7<<24)), "compression"},
		{"qcow of version 1", goodQcow2, put32be(4, 1), "version 1"},
		{"qcow2 of version 4", goodQcow2, put32be(4, 4), "version 4"},
		{"qcow2 with clusters of 2^60", goodQcow2, put32be(20, 60), "clusters"},
		{"qcow2 with clusters of 2^8", goodQcow2, put32be(20, 8), "clusters"},
		{"qcow2 with a header of 8 bytes", goodQcow2, put32be(100, 8), "header of 8"},
		{"qcow2 with a header of 2 GiB", goodQcow2, put32be(100, 1<<31), "header of"},
		{"qcow2 with an endless extension", goodQcow2, both(put32be(104, 7), put32be(108, 1<<31)), "extension"},
		{"qcow2 of 0 bytes", goodQcow2, put64be(24, 0), "disk of 0"},
		{"qcow2 of 8 EiB", goodQcow2, put64be(24, 1<<63), "disk of"},
		{"qcow2 of 16 TiB and a sector", goodQcow2, put64be(24, 16<<40+512), "disk of"},
		{"qcow2 of half a sector", goodQcow2, put64be(24, 1<<30+256), "disk of"},
		{"qcow2 with a huge L1 table", goodQcow2, put32be(36, 1<<31), "L1 table"},
		{"qcow2 with an L1 table that is too short", goodQcow2, put32be(36, 1), "L1 table"},
		{"qcow2 with an L1 table outside", goodQcow2, put64be(40, 1<<40), "outside"},
		{"qcow2 with an L1 table at the end of 64 bits", goodQcow2, put64be(40, 0xffffffffffff0000), "outside"},
		{"qcow2 with an L1 table between clusters", goodQcow2, put64be(40, 3*cluster+8), "L1 table"},
		{"qcow2 with its L1 table in the header", goodQcow2, put64be(40, 0), "outside"},
		{"qcow2 with its L1 table in the refcount table", goodQcow2, put64be(40, cluster), "overlaps"},
		{"qcow2 with an L1 table that leads to itself", goodQcow2, put64be(3*cluster, 3*cluster), "overlaps the L1 table"},
		{"qcow2 with an L2 table in the header's place", goodQcow2, both(put32be(20, 9), put32be(36, 32768), put64be(24, 1<<30), put64be(3*cluster, 512)), ""},
		{"qcow2 with one L2 table twice", goodQcow2, put64be(3*cluster+8, 4*cluster), "in one place"},
		{"qcow2 with an L2 table outside", goodQcow2, put64be(3*cluster+8, 1<<40), "outside"},
		{"qcow2 with a huge refcount table", goodQcow2, put32be(56, 1<<31), "refcount table"},
		{"qcow2 with no refcount table", goodQcow2, put32be(56, 0), "refcount table"},
		{"qcow2 with a refcount block in the L1 table", goodQcow2, put64be(cluster, 3*cluster), "overlaps"},
		{"qcow2 with a refcount block that is an L2 table", goodQcow2, put64be(cluster, 4*cluster), "in one place"},
		{"qcow2 with reference counts of 2^32 bits", goodQcow2, put32be(96, 32), "reference counts"},
		{"qcow2 with 4 billion snapshots", goodQcow2, both(put32be(60, 1<<31), put64be(64, 5*cluster)), "snapshots"},
		{"qcow2 with a snapshot outside", goodQcow2, both(put32be(60, 1), put64be(64, 1<<40)), "outside"},
		{"qcow2 with a snapshot with a huge table", goodQcow2, both(put32be(60, 1), put64be(64, 5*cluster), put32be(5*cluster+8, 1<<31)), "snapshot"},
		{"qcow2 with a snapshot with a table outside", goodQcow2, both(put32be(60, 1), put64be(64, 5*cluster), put64be(5*cluster, 1<<40), put32be(5*cluster+8, 1)), "outside"},
		{"qcow2 with the snapshot table in the L1 table", goodQcow2, both(put32be(60, 1), put64be(64, 3*cluster), put64be(3*cluster, 0)), "overlaps"},
		{"qcow2 with bitmaps outside", goodQcow2, withExtension(extBitmaps, bitmapsExtension(1, 24, 1<<40)), "outside"},
		{"qcow2 with a billion bitmaps", goodQcow2, withExtension(extBitmaps, bitmapsExtension(1<<30, 24<<30, 5*cluster)), "bitmaps"},
		{"qcow2 with a bitmaps extension cut off", goodQcow2, withExtension(extBitmaps, make([]byte, 8)), "bitmaps"},
		{"qcow2 with a bitmap with a huge table", goodQcow2, both(withExtension(extBitmaps, bitmapsExtension(1, 24, 5*cluster)), put32be(5*cluster+8, 1<<31)), "bitmap"},
		{"qcow2 that is cut off", func() []byte { return goodQcow2()[:60] }, nil, "outside"},
		{"qcow2 that is an iso too", func() []byte { return goodQcow2() }, func(b []byte) { copy(b[isoStart:], goodISO()[isoStart:]) }, "at the same time"},
		{"qcow2 that is a vdi too", goodQcow2, func(b []byte) { copy(b[0x40:], vdiMagic) }, "at the same time"},

		{"vmdk descriptor", goodRaw, text("# Disk DescriptorFile\nversion=1\nRW 2048 FLAT \"" + secret + "\" 0\n"), "descriptor"},
		{"vmdk descriptor as QEMU probes it", goodRaw, text("# hello\n\nversion=1\nRW 2048 FLAT \"" + secret + "\" 0\n"), "descriptor"},
		{"vmdk with a flat extent", goodVMDK, describe(strings.ReplaceAll(goodDescriptor, `SPARSE "disk.vmdk"`, `FLAT "`+secret+`" 0`)), "vmdk"},
		{"vmdk with a second extent", goodVMDK, describe(goodDescriptor + "RW 2048 SPARSE \"other.vmdk\"\n"), "2 extents"},
		{"vmdk with a second flat extent", goodVMDK, describe(goodDescriptor + "RW 2048 FLAT \"" + secret + "\" 0\n"), "vmdk descriptor"},
		{"vmdk with an extent in another directory", goodVMDK, describe(strings.ReplaceAll(goodDescriptor, "disk.vmdk", secret)), "vmdk descriptor"},
		{"vmdk without data of its own", goodVMDK, put64(12, 0), "no data of its own"},
		{"vmdk of type monolithicFlat", goodVMDK, describe(strings.ReplaceAll(goodDescriptor, "monolithicSparse", "monolithicFlat")), "monolithicFlat"},
		{"vmdk of type twoGbMaxExtentSparse", goodVMDK, describe(strings.ReplaceAll(goodDescriptor, "monolithicSparse", "twoGbMaxExtentSparse")), "twoGb"},
		{"vmdk with a parent", goodVMDK, describe(parent + "parentFileNameHint=\"" + secret + "\"\n"), "parent"},
		{"vmdk with a parent's id", goodVMDK, describe(parent), "another file"},
		{"vmdk with a parent after the end of the text", goodVMDK, describe(goodDescriptor + "\x00parentFileNameHint=\"" + secret + "\"\n"), "parent"},
		{"vmdk with a parent where QEMU looks", goodVMDK, both(put64(36, 1), func(b []byte) { copy(b[3*512:], "parentFileNameHint=\"x\"") }), "parent"},
		{"vmdk with the descriptor elsewhere", goodVMDK, put64(28, 40), "descriptor"},
		{"vmdk without a descriptor", goodVMDK, put64(28, 0), "descriptor"},
		{"vmdk with a huge descriptor", goodVMDK, put64(36, 1<<50), "descriptor"},
		{"vmdk with a change tracking file", goodVMDK, describe(goodDescriptor + "changeTrackPath=\"" + secret + "\"\n"), "another file"},
		{"vmdk of 2^60 sectors", goodVMDK, put64(12, 1<<60), "sectors"},
		{"vmdk with grains of 2^63", goodVMDK, put64(20, 1<<63), "grains"},
		{"vmdk with grains of 3", goodVMDK, put64(20, 3), "grains"},
		{"vmdk with huge grain tables", goodVMDK, put32(44, 1<<31), "grain tables"},
		{"vmdk with the grain directory outside", goodVMDK, put64(56, 1<<30), "outside"},
		{"vmdk with the grain directory beyond 64 bits", goodVMDK, put64(56, 1<<63), "outside"},
		{"vmdk with the grain directory in the header", goodVMDK, put64(56, 0), "overlaps"},
		{"vmdk with a grain table outside", goodVMDK, put32(26*512, 1<<31), "outside"},
		{"vmdk with a grain table that is the directory", goodVMDK, put32(26*512, 26), "overlaps"},
		{"vmdk with its tables at the end, and no footer", goodVMDK, put64(56, tablesAtEnd), "footer"},
		{"vmdk with a footer without data", goodVMDK, both(put64(56, tablesAtEnd), func(b []byte) {
			f := b[len(b)-1536:]
			le.PutUint32(f[12:], 3)
			copy(f[512:], goodVMDK()[:512])
			le.PutUint64(f[512+12:], 0)
		}), "contradicts"},
		{"vmdk damaged as text", goodVMDK, func(b []byte) { copy(b[73:], "\n \n\n") }, "text"},
		{"vmdk of version 9", goodVMDK, put32(4, 9), "version 9"},
		{"vmdk of the old kind", goodVMDK, text("COWD"), "COWD"},

		{"vdi that depends on another", goodVDI, put32(0x4c, 4), "depends"},
		{"vdi with a parent", goodVDI, put32(0x1b8, 1), "parent"},
		{"vdi with a link", goodVDI, put32(0x1a8, 1), "parent"},
		{"vdi of version 9", goodVDI, put32(0x44, 9), "version"},
		{"vdi with blocks of 0 bytes", goodVDI, put32(0x178, 0), "blocks of 0"},
		{"vdi of 8 EiB", goodVDI, put64(0x170, 1<<63), "disk of"},
		{"vdi with too few blocks", goodVDI, put32(0x180, 1), "1 blocks"},
		{"vdi with 4 billion blocks", goodVDI, put32(0x180, 1<<32-1), "blocks"},
		{"vdi with more blocks than it has", goodVDI, put32(0x184, 2), "outside"},
		{"vdi with the block map outside", goodVDI, put32(0x154, 1<<31), "outside"},
		{"vdi with the block map in the header", goodVDI, put32(0x154, 0), "block map"},
		{"vdi with the data in the block map", goodVDI, put32(0x158, 512), "overlap"},
		{"vdi with a block outside", goodVDI, put32(512, 7), "outside"},
		{"vdi with a block twice", goodVDI, put32(516, 0), "twice"},

		{"vhdx with a parent", goodVHDX, put32(2*mib+64<<10+4, 2), "parent"},
		{"vhdx with a parent locator", goodVHDX, func(b []byte) { copy(b[2*mib+32+64:], guidParent[:]) }, "parent"},
		{"vhdx with a log to replay", goodVHDX, headers(put32(48, 1)), "replayed"},
		{"vhdx with a log outside", goodVHDX, headers(put64(72, 1<<40)), "outside"},
		{"vhdx with a log in the header", goodVHDX, headers(put64(72, 0)), "outside"},
		{"vhdx with a huge log", goodVHDX, headers(put32(68, 0xfff00000)), "outside"},
		{"vhdx without a valid header", goodVHDX, func(b []byte) { b[64<<10+100]++; b[128<<10+100]++ }, "valid header"},
		{"vhdx of version 2", goodVHDX, headers(put32(66, 2)), "version 2"},
		{"vhdx without a valid region table", goodVHDX, func(b []byte) { b[192<<10+100]++; b[256<<10+100]++ }, "region table"},
		{"vhdx with a billion regions", goodVHDX, tables(put32(8, 1<<30)), "region table"},
		{"vhdx with a region outside", goodVHDX, tables(put64(16+16, 1<<40)), "outside"},
		{"vhdx with a region at the end of 64 bits", goodVHDX, tables(put64(16+16, 0xfffffffffff00000)), "outside"},
		{"vhdx with two regions in one place", goodVHDX, tables(put64(16+16, 2*mib)), "overlaps"},
		{"vhdx with an unknown region", goodVHDX, tables(put32(16, 7)), "not known"},
		{"vhdx with the block table twice", goodVHDX, tables(func(b []byte) { copy(b[48:], guidBAT[:]) }), "twice"},
		{"vhdx without metadata", goodVHDX, put32(2*mib, 0), "metadata"},
		{"vhdx with metadata outside", goodVHDX, put32(2*mib+32+16, 1<<31), "outside"},
		{"vhdx with unknown metadata", goodVHDX, put32(2*mib+32+64, 7), "not known"},
		{"vhdx with blocks of 0 bytes", goodVHDX, put32(2*mib+64<<10, 0), "blocks of 0"},
		{"vhdx of 8 EiB", goodVHDX, put64(2*mib+64<<10+8, 1<<63), "disk of"},
		{"vhdx with sectors of 1 byte", goodVHDX, put32(2*mib+64<<10+16, 1), "sectors"},
		{"vhdx with too short a block table", goodVHDX, put64(2*mib+64<<10+8, 1<<40), "block table"},
		{"vhdx with a block outside", goodVHDX, put64(3*mib+8, 1<<40|6), "outside"},
		{"vhdx with a block in the block table", goodVHDX, put64(3*mib+8, 3*mib|6), "overlaps"},
		{"vhdx with a block twice", goodVHDX, put64(3*mib+8, 4*mib|6), "in one place"},
		{"vhdx with a block in a parent", goodVHDX, put64(3*mib+8, 7), "parent"},
		{"vhdx that is cut off", func() []byte { return goodVHDX()[:100<<10] }, nil, "outside"},

		{"iso that is cut off", func() []byte { return goodISO()[:19*isoSector] }, nil, "cut off"},
		{"iso with blocks of 512", goodISO, func(b []byte) { copy(b[isoStart+128:], "\x00\x02\x02\x00") }, "blocks"},
		{"iso that contradicts itself", goodISO, put32(isoStart+80, 7), "contradicts"},
		{"iso with its root outside", goodISO, func(b []byte) { putBoth32(b[isoStart+158:], 1<<31) }, "root"},
		{"iso without a primary volume", goodISO, func(b []byte) { b[isoStart] = 3 }, "primary"},
		{"iso without an end", goodISO, func(b []byte) { clear(b[isoStart+isoSector:]) }, "none"},
		{"iso with a boot catalog outside", func() []byte { return append(goodISO(), make([]byte, isoSector)...) }, func(b []byte) {
			v := b[isoStart:]
			copy(v[2*isoSector:], v[isoSector:2*isoSector])
			v[isoSector] = isoBoot
			copy(v[isoSector+7:], elTorito)
			le.PutUint32(v[isoSector+71:], 1<<31)
		}, "boot catalog"},

		{"vhd", goodRaw, text("conectix"), "VHD"},
		{"vhd of fixed size", goodRaw, func(b []byte) { copy(b[512:], "conectix") }, "VHD"},
		{"dmg", goodRaw, func(b []byte) { copy(b[512:], "koly") }, "dmg"},
		{"qed", goodRaw, text("QED\x00"), "qed"},
		{"luks", goodRaw, text("LUKS\xba\xbe"), "luks"},
		{"parallels", goodRaw, text("WithoutFreeSpace"), "parallels"},
		{"ova", goodRaw, func(b []byte) { copy(b[257:], "ustar") }, "tar"},
		{"zip", goodRaw, text("PK\x03\x04"), "zip"},
		{"bzip2", goodRaw, text("BZh91AY"), "bzip2"},
		{"web page", goodRaw, text("<!DOCTYPE html>"), "web page"},
		{"text", func() []byte { return []byte("404 not found\n") }, nil, "no known format"},
		{"nothing", func() []byte { return nil }, nil, "empty"},
	}
}

type hostileImage struct {
	name   string
	good   func() []byte // what it is made of
	change func([]byte)
	reason string // what the refusal says, in part
}

func (h hostileImage) bytes() []byte {
	b := h.good()
	if h.change != nil {
		h.change(b)
	}
	return b
}

// counter is bytes that may be read, and no more, and how often that was done.
type counter struct {
	io.ReaderAt
	reads, bytes int
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.reads, c.bytes = c.reads+1, c.bytes+len(p)
	return c.ReaderAt.ReadAt(p, off)
}

func TestWhatHostileImagesAreMadeOfIsGood(t *testing.T) {
	for _, c := range []struct {
		good func() []byte
		want Info
	}{
		{goodQcow2, Info{Qcow2, 1 << 30}}, {goodVMDK, Info{VMDK, mib}}, {goodVDI, Info{VDI, 2 * mib}},
		{goodVHDX, Info{VHDX, 4 * mib}}, {goodISO, Info{ISO, 20 * isoSector}}, {goodRaw, Info{Raw, 1024}},
	} {
		b := c.good()
		if got, err := Inspect(bytes.NewReader(b), int64(len(b))); err != nil || got != c.want {
			t.Errorf("%+v: got %+v, %v", c.want, got, err)
		}
	}
}

func TestHostileImagesAreRefused(t *testing.T) {
	all := hostile("/etc/shadow")
	if len(all) < 40 {
		t.Fatalf("only %d hostile images", len(all))
	}
	t.Logf("%d hostile images", len(all))
	for _, h := range all {
		b := h.bytes()
		c := &counter{ReaderAt: bytes.NewReader(b)}
		info, err := Inspect(c, int64(len(b)))
		var unsafe *Unsafe
		if !errors.As(err, &unsafe) || !strings.Contains(unsafe.Reason, h.reason) {
			t.Errorf("%s: got %+v, %v; want a refusal that says %q", h.name, info, err, h.reason)
		}
		if c.reads > 64 || c.bytes > mib {
			t.Errorf("%s: %d reads of %d bytes", h.name, c.reads, c.bytes)
		}
	}
}

// The kernel tells of every opening of the file that hostile images name.
func TestImportOfHostileImagesOpensNothingAndLeavesNothing(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("secret"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, secret, unix.IN_OPEN|unix.IN_ACCESS); err != nil {
		t.Fatal(err)
	}
	i, dir := testImporter(t, Options{})
	for _, h := range hostile(secret) {
		var unsafe *Unsafe
		if c, err := i.Import(t.Context(), bytes.NewReader(h.bytes()), Want{}); !errors.As(err, &unsafe) {
			t.Errorf("%s: imported as %+v, %v", h.name, c, err)
		}
	}
	wantFiles(t, dir)
	if n, err := unix.Read(watch, make([]byte, 4096)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the file that the images name was opened: %d bytes of events, %v", n, err)
	}
	if f, err := os.Open(secret); err != nil {
		t.Fatal(err)
	} else {
		f.Close()
	}
	if n, err := unix.Read(watch, make([]byte, 4096)); err != nil || n == 0 {
		t.Fatalf("the watch sees nothing: %d, %v", n, err)
	}
}

func TestAnImageIsNotWhatItIsSaidToBe(t *testing.T) {
	b := goodQcow2()
	info, err := Inspect(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	var unsafe *Unsafe
	if err := info.Expect(Raw); !errors.As(err, &unsafe) {
		t.Errorf("a qcow2 image passes as raw: %v", err)
	}
	if err := info.Expect(Qcow2); err != nil {
		t.Error(err)
	}
}

// hole is a file of any size: some bytes at its beginning, then zeros.
type hole []byte

func (h hole) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(h)) {
		copy(p, h[off:])
	}
	return len(p), nil
}

func TestTheLargestTablesAreReadInBounds(t *testing.T) {
	const size = 17 << 40
	l1 := goodQcow2()
	be.PutUint32(l1[20:], 21) // clusters of 2 MiB
	be.PutUint64(l1[24:], 16<<40)
	be.PutUint32(l1[36:], maxTableBytes/8)
	be.PutUint64(l1[40:], 8*mib)
	be.PutUint64(l1[48:], 4*mib)
	l1 = append(l1, make([]byte, 10*mib)...)
	for i := range maxTableBytes / 8 {
		be.PutUint64(l1[8*mib+8*i:], uint64(i+16)*2*mib)
		be.PutUint64(l1[4*mib+8*i:], uint64(i+300000)*2*mib)
	}
	vdi := append(goodVDI()[:512:512], bytes.Repeat([]byte{0xff}, 64*mib)...)
	le.PutUint32(vdi[0x158:], 512+64*mib)
	le.PutUint64(vdi[0x170:], 16<<40)
	le.PutUint32(vdi[0x180:], 16*mib)
	le.PutUint32(vdi[0x184:], 16*mib)
	for i := range 16 * mib {
		le.PutUint32(vdi[512+4*i:], uint32(i))
	}
	for name, b := range map[string][]byte{"qcow2": l1, "vdi": vdi} {
		c := &counter{ReaderAt: hole(b)}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		info, err := Inspect(c, size)
		runtime.ReadMemStats(&after)
		if err != nil || info.VirtualBytes != 16<<40 {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
		t.Logf("%s: %d reads, %d MiB read, %d KiB allocated", name, c.reads, c.bytes>>20, (after.TotalAlloc-before.TotalAlloc)>>10)
		if after.TotalAlloc-before.TotalAlloc > 8*mib {
			t.Errorf("%s: %d bytes allocated", name, after.TotalAlloc-before.TotalAlloc)
		}
	}
}
