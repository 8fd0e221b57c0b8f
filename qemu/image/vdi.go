package image

import (
	"bytes"
	"encoding/binary"
)

// The VDI format: VirtualBox's, as QEMU's block/vdi.c describes it.
const (
	vdiMagic = "\x7f\x10\xda\xbe"

	vdiHeaderBytes = 0x1c8
	vdiVersion     = 0x00010001
	vdiMinHeader   = 0x180 // the size the header states, which begins at 0x48
	vdiDynamic     = 1
	vdiStatic      = 2
	vdiBlockBytes  = mib // the only size QEMU knows
	vdiDiscarded   = 0xfffffffe
)

func inspectVDI(s *source) (uint64, error) {
	h, err := s.read("the vdi header", 0, vdiHeaderBytes)
	if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	size, blocks, allocated := le.Uint64(h[0x170:]), uint64(le.Uint32(h[0x180:])), uint64(le.Uint32(h[0x184:]))
	mapAt, dataAt := uint64(le.Uint32(h[0x154:])), uint64(le.Uint32(h[0x158:]))
	header := uint64(le.Uint32(h[0x48:])) + 0x48
	switch kind := le.Uint32(h[0x4c:]); {
	case le.Uint32(h[0x44:]) != vdiVersion || header < vdiMinHeader || header > sectorBytes:
		return 0, unsafef("vdi of version %#x with a header of %d bytes", le.Uint32(h[0x44:]), header)
	case kind != vdiDynamic && kind != vdiStatic:
		return 0, unsafef("vdi of type %d: one that depends on another is not accepted", kind)
	case !bytes.Equal(h[0x1a8:0x1c8], make([]byte, 32)):
		return 0, unsafef("the vdi has a parent")
	case le.Uint32(h[0x168:]) != sectorBytes || le.Uint32(h[0x178:]) != vdiBlockBytes || le.Uint32(h[0x17c:]) != 0:
		return 0, unsafef("vdi sectors of %d, blocks of %d and %d bytes", le.Uint32(h[0x168:]), le.Uint32(h[0x178:]), le.Uint32(h[0x17c:]))
	case size == 0 || size > maxVirtual || blocks < ceilDiv(size, vdiBlockBytes) || blocks > maxVirtual/vdiBlockBytes || allocated > blocks:
		return 0, unsafef("a vdi disk of %d bytes with %d blocks, %d of them allocated", size, blocks, allocated)
	case mapAt < sectorBytes || mapAt%sectorBytes != 0 || dataAt%sectorBytes != 0:
		return 0, unsafef("a vdi block map at %#x and data at %#x", mapAt, dataAt)
	case !s.has(mapAt, blocks*4) || mapAt+blocks*4 > dataAt || allocated > 0 && !s.has(dataAt, (allocated-1)*vdiBlockBytes+1):
		return 0, unsafef("the vdi block map or its data are outside the file, or overlap")
	}
	seen := newBitset(allocated)
	return size, s.table(mapAt, blocks*4, 4, func(b []byte) error {
		block := uint64(le.Uint32(b))
		if block >= vdiDiscarded {
			return nil
		}
		if block >= allocated || seen.take(block) {
			return unsafef("vdi block %d is outside the file, or used twice", block)
		}
		return nil
	})
}
