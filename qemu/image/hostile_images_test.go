package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// goodQcow2 returns a disk of 1 GiB in clusters of 64 KiB: header, refcount table,
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

const goodDescriptor = `# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW 2048 SPARSE "disk.vmdk"

# The Disk Data Base
ddb.virtualHWVersion = "4"
`

// goodVMDK returns a disk of 1 MiB: header, descriptor, two grain directories and
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

// describe replaces the descriptor of a VMDK image.
func describe(text string) func([]byte) {
	return func(b []byte) {
		clear(b[512 : 21*512])
		copy(b[512:21*512], text)
	}
}

// goodVDI returns a disk of 2 MiB, of which one block is allocated.
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

// sealVHDX sets the checksum of a structure of a VHDX image.
func sealVHDX(b []byte, at, length int) {
	le.PutUint32(b[at+4:], 0)
	le.PutUint32(b[at+4:], crc32.Checksum(b[at:at+length], castagnoli))
}

// goodVPC returns a disk of 4 MiB in blocks of 2 MiB, one of them allocated: footer, header,
// block table, a block, footer.
func goodVPC() []byte {
	const block = 512 + 2*mib
	b := make([]byte, 2048+block+512)
	footer := b[len(b)-512:]
	copy(footer, vpcMagic)
	be.PutUint32(footer[8:], 2)
	be.PutUint32(footer[12:], vpcVersion)
	be.PutUint64(footer[16:], 512)
	copy(footer[28:], "win ")
	be.PutUint64(footer[40:], 4*mib)
	be.PutUint64(footer[48:], 4*mib)
	be.PutUint32(footer[60:], vpcDynamic)
	copy(b[512:], vpcHeaderMagic)
	be.PutUint64(b[512+8:], 1<<64-1)
	be.PutUint64(b[512+16:], 1536)
	be.PutUint32(b[512+24:], vpcVersion)
	be.PutUint32(b[512+28:], 2)
	be.PutUint32(b[512+32:], 2*mib)
	be.PutUint32(b[1536:], 4)
	be.PutUint32(b[1540:], vpcNoBlock)
	sealVPC(b)
	return b
}

// sealVPC sets the checksums of a dynamic VHD and the copy of its footer.
func sealVPC(b []byte) {
	footer := b[len(b)-512:]
	be.PutUint32(footer[vpcChecksumAt:], vpcSum(footer, vpcChecksumAt))
	copy(b, footer)
	be.PutUint32(b[512+vpcHeaderSumAt:], vpcSum(b[512:1536], vpcHeaderSumAt))
}

// goodFixedVPC returns a disk of 1 MiB, of fixed size.
func goodFixedVPC() []byte {
	b := goodVPC()
	b = append(make([]byte, mib), b[len(b)-512:]...)
	footer := b[mib:]
	be.PutUint64(footer[16:], 1<<64-1)
	be.PutUint64(footer[48:], mib)
	be.PutUint32(footer[60:], vpcFixed)
	be.PutUint32(footer[vpcChecksumAt:], vpcSum(footer, vpcChecksumAt))
	return b
}

// goodVHDX returns a disk of 4 MiB in blocks of 1 MiB: log, metadata, block table, one
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

// resealVHDX sets all checksums of a VHDX image.
func resealVHDX(b []byte) {
	for _, at := range []int{64 << 10, 128 << 10} {
		sealVHDX(b, at, 4<<10)
	}
	for _, at := range []int{192 << 10, 256 << 10} {
		sealVHDX(b, at, 64<<10)
	}
}

// headers changes both headers of a VHDX image.
func headers(change func(h []byte)) func([]byte) {
	return func(b []byte) {
		change(b[64<<10:])
		change(b[128<<10:])
		resealVHDX(b)
	}
}

// tables changes both region tables of a VHDX image.
func tables(change func(r []byte)) func([]byte) {
	return func(b []byte) {
		change(b[192<<10:])
		change(b[256<<10:])
		resealVHDX(b)
	}
}

func putBoth32(b []byte, n uint32) {
	le.PutUint32(b, n)
	be.PutUint32(b[4:], n)
}

// goodISO returns a volume of 20 blocks.
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

// put32be, put64be, put32 and put64 set a field of an image.
func put32be(at int, n uint32) func([]byte) { return func(b []byte) { be.PutUint32(b[at:], n) } }
func put64be(at int, n uint64) func([]byte) { return func(b []byte) { be.PutUint64(b[at:], n) } }
func put32(at int, n uint32) func([]byte)   { return func(b []byte) { le.PutUint32(b[at:], n) } }
func put64(at int, n uint64) func([]byte)   { return func(b []byte) { le.PutUint64(b[at:], n) } }
func text(s string) func([]byte)            { return func(b []byte) { copy(b, s) } }

// both makes several changes.
func both(changes ...func([]byte)) func([]byte) {
	return func(b []byte) {
		for _, c := range changes {
			c(b)
		}
	}
}

// A hostileImage must be refused.
type hostileImage struct {
	name    string
	content []byte
	reason  string // part of the reason of the refusal
}

// A variant is a change of a good image for which it must be refused.
type variant struct {
	name   string
	change func([]byte)
	reason string
}

func variants(good func() []byte, all []variant) []hostileImage {
	var images []hostileImage
	for _, v := range all {
		b := good()
		v.change(b)
		images = append(images, hostileImage{v.name, b, v.reason})
	}
	return images
}

// hostileImages returns all images that must be refused. Some of them name the file
// secret.
func hostileImages(secret string) []hostileImage {
	return slices.Concat(
		hostileQcow2(secret),
		hostileVMDK(secret),
		hostileVDI(),
		hostileVHDX(),
		hostileISO(),
		hostileVPC(),
		otherFiles(),
	)
}

func hostileQcow2(secret string) []hostileImage {
	const cluster = 64 << 10
	backing := both(
		put64be(8, 512),
		put32be(16, uint32(len(secret))),
		func(b []byte) { copy(b[512:], secret) },
	)
	all := variants(goodQcow2, []variant{
		{"qcow2 with a backing file", backing, "backing file"},
		{"qcow2 with a backing file of no name", put64be(8, 512), "backing file"},
		{"qcow2 of version 2 with a backing file", both(put32be(4, 2), backing), "backing file"},
		{"qcow2 with data elsewhere, by feature", put64be(72, incompatData), "another file"},
		{
			"qcow2 with data elsewhere, by extension",
			withExtension(extData, []byte(secret)),
			"another file",
		},
		{
			"qcow2 with data elsewhere, by the second extension",
			both(withExtension(7, make([]byte, 8)), put32be(120, extData)),
			"another file",
		},
		{"qcow2 with raw data elsewhere", put64be(88, autoclearRaw), "another file"},
		{"qcow2 encrypted by AES", put32be(32, 1), "encrypted"},
		{"qcow2 encrypted by LUKS", put32be(32, 2), "encrypted"},
		{"qcow2 with an encryption header", withExtension(extCrypt, make([]byte, 16)), "encrypted"},
		{"qcow2 with an unknown feature", put64be(72, 1<<40), "unknown qcow2 features"},
		{"qcow2 that is corrupt", put64be(72, incompatCorrupt), "corrupt"},
		{
			"qcow2 with an unknown compression",
			both(put64be(72, incompatComp), put32be(100, 112), put32be(104, 7<<24)),
			"compression",
		},
		{"qcow of version 1", put32be(4, 1), "version 1"},
		{"qcow2 of version 4", put32be(4, 4), "version 4"},
		{"qcow2 with clusters of 2^60", put32be(20, 60), "clusters"},
		{"qcow2 with clusters of 2^8", put32be(20, 8), "clusters"},
		{"qcow2 with a header of 8 bytes", put32be(100, 8), "header of 8"},
		{"qcow2 with a header of 2 GiB", put32be(100, 1<<31), "header of"},
		{
			"qcow2 with an endless extension",
			both(put32be(104, 7), put32be(108, 1<<31)),
			"extension",
		},
		{"qcow2 of 0 bytes", put64be(24, 0), "disk of 0"},
		{"qcow2 of 8 EiB", put64be(24, 1<<63), "disk of"},
		{"qcow2 of 16 TiB and a sector", put64be(24, 16<<40+512), "disk of"},
		{"qcow2 of half a sector", put64be(24, 1<<30+256), "disk of"},
		{"qcow2 with a huge L1 table", put32be(36, 1<<31), "L1 table"},
		{"qcow2 with an L1 table that is too short", put32be(36, 1), "L1 table"},
		{"qcow2 with an L1 table outside", put64be(40, 1<<40), "outside"},
		{
			"qcow2 with an L1 table at the end of 64 bits",
			put64be(40, 0xffffffffffff0000),
			"outside",
		},
		{"qcow2 with an L1 table between clusters", put64be(40, 3*cluster+8), "L1 table"},
		{"qcow2 with its L1 table in the header", put64be(40, 0), "outside"},
		{"qcow2 with its L1 table in the refcount table", put64be(40, cluster), "overlaps"},
		{
			"qcow2 with an L1 table that leads to itself",
			put64be(3*cluster, 3*cluster),
			"overlaps the L1 table",
		},
		{
			"qcow2 with an L2 table in the header's place",
			both(put32be(20, 9), put32be(36, 32768), put64be(24, 1<<30), put64be(3*cluster, 512)),
			"",
		},
		{"qcow2 with one L2 table twice", put64be(3*cluster+8, 4*cluster), "in the same place"},
		{"qcow2 with an L2 table outside", put64be(3*cluster+8, 1<<40), "outside"},
		{"qcow2 with a huge refcount table", put32be(56, 1<<31), "refcount table"},
		{"qcow2 with no refcount table", put32be(56, 0), "refcount table"},
		{"qcow2 with a refcount block in the L1 table", put64be(cluster, 3*cluster), "overlaps"},
		{
			"qcow2 with a refcount block that is an L2 table",
			put64be(cluster, 4*cluster),
			"in the same place",
		},
		{"qcow2 with reference counts of 2^32 bits", put32be(96, 32), "reference counts"},
		{
			"qcow2 with 4 billion snapshots",
			both(put32be(60, 1<<31), put64be(64, 5*cluster)),
			"snapshots",
		},
		{"qcow2 with a snapshot outside", both(put32be(60, 1), put64be(64, 1<<40)), "outside"},
		{
			"qcow2 with a snapshot with a huge table",
			both(put32be(60, 1), put64be(64, 5*cluster), put32be(5*cluster+8, 1<<31)),
			"snapshot",
		},
		{
			"qcow2 with a snapshot with a table outside",
			both(
				put32be(60, 1),
				put64be(64, 5*cluster),
				put64be(5*cluster, 1<<40),
				put32be(5*cluster+8, 1),
			),
			"outside",
		},
		{
			"qcow2 with the snapshot table in the L1 table",
			both(put32be(60, 1), put64be(64, 3*cluster), put64be(3*cluster, 0)),
			"overlaps",
		},
		{
			"qcow2 with bitmaps outside",
			withExtension(extBitmaps, bitmapsExtension(1, 24, 1<<40)),
			"outside",
		},
		{
			"qcow2 with a billion bitmaps",
			withExtension(extBitmaps, bitmapsExtension(1<<30, 24<<30, 5*cluster)),
			"bitmaps",
		},
		{
			"qcow2 with a bitmaps extension cut off",
			withExtension(extBitmaps, make([]byte, 8)),
			"bitmaps",
		},
		{
			"qcow2 with a bitmap with a huge table",
			both(
				withExtension(extBitmaps, bitmapsExtension(1, 24, 5*cluster)),
				put32be(5*cluster+8, 1<<31),
			),
			"bitmap",
		},
		{
			"qcow2 that is an iso too",
			func(b []byte) { copy(b[isoStart:], goodISO()[isoStart:]) },
			"at the same time",
		},
		{
			"qcow2 that is a vdi too",
			func(b []byte) { copy(b[0x40:], vdiMagic) },
			"at the same time",
		},
	})
	return append(all, hostileImage{"qcow2 that is cut off", goodQcow2()[:60], "outside"})
}

func hostileVMDK(secret string) []hostileImage {
	parent := strings.ReplaceAll(goodDescriptor, "ffffffff", "deadbeef")
	hint := fmt.Sprintf("parentFileNameHint=%q\n", secret)
	flat := fmt.Sprintf("RW 2048 FLAT %q 0\n", secret)
	redescribe := func(old, new string) func([]byte) {
		return describe(strings.ReplaceAll(goodDescriptor, old, new))
	}
	images := variants(goodVMDK, []variant{
		{"vmdk with a flat extent", redescribe(`RW 2048 SPARSE "disk.vmdk"`, flat), "vmdk"},
		{
			"vmdk with a second extent",
			describe(goodDescriptor + "RW 2048 SPARSE \"other.vmdk\"\n"),
			"2 extents",
		},
		{"vmdk with a second flat extent", describe(goodDescriptor + flat), "vmdk descriptor"},
		{
			"vmdk with an extent in another directory",
			redescribe("disk.vmdk", secret),
			"vmdk descriptor",
		},
		{"vmdk without data of its own", put64(12, 0), "no data of its own"},
		{
			"vmdk of type monolithicFlat",
			redescribe("monolithicSparse", "monolithicFlat"),
			"monolithicFlat",
		},
		{
			"vmdk of type twoGbMaxExtentSparse",
			redescribe("monolithicSparse", "twoGbMaxExtentSparse"),
			"twoGb",
		},
		{"vmdk with a parent", describe(parent + hint), "parent"},
		{"vmdk with a parent's id", describe(parent), "another file"},
		{
			"vmdk with a parent after the end of the text",
			describe(goodDescriptor + "\x00" + hint),
			"parent",
		},
		{
			"vmdk with a parent where QEMU looks",
			both(put64(36, 1), func(b []byte) { copy(b[3*512:], `parentFileNameHint="x"`) }),
			"parent",
		},
		{"vmdk with the descriptor elsewhere", put64(28, 40), "descriptor"},
		{"vmdk without a descriptor", put64(28, 0), "descriptor"},
		{"vmdk with a huge descriptor", put64(36, 1<<50), "descriptor"},
		{
			"vmdk with a change tracking file",
			describe(goodDescriptor + "changeTrackPath=\"" + secret + "\"\n"),
			"another file",
		},
		{"vmdk of 2^60 sectors", put64(12, 1<<60), "sectors"},
		{"vmdk with grains of 2^63", put64(20, 1<<63), "grains"},
		{"vmdk with grains of 3", put64(20, 3), "grains"},
		{"vmdk with huge grain tables", put32(44, 1<<31), "grain tables"},
		{"vmdk with the grain directory outside", put64(56, 1<<30), "outside"},
		{"vmdk with the grain directory beyond 64 bits", put64(56, 1<<63), "outside"},
		{"vmdk with the grain directory in the header", put64(56, 0), "overlaps"},
		{"vmdk with a grain table outside", put32(26*512, 1<<31), "outside"},
		{"vmdk with a grain table that is the directory", put32(26*512, 26), "overlaps"},
		{"vmdk with its tables at the end, and no footer", put64(56, tablesAtEnd), "footer"},
		{"vmdk with a footer without data", both(put64(56, tablesAtEnd), func(b []byte) {
			f := b[len(b)-1536:]
			le.PutUint32(f[12:], 3)
			copy(f[512:], goodVMDK()[:512])
			le.PutUint64(f[512+12:], 0)
		}), "contradicts"},
		{"vmdk damaged as text", func(b []byte) { copy(b[73:], "\n \n\n") }, "text"},
		{"vmdk of version 9", put32(4, 9), "version 9"},
		{"vmdk of the old kind", text("COWD"), "COWD"},
	})
	descriptors := variants(goodRaw, []variant{
		{"vmdk descriptor", text("# Disk DescriptorFile\nversion=1\n" + flat), "descriptor"},
		{"vmdk descriptor as QEMU probes it", text("# hello\n\nversion=1\n" + flat), "descriptor"},
	})
	return append(images, descriptors...)
}

func hostileVDI() []hostileImage {
	return variants(goodVDI, []variant{
		{"vdi that depends on another", put32(0x4c, 4), "depends"},
		{"vdi with a parent", put32(0x1b8, 1), "parent"},
		{"vdi with a link", put32(0x1a8, 1), "parent"},
		{"vdi of version 9", put32(0x44, 9), "version"},
		{"vdi with blocks of 0 bytes", put32(0x178, 0), "blocks of 0"},
		{"vdi of 8 EiB", put64(0x170, 1<<63), "disk of"},
		{"vdi with too few blocks", put32(0x180, 1), "1 blocks"},
		{"vdi with 4 billion blocks", put32(0x180, 1<<32-1), "blocks"},
		{"vdi with more blocks than it has", put32(0x184, 2), "outside"},
		{"vdi with the block map outside", put32(0x154, 1<<31), "outside"},
		{"vdi with the block map in the header", put32(0x154, 0), "block map"},
		{"vdi with the data in the block map", put32(0x158, 512), "overlap"},
		{"vdi with a block outside", put32(512, 7), "outside"},
		{"vdi with a block twice", put32(516, 0), "twice"},
	})
}

func hostileVHDX() []hostileImage {
	increment := func(at ...int) func([]byte) {
		return func(b []byte) {
			for _, i := range at {
				b[i]++
			}
		}
	}
	all := variants(goodVHDX, []variant{
		{"vhdx with a parent", put32(2*mib+64<<10+4, 2), "parent"},
		{
			"vhdx with a parent locator",
			func(b []byte) { copy(b[2*mib+32+64:], guidParent[:]) },
			"parent",
		},
		{"vhdx with a log to replay", headers(put32(48, 1)), "replayed"},
		{"vhdx with a log outside", headers(put64(72, 1<<40)), "outside"},
		{"vhdx with a log in the header", headers(put64(72, 0)), "outside"},
		{"vhdx with a huge log", headers(put32(68, 0xfff00000)), "outside"},
		{"vhdx without a valid header", increment(64<<10+100, 128<<10+100), "valid header"},
		{"vhdx of version 2", headers(put32(66, 2)), "version 2"},
		{"vhdx without a valid region table", increment(192<<10+100, 256<<10+100), "region table"},
		{"vhdx with a billion regions", tables(put32(8, 1<<30)), "region table"},
		{"vhdx with a region outside", tables(put64(16+16, 1<<40)), "outside"},
		{
			"vhdx with a region at the end of 64 bits",
			tables(put64(16+16, 0xfffffffffff00000)),
			"outside",
		},
		{"vhdx with two regions in one place", tables(put64(16+16, 2*mib)), "overlaps"},
		{"vhdx with an unknown region", tables(put32(16, 7)), "not known"},
		{
			"vhdx with the block table twice",
			tables(func(b []byte) { copy(b[48:], guidBAT[:]) }),
			"twice",
		},
		{"vhdx without metadata", put32(2*mib, 0), "metadata"},
		{"vhdx with metadata outside", put32(2*mib+32+16, 1<<31), "outside"},
		{"vhdx with unknown metadata", put32(2*mib+32+64, 7), "not known"},
		{"vhdx with blocks of 0 bytes", put32(2*mib+64<<10, 0), "blocks of 0"},
		{"vhdx of 8 EiB", put64(2*mib+64<<10+8, 1<<63), "disk of"},
		{"vhdx with sectors of 1 byte", put32(2*mib+64<<10+16, 1), "sectors"},
		{"vhdx with too short a block table", put64(2*mib+64<<10+8, 1<<40), "block table"},
		{"vhdx with a block outside", put64(3*mib+8, 1<<40|6), "outside"},
		{"vhdx with a block in the block table", put64(3*mib+8, 3*mib|6), "overlaps"},
		{"vhdx with a block twice", put64(3*mib+8, 4*mib|6), "in the same place"},
		{"vhdx with a block in a parent", put64(3*mib+8, 7), "parent"},
	})
	return append(all, hostileImage{"vhdx that is cut off", goodVHDX()[:100<<10], "outside"})
}

func hostileVPC() []hostileImage {
	const footer = 2048 + 512 + 2*mib
	sealed := func(change func([]byte)) func([]byte) {
		return func(b []byte) {
			change(b)
			sealVPC(b)
		}
	}
	put32 := func(at int, v uint32) func([]byte) { return sealed(func(b []byte) { be.PutUint32(b[at:], v) }) }
	put64 := func(at int, v uint64) func([]byte) { return sealed(func(b []byte) { be.PutUint64(b[at:], v) }) }
	all := variants(goodVPC, []variant{
		{"vpc with a parent", put32(footer+60, vpcDiffering), "parent"},
		{"vpc with the id of a parent", put32(512+40, 7), "parent"},
		{"vpc of type 9", put32(footer+60, 9), "type 9"},
		{"vpc of version 2", put32(footer+12, 2<<16), "version"},
		{"vpc of fixed size with a header", put32(footer+60, vpcFixed), "vpc"},
		{"vpc of 0 bytes", put64(footer+48, 0), "disk of 0"},
		{"vpc of half a sector", put64(footer+48, 256), "disk of 256"},
		{"vpc of 8 EiB", put64(footer+48, 1<<63), "disk of"},
		{"vpc without a checksum", func(b []byte) { be.PutUint32(b[64:], 7) }, "checksum"},
		{"vpc with the header outside", put64(footer+16, 1<<40), "outside"},
		{"vpc with the header at the end of 64 bits", put64(footer+16, 1<<64-512), "outside"},
		{"vpc with the header in the footer", put64(footer+16, 0), "signature"},
		{"vpc with a header of version 2", put32(512+24, 2<<16), "header version"},
		{"vpc with blocks of 0 bytes", put32(512+32, 0), "blocks of 0"},
		{"vpc with blocks of a sector", put32(512+32, 512), "blocks of 512"},
		{"vpc with too few blocks", put32(512+28, 1), "1 blocks"},
		{"vpc with 4 billion blocks", put32(512+28, 1<<32-1), "blocks"},
		{"vpc with the block table outside", put64(512+16, 1<<40), "outside"},
		{"vpc with the block table in the header", put64(512+16, 600), "overlaps"},
		{"vpc with a block outside", put32(1540, 1<<31), "outside"},
		{"vpc with a block in the header", put32(1540, 1), "overlaps"},
		{"vpc with a block twice", put32(1540, 4), "in the same place"},
	})
	all = append(all, variants(goodFixedVPC, []variant{
		{"vpc of fixed size that is a qcow2 too", text(qcow2Magic), "at the same time"},
		{"vpc of fixed size without a checksum", func(b []byte) { be.PutUint32(b[mib+64:], 7) }, "checksum"},
	})...)
	return append(all,
		hostileImage{"vpc that is cut off", goodVPC()[:mib], "outside"},
		hostileImage{"vpc of fixed size that is cut off", goodFixedVPC()[512:], "cut off"},
		hostileImage{"vpc without its beginning", goodVPC()[512:], "begin"},
	)
}

func hostileISO() []hostileImage {
	all := variants(goodISO, []variant{
		{
			"iso with blocks of 512",
			func(b []byte) { copy(b[isoStart+128:], "\x00\x02\x02\x00") },
			"blocks",
		},
		{"iso that contradicts itself", put32(isoStart+80, 7), "contradicts"},
		{
			"iso with its root outside",
			func(b []byte) { putBoth32(b[isoStart+158:], 1<<31) },
			"root",
		},
		{"iso without a primary volume", func(b []byte) { b[isoStart] = 3 }, "primary"},
		{"iso without an end", func(b []byte) { clear(b[isoStart+isoSector:]) }, "no signature"},
	})
	boot := append(goodISO(), make([]byte, isoSector)...)
	v := boot[isoStart:]
	copy(v[2*isoSector:], v[isoSector:2*isoSector])
	v[isoSector] = isoBoot
	copy(v[isoSector+7:], elTorito)
	le.PutUint32(v[isoSector+71:], 1<<31)
	return append(all,
		hostileImage{"iso that is cut off", goodISO()[:19*isoSector], "cut off"},
		hostileImage{"iso with a boot catalog outside", boot, "boot catalog"},
	)
}

// otherFiles returns files of formats that are not accepted.
func otherFiles() []hostileImage {
	all := variants(goodRaw, []variant{
		{"dmg", func(b []byte) { copy(b[512:], "koly") }, "dmg"},
		{"qed", text("QED\x00"), "qed"},
		{"luks", text("LUKS\xba\xbe"), "luks"},
		{"parallels", text("WithoutFreeSpace"), "parallels"},
		{"tar archive", func(b []byte) { copy(b[257:], "ustar") }, "tar"},
		{"zip", text("PK\x03\x04"), "zip"},
		{"bzip2", text("BZh91AY"), "bzip2"},
		{"web page", text("<!DOCTYPE html>"), "web page"},
	})
	return append(all,
		hostileImage{"text", []byte("404 not found\n"), "is text"},
		hostileImage{"an empty file", nil, "empty"},
	)
}
