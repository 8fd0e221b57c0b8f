package image

import (
	"bytes"
	"encoding/binary"
	"hash"
	"io"
	"math/bits"
	"os"
	"slices"
)

// The VHD format: Microsoft's "Virtual Hard Disk Image Format Specification" 1.0. QEMU's driver
// is vpc. The footer is the last sector. A dynamic disk begins with a copy of it, which QEMU
// reads instead.
const (
	vpcVersion     = 0x00010000
	vpcFixed       = 2
	vpcDynamic     = 3
	vpcDiffering   = 4
	vpcChecksumAt  = 64 // in the footer
	vpcCreatorAt   = 28
	vpcHeaderMagic = "cxsparse"
	vpcHeaderBytes = 1024
	vpcHeaderSumAt = 36         // in the header of a dynamic disk
	vpcMaxSectors  = 0xff000000 // of a disk: 2040 GiB, as in QEMU
	vpcMinBlock    = 512 << 10
	vpcMaxBlock    = 256 * mib
	vpcNoBlock     = 0xffffffff
)

// vpcCreators are the creators of disks to which QEMU gives the recorded size. Other disks get
// the size that follows from the geometry, which is a little smaller.
var vpcCreators = []string{"win ", "qem2", "d2v ", "CTXS", "tap\x00"}

// vpc is a footer.
type vpc struct {
	version, kind uint32
	header        uint64 // offset of the header of a dynamic disk
	creator       string
	size          uint64 // of the disk, bytes
	geometry      uint64 // the size that follows from the geometry, bytes
	sum           bool   // the checksum is right
}

func parseVPC(b []byte) vpc {
	be := binary.BigEndian
	return vpc{
		version:  be.Uint32(b[12:]),
		header:   be.Uint64(b[16:]),
		creator:  string(b[vpcCreatorAt : vpcCreatorAt+4]),
		size:     be.Uint64(b[48:]),
		geometry: uint64(be.Uint16(b[56:])) * uint64(b[58]) * uint64(b[59]) * sectorBytes,
		kind:     be.Uint32(b[60:]),
		sum:      vpcSum(b, vpcChecksumAt) == be.Uint32(b[vpcChecksumAt:]),
	}
}

// vpcSum returns the checksum of a footer or a header, which is stored at an offset in it.
func vpcSum(b []byte, at int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < at || i >= at+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// inspectVPC checks a VHD and returns the size of its disk in bytes.
func inspectVPC(s *source) (uint64, error) {
	footer, err := s.read("the vpc footer", 0, sectorBytes)
	if err != nil {
		return 0, err
	}
	atStart := bytes.HasPrefix(footer, []byte(vpcMagic))
	if !atStart {
		if err := s.fill(footer, uint64(s.size)-sectorBytes); err != nil {
			return 0, err
		}
	}
	f := parseVPC(footer)
	if err := f.check(); err != nil {
		return 0, err
	}
	switch {
	case f.kind == vpcFixed && f.size > uint64(s.size)-sectorBytes:
		return 0, damagedf("the vpc disk of %d bytes is cut off", f.size)
	case f.kind == vpcFixed && atStart:
		return 0, hostilef("the vpc has a fixed size and begins as one with a table") // QEMU would look for the table
	case f.kind == vpcDynamic && !atStart:
		return 0, damagedf("the vpc does not begin with its header")
	case f.kind == vpcFixed:
		return f.size, nil
	}
	return f.size, f.checkTable(s)
}

// isFixedVPC reports whether the last sector of a file of size bytes is the footer of a VHD of
// fixed size.
func isFixedVPC(tail []byte, size int64) bool {
	f := parseVPC(tail)
	return f.sum && f.kind == vpcFixed && f.size == uint64(size)-sectorBytes
}

func (f vpc) check() error {
	switch {
	case !f.sum:
		return damagedf("the vpc footer has a wrong checksum")
	case f.version != vpcVersion:
		return unsupportedf("vpc version %#x is not supported", f.version)
	case f.kind == vpcDiffering:
		return hostilef("the vpc has a parent")
	case f.kind != vpcFixed && f.kind != vpcDynamic:
		return unsupportedf("vpc type %d is not known", f.kind)
	case f.size == 0 || f.size%sectorBytes != 0 || f.size > vpcMaxSectors*sectorBytes:
		return unsupportedf("a vpc disk of %d bytes is not supported", f.size)
	}
	return nil
}

// checkTable checks the header of a dynamic disk, and that each entry of its table leads to a
// block of its own in the file.
func (f vpc) checkTable(s *source) error {
	be := binary.BigEndian
	h, err := s.read("the vpc header", f.header, vpcHeaderBytes)
	if err != nil {
		return err
	}
	table, entries, block := be.Uint64(h[16:]), uint64(be.Uint32(h[28:])), uint64(be.Uint32(h[32:]))
	length := entries * 4
	switch {
	case !bytes.HasPrefix(h, []byte(vpcHeaderMagic)) || vpcSum(h, vpcHeaderSumAt) != be.Uint32(h[vpcHeaderSumAt:]):
		return damagedf("the vpc header has no signature or a wrong checksum")
	case be.Uint32(h[24:]) != vpcVersion:
		return unsupportedf("vpc header version %#x is not supported", be.Uint32(h[24:]))
	case !bytes.Equal(h[40:56], make([]byte, 16)):
		return hostilef("the vpc has a parent")
	case bits.OnesCount64(block) != 1 || block < vpcMinBlock || block > vpcMaxBlock:
		return unsupportedf("vpc blocks of %d bytes are not supported", block)
	case entries < ceilDiv(f.size, block) || entries > vpcMaxSectors*sectorBytes/block+1:
		return damagedf("a vpc disk of %d bytes cannot have %d blocks of %d bytes", f.size, entries, block)
	case !s.contains(table, length):
		return damagedf("the vpc block table is outside the file")
	}
	used := regions{}
	used.add("the footer", 0, sectorBytes)
	used.add("the header", f.header, vpcHeaderBytes)
	used.add("the block table", table, length)
	if err := used.check(); err != nil {
		return err
	}
	// A block begins with a bitmap of its sectors.
	block += alignUp(block/sectorBytes/8, sectorBytes)
	seen := newBitset(ceilDiv(uint64(s.size), block))
	return s.table(table, length, 4, func(b []byte) error {
		sector := be.Uint32(b)
		if sector == vpcNoBlock {
			return nil
		}
		at := uint64(sector) * sectorBytes
		if !s.contains(at, block) {
			return damagedf("a vpc block is outside the file: %#x", at)
		}
		if name := used.at(at, block); name != "" {
			return hostilef("a vpc block overlaps %s", name)
		}
		// Two blocks that begin in the same stretch of one block's length overlap.
		if seen.testAndSet(at / block) {
			return hostilef("two vpc blocks are in the same place: %#x", at)
		}
		return nil
	})
}

// A patch replaces bytes of a file.
type patch struct {
	at    int64
	bytes []byte
}

// exactVPC returns what to change in a VHD to make QEMU give the disk in it its recorded size: the
// name of the program that made it. The file has size bytes and was inspected.
func exactVPC(f *os.File, size int64) (patches []patch, err error) {
	for _, at := range []int64{0, size - sectorBytes} {
		b := make([]byte, sectorBytes)
		if _, err := f.ReadAt(b, at); err != nil {
			return nil, err
		}
		v := parseVPC(b)
		if !bytes.HasPrefix(b, []byte(vpcMagic)) || v.geometry == v.size || slices.Contains(vpcCreators, v.creator) {
			continue
		}
		copy(b[vpcCreatorAt:], vpcCreators[0])
		binary.BigEndian.PutUint32(b[vpcChecksumAt:], vpcSum(b, vpcChecksumAt))
		patches = append(patches, patch{at, b})
	}
	return patches, nil
}

// rehash resets a hash to that of the first size bytes of a file with patches, which are in the
// order of their offsets.
func rehash(f *os.File, size int64, patches []patch, sum hash.Hash) error {
	sum.Reset()
	var parts []io.Reader
	at := int64(0)
	for _, p := range patches {
		parts = append(parts, io.NewSectionReader(f, at, p.at-at), bytes.NewReader(p.bytes))
		at = p.at + int64(len(p.bytes))
	}
	parts = append(parts, io.NewSectionReader(f, at, size-at))
	_, err := io.CopyBuffer(sum, io.MultiReader(parts...), make([]byte, copyBufferBytes))
	return err
}
