package image

import (
	"encoding/binary"
)

// ISO 9660 (ECMA-119): descriptors from sector 16 on. QEMU hands an ISO to the
// guest as it is; what is checked is that it is one, and whole.
const (
	isoSector      = 2048
	isoBoot        = 0
	isoPrimary     = 1
	isoEnd         = 255
	maxDescriptors = 64
	directoryFlag  = 2
	elTorito       = "EL TORITO SPECIFICATION"
)

func inspectISO(s *source) (uint64, error) {
	primary := false
	for i := range uint64(maxDescriptors) {
		d, err := s.read("a volume descriptor", isoStart+i*isoSector, isoSector)
		if err != nil {
			return 0, err
		}
		if string(d[1:6]) != isoMagic {
			return 0, unsafef("volume descriptor %d of the iso is none", i)
		}
		switch d[0] {
		case isoEnd:
			if !primary {
				return 0, unsafef("the iso has no primary volume")
			}
			return alignUp(uint64(s.size), sectorBytes), nil
		case isoPrimary:
			primary = true
			err = checkVolume(s, d)
		case isoBoot:
			err = checkBoot(s, d)
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, unsafef("the iso's volume descriptors do not end")
}

func checkVolume(s *source, d []byte) error {
	blocks, ok1 := both32(d[80:])
	block, ok2 := both16(d[128:])
	root := d[156:190]
	at, ok3 := both32(root[2:])
	length, ok4 := both32(root[10:])
	switch {
	case !ok1 || !ok2 || !ok3 || !ok4:
		return unsafef("the iso's volume descriptor contradicts itself")
	case block != isoSector || blocks == 0 || !s.has(0, uint64(blocks)*isoSector):
		return unsafef("the iso is cut off: %d blocks of %d bytes in a file of %d", blocks, block, s.size)
	case root[0] < 34 || root[25]&directoryFlag == 0 || at == 0 || !s.has(uint64(at)*isoSector, uint64(length)):
		return unsafef("the iso's root directory is outside the file, or none")
	}
	return nil
}

func checkBoot(s *source, d []byte) error {
	if string(d[7:7+len(elTorito)]) != elTorito {
		return nil
	}
	if at := uint64(binary.LittleEndian.Uint32(d[71:])); !s.has(at*isoSector, isoSector) {
		return unsafef("the iso's boot catalog is outside the file: sector %d", at)
	}
	return nil
}

// both32 reads a number that is there in both byte orders.
func both32(b []byte) (uint32, bool) {
	n := binary.LittleEndian.Uint32(b)
	return n, n == binary.BigEndian.Uint32(b[4:])
}

func both16(b []byte) (uint16, bool) {
	n := binary.LittleEndian.Uint16(b)
	return n, n == binary.BigEndian.Uint16(b[2:])
}
