package image

import (
	"encoding/binary"
)

// ISO 9660 (ECMA-119) and UDF (ECMA-167): the descriptors begin at sector 16. QEMU passes an ISO to the
// guest unchanged, so the inspection only checks that the file is a complete ISO.
const (
	isoSector      = 2048
	isoBoot        = 0
	isoPrimary     = 1
	isoEnd         = 255
	maxDescriptors = 64
	directoryFlag  = 2
	minRecordBytes = 34 // of a directory record
	elTorito       = "EL TORITO SPECIFICATION"
)

// inspectISO checks an ISO and returns its size in bytes, in whole sectors of 512.
func inspectISO(s *source) (uint64, error) {
	primary := false
	for i := range uint64(maxDescriptors) {
		d, err := s.read("a volume descriptor", isoStart+i*isoSector, isoSector)
		if err != nil {
			return 0, err
		}
		if i == 0 && string(d[1:6]) == udfBegin {
			return inspectUDF(s)
		}
		if string(d[1:6]) != isoMagic {
			return 0, damagedf("volume descriptor %d of the iso has no signature", i)
		}
		switch d[0] {
		case isoEnd:
			if !primary {
				return 0, damagedf("the iso has no primary volume")
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
	return 0, damagedf("the volume descriptors of the iso do not end")
}

// inspectUDF checks a disc without ISO 9660, and returns its size in bytes. Its descriptors must
// name UDF and end.
func inspectUDF(s *source) (uint64, error) {
	named := false
	for i := range uint64(maxDescriptors) {
		d, err := s.read("a volume descriptor", isoStart+i*isoSector, isoSector)
		if err != nil {
			return 0, err
		}
		switch string(d[1:6]) {
		case "NSR02", "NSR03":
			named = true
		case udfEnd:
			if !named {
				return 0, damagedf("the disc has no UDF volume")
			}
			return alignUp(uint64(s.size), sectorBytes), nil
		case udfBegin, "BOOT2", "CDW02":
		default:
			return 0, damagedf("volume descriptor %d of the UDF disc has no signature", i)
		}
	}
	return 0, damagedf("the volume descriptors of the UDF disc do not end")
}

// checkVolume checks the primary volume descriptor.
func checkVolume(s *source, d []byte) error {
	blocks, ok1 := both32(d[80:])
	block, ok2 := both16(d[128:])
	root := d[156:190]
	at, ok3 := both32(root[2:])
	length, ok4 := both32(root[10:])
	switch {
	case !ok1 || !ok2 || !ok3 || !ok4:
		return damagedf("the volume descriptor of the iso contradicts itself")
	case block != isoSector || blocks == 0 || !s.contains(0, uint64(blocks)*isoSector):
		return damagedf("the iso is cut off: it has %d blocks of %d bytes in a file of %d bytes", blocks, block, s.size)
	case root[0] < minRecordBytes || root[25]&directoryFlag == 0:
		return damagedf("the root directory of the iso is malformed")
	case at == 0 || !s.contains(uint64(at)*isoSector, uint64(length)):
		return damagedf("the root directory of the iso is outside the file")
	}
	return nil
}

// checkBoot checks a boot record.
func checkBoot(s *source, d []byte) error {
	if string(d[7:7+len(elTorito)]) != elTorito {
		return nil
	}
	if at := uint64(binary.LittleEndian.Uint32(d[71:])); !s.contains(at*isoSector, isoSector) {
		return damagedf("the boot catalog of the iso is outside the file: sector %d", at)
	}
	return nil
}

// both32 reads a number that is stored in both byte orders, and reports whether they
// agree.
func both32(b []byte) (uint32, bool) {
	n := binary.LittleEndian.Uint32(b)
	return n, n == binary.BigEndian.Uint32(b[4:])
}

func both16(b []byte) (uint16, bool) {
	n := binary.LittleEndian.Uint16(b)
	return n, n == binary.BigEndian.Uint16(b[2:])
}
