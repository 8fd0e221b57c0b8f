package image

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"math/bits"
)

// The VHDX format: Microsoft's [MS-VHDX].
const (
	vhdxMagic = "vhdxfile"

	vhdxHeaderBytes  = 4 << 10
	vhdxRegionsBytes = 64 << 10
	vhdxFirstRegion  = mib // offset of the lowest region
	vhdxMaxEntries   = 2047
	vhdxEntryBytes   = 32
	vhdxMaxMetadata  = 16 * mib
	vhdxMinItem      = 64 << 10 // lowest offset of an item in the metadata region
	vhdxMinBlock     = mib
	vhdxMaxBlock     = 256 * mib
	vhdxMaxBAT       = 64 * mib
	vhdxRequired     = 1 // flag of a region
	vhdxItemRequired = 4
	vhdxHasParent    = 2
	vhdxPresent      = 6 // state of a block
	vhdxPartial      = 7
)

// The GUIDs, with the bytes in the order of the file.
var (
	guidBAT        = guid("6677c22d23f600429d64115e9bfd4a08")
	guidMetadata   = guid("06a27c8b90479a4bb8fe575f050f886e")
	guidParameters = guid("3767a1ca36fa434db3b633f0aa44e76b")
	guidSize       = guid("2442a52f1bcd7648b2115dbed83bf4b8")
	guidSector     = guid("1dbf41816fa90947ba47f233a8faab5f")
	guidPhysical   = guid("c748a3cd5d4471449cc9e9885251c556")
	guidPage83     = guid("ab12cabee6b2234593efc309e000c746")
	guidParent     = guid("2d5fd3a80bb34d45abf7d3d84834ab0c")
)

func guid(s string) (g [16]byte) {
	b, _ := hex.DecodeString(s)
	copy(g[:], b)
	return g
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// hasChecksum reports whether a structure begins with its signature, and bytes 4 to 7
// are its checksum.
func hasChecksum(b []byte, signature string) bool {
	if string(b[:4]) != signature {
		return false
	}
	sum := crc32.Update(0, castagnoli, b[:4])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return crc32.Update(sum, castagnoli, b[8:]) == binary.LittleEndian.Uint32(b[4:])
}

// vhdx is the inspection of a VHDX image.
type vhdx struct {
	*source
	used          regions
	bat, metadata region // bat is the block allocation table
	blockBytes    uint64
	size, sector  uint64 // of the disk, bytes
}

// inspectVHDX checks a VHDX image and returns the size of its disk in bytes.
func inspectVHDX(s *source) (uint64, error) {
	v := &vhdx{source: s}
	v.used.add("the header", 0, vhdxFirstRegion)
	for _, step := range []func() error{
		v.readHeader,
		v.readRegions,
		v.readMetadata,
		v.checkBAT,
	} {
		if err := step(); err != nil {
			return 0, err
		}
	}
	return v.size, nil
}

// readHeader reads the current header of the two, and claims the log.
func (v *vhdx) readHeader() error {
	le := binary.LittleEndian
	var current []byte
	for _, at := range []uint64{64 << 10, 128 << 10} {
		h, err := v.read("a vhdx header", at, vhdxHeaderBytes)
		if err != nil {
			return err
		}
		if hasChecksum(h, "head") && (current == nil || le.Uint64(h[8:]) > le.Uint64(current[8:])) {
			current = h
		}
	}
	if current == nil {
		return damagedf("the vhdx has no valid header")
	}
	if le.Uint16(current[64:]) != 0 || le.Uint16(current[66:]) != 1 {
		return unsupportedf("vhdx version %d is not supported", le.Uint16(current[66:]))
	}
	if !bytes.Equal(current[48:64], make([]byte, 16)) {
		return unsupportedf("the vhdx was not closed: its log must be replayed")
	}
	return v.claim("the log", le.Uint64(current[72:]), uint64(le.Uint32(current[68:])))
}

// claim adds a region. Its offset and length must be a multiple of 1 MiB.
func (v *vhdx) claim(name string, off, length uint64) error {
	if off < vhdxFirstRegion || off%mib != 0 || length == 0 || length%mib != 0 || !v.contains(off, length) {
		return damagedf("%s of the vhdx is outside the file or not aligned: %d bytes at %#x", name, length, off)
	}
	v.used.add(name, off, length)
	return nil
}

// readRegions reads the region table: its first copy, or the second if the first is
// damaged.
func (v *vhdx) readRegions() error {
	le := binary.LittleEndian
	var table []byte
	for _, at := range []uint64{192 << 10, 256 << 10} {
		b, err := v.read("a vhdx region table", at, vhdxRegionsBytes)
		if err != nil {
			return err
		}
		if hasChecksum(b, "regi") {
			table = b
			break
		}
	}
	if table == nil || le.Uint32(table[8:]) > vhdxMaxEntries {
		return damagedf("the vhdx has no valid region table")
	}
	for i := range int(le.Uint32(table[8:])) {
		if err := v.readRegion(table[16+i*vhdxEntryBytes:]); err != nil {
			return err
		}
	}
	if v.bat.end == 0 || v.metadata.end == 0 {
		return damagedf("the vhdx has no block table or no metadata")
	}
	if n := v.metadata.length(); n < vhdxMinItem || n > vhdxMaxMetadata {
		return damagedf("vhdx metadata of %d bytes is not allowed", n)
	}
	return v.used.check()
}

// readRegion reads an entry of the region table.
func (v *vhdx) readRegion(e []byte) error {
	le := binary.LittleEndian
	off, length := le.Uint64(e[16:]), uint64(le.Uint32(e[24:]))
	name, to := "another region", (*region)(nil)
	switch [16]byte(e[:16]) {
	case guidBAT:
		name, to = "the block table", &v.bat
	case guidMetadata:
		name, to = "the metadata", &v.metadata
	default:
		if le.Uint32(e[28:])&vhdxRequired != 0 {
			return unsupportedf("the vhdx needs a region that is not known: %x", e[:16])
		}
	}
	if err := v.claim(name, off, length); err != nil {
		return err
	}
	if to == nil {
		return nil
	}
	if to.end != 0 {
		return damagedf("the vhdx has %s twice", name)
	}
	*to = region{name, off, off + length}
	return nil
}

// readMetadata reads the sizes of the disk, its sectors and its blocks.
func (v *vhdx) readMetadata() error {
	le := binary.LittleEndian
	b, err := v.read("the vhdx metadata", v.metadata.start, vhdxRegionsBytes)
	if err != nil {
		return err
	}
	count := int(le.Uint16(b[10:]))
	if string(b[:8]) != "metadata" || count > vhdxMaxEntries {
		return damagedf("the vhdx has no valid metadata")
	}
	for i := range count {
		e := b[32+i*vhdxEntryBytes:][:vhdxEntryBytes]
		off, length := uint64(le.Uint32(e[16:])), uint64(le.Uint32(e[20:]))
		if length > 0 && off < vhdxMinItem || off+length > v.metadata.length() {
			return damagedf("a vhdx metadata item is outside its region: %d bytes at %#x", length, off)
		}
		if err := v.readItem([16]byte(e[:16]), le.Uint32(e[24:]), v.metadata.start+off, length); err != nil {
			return err
		}
	}
	switch {
	case v.size == 0 || v.size > maxVirtual,
		v.sector != 512 && v.sector != 4096,
		v.size%v.sector != 0:
		return unsupportedf("a vhdx disk of %d bytes with sectors of %d bytes is not supported", v.size, v.sector)
	case bits.OnesCount64(v.blockBytes) != 1 || v.blockBytes < vhdxMinBlock || v.blockBytes > vhdxMaxBlock:
		return unsupportedf("vhdx blocks of %d bytes are not supported", v.blockBytes)
	}
	return nil
}

// readItem reads a metadata item.
func (v *vhdx) readItem(id [16]byte, flags uint32, off, length uint64) error {
	le := binary.LittleEndian
	var want int
	switch id {
	case guidParent:
		return hostilef("the vhdx has a parent")
	case guidParameters, guidSize:
		want = 8
	case guidSector:
		want = 4
	case guidPhysical, guidPage83:
		return nil
	default:
		if flags&vhdxItemRequired != 0 {
			return unsupportedf("the vhdx needs a metadata item that is not known: %x", id)
		}
		return nil
	}
	if length < uint64(want) {
		return damagedf("a vhdx metadata item of %d bytes is too short", length)
	}
	b, err := v.read("a vhdx metadata item", off, want)
	if err != nil {
		return err
	}
	switch id {
	case guidParameters:
		v.blockBytes = uint64(le.Uint32(b))
		if le.Uint32(b[4:])&vhdxHasParent != 0 {
			return hostilef("the vhdx has a parent")
		}
	case guidSize:
		v.size = le.Uint64(b)
	case guidSector:
		v.sector = uint64(le.Uint32(b))
	}
	return nil
}

// checkBAT checks the block allocation table. It has an entry with state and offset for
// each block, and after every ratio entries one that only a disk with a parent uses.
func (v *vhdx) checkBAT() error {
	blocks := ceilDiv(v.size, v.blockBytes)
	ratio := (1 << 23) * v.sector / v.blockBytes
	length := (blocks + (blocks-1)/ratio) * 8
	if length > vhdxMaxBAT || length > v.bat.length() {
		return damagedf("a vhdx block table of %d bytes for %d blocks is not allowed", v.bat.length(), blocks)
	}
	seen := newBitset(ceilDiv(uint64(v.source.size), mib))
	var i uint64
	return v.table(v.bat.start, length, 8, func(b []byte) error {
		entry := binary.LittleEndian.Uint64(b)
		i++
		state, off := entry&7, entry>>20*mib
		switch {
		case i%(ratio+1) == 0 || state != vhdxPresent && state != vhdxPartial:
			return nil
		case state == vhdxPartial:
			return hostilef("a vhdx block is in a parent image")
		case off < vhdxFirstRegion || off >= uint64(v.source.size):
			return damagedf("a vhdx block is outside the file: %#x", off)
		}
		if name := v.used.at(off, v.blockBytes); name != "" {
			return hostilef("a vhdx block overlaps %s", name)
		}
		if seen.testAndSet(off / mib) {
			return hostilef("two vhdx blocks are in the same place: %#x", off)
		}
		return nil
	})
}
