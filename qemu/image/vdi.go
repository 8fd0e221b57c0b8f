package image

import (
	"bytes"
	"encoding/binary"
)

// The VDI format of VirtualBox, as QEMU's block/vdi.c describes it.
const (
	vdiMagic = "\x7f\x10\xda\xbe"

	vdiHeaderBytes = 0x1c8
	vdiVersion     = 0x00010001
	vdiHeaderAt    = 0x48  // of the field with the size of the header, which counts from there
	vdiMinHeader   = 0x180 // of that size plus vdiHeaderAt
	vdiDynamic     = 1
	vdiStatic      = 2
	vdiBlockBytes  = mib // the only size that QEMU supports
	vdiDiscarded   = 0xfffffffe
)

// vdi is the header of a VDI image.
type vdi struct {
	version, kind     uint32
	header            uint64 // bytes
	mapAt, dataAt     uint64
	size              uint64 // of the disk, bytes
	sector            uint32
	block, blockExtra uint32 // bytes
	blocks, allocated uint64
	links             []byte // UUIDs of the parent and of its last change
}

func parseVDI(h []byte) vdi {
	le := binary.LittleEndian
	return vdi{
		version:    le.Uint32(h[0x44:]),
		header:     uint64(le.Uint32(h[vdiHeaderAt:])) + vdiHeaderAt,
		kind:       le.Uint32(h[0x4c:]),
		mapAt:      uint64(le.Uint32(h[0x154:])),
		dataAt:     uint64(le.Uint32(h[0x158:])),
		sector:     le.Uint32(h[0x168:]),
		size:       le.Uint64(h[0x170:]),
		block:      le.Uint32(h[0x178:]),
		blockExtra: le.Uint32(h[0x17c:]),
		blocks:     uint64(le.Uint32(h[0x180:])),
		allocated:  uint64(le.Uint32(h[0x184:])),
		links:      h[0x1a8:0x1c8],
	}
}

// inspectVDI checks a VDI image and returns the size of its disk in bytes.
func inspectVDI(s *source) (uint64, error) {
	b, err := s.read("the vdi header", 0, vdiHeaderBytes)
	if err != nil {
		return 0, err
	}
	h := parseVDI(b)
	if err := h.check(); err != nil {
		return 0, err
	}
	return h.size, h.checkMap(s)
}

func (h vdi) check() error {
	switch {
	case h.version != vdiVersion || h.header < vdiMinHeader || h.header > sectorBytes:
		return unsupportedf("vdi version %#x with a header of %d bytes is not supported", h.version, h.header)
	case h.kind != vdiDynamic && h.kind != vdiStatic:
		return hostilef("vdi type %d depends on another image or is not known", h.kind)
	case !bytes.Equal(h.links, make([]byte, len(h.links))):
		return hostilef("the vdi has a parent")
	case h.sector != sectorBytes || h.block != vdiBlockBytes || h.blockExtra != 0:
		return unsupportedf("vdi sectors of %d bytes and blocks of %d and %d bytes are not supported",
			h.sector, h.block, h.blockExtra)
	case h.size == 0 || h.size > maxVirtual,
		h.blocks < ceilDiv(h.size, vdiBlockBytes) || h.blocks > maxVirtual/vdiBlockBytes,
		h.allocated > h.blocks:
		return damagedf("a vdi disk of %d bytes cannot have %d blocks, %d of them allocated",
			h.size, h.blocks, h.allocated)
	case h.mapAt < sectorBytes || h.mapAt%sectorBytes != 0 || h.dataAt%sectorBytes != 0:
		return damagedf("a vdi block map at %#x with data at %#x is not allowed", h.mapAt, h.dataAt)
	}
	return nil
}

// checkMap checks that the block map is in the file, and that each of its entries
// leads to a block of its own in the file.
func (h vdi) checkMap(s *source) error {
	length := h.blocks * 4
	switch {
	case !s.contains(h.mapAt, length):
		return damagedf("the vdi block map is outside the file")
	case h.mapAt+length > h.dataAt:
		return hostilef("the vdi block map and the data overlap")
	case h.allocated > 0 && !s.contains(h.dataAt, (h.allocated-1)*vdiBlockBytes+1):
		return damagedf("the vdi data is outside the file")
	}
	seen := newBitset(h.allocated)
	return s.table(h.mapAt, length, 4, func(b []byte) error {
		block := uint64(binary.LittleEndian.Uint32(b))
		if block >= vdiDiscarded {
			return nil
		}
		if block >= h.allocated {
			return damagedf("vdi block %d is outside the file", block)
		}
		if seen.testAndSet(block) {
			return hostilef("vdi block %d is used twice", block)
		}
		return nil
	})
}
