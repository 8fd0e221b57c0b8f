package qemu

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
)

// Parts of an ISO image (ECMA-119).
const (
	isoSector  = 2048 // bytes
	isoFirst   = 16   // the sector of the first volume descriptor
	isoPrimary = 1    // the type of the first descriptor
	isoJoliet  = 2    // of that of Joliet
	isoEnd     = 255  // of the last one

	isoRecordHead = 33                             // bytes of a directory record before the name
	isoTime       = "\x46\x01\x01\x00\x00\x00\x00" // 1970-01-01 in a directory record
)

// normalizeISO sets every time in an ISO image to 1970, so that the same files make
// the same image, and adds the padding that ECMA-119 requires and the library omits.
func normalizeISO(f *os.File) error {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxSeed))
	if err != nil {
		return err
	}
	for at := isoFirst * isoSector; at+isoSector <= len(b) && b[at] != isoEnd; at += isoSector {
		if kind := b[at]; kind != isoPrimary && kind != isoJoliet {
			continue
		}
		if end := isoSectors(b[at+80:]); end > len(b) {
			b = append(b, make([]byte, end-len(b))...)
		}
		if err := normalizeVolume(b, b[at:at+isoSector]); err != nil {
			return err
		}
	}
	_, err = f.WriteAt(b, 0)
	return err
}

// isoSectors returns the number of bytes in the sectors that a field counts.
func isoSectors(field []byte) int { return int(binary.LittleEndian.Uint32(field)) * isoSector }

// normalizeVolume changes a volume descriptor and the root directory of its volume
// in the image b.
func normalizeVolume(b, descriptor []byte) error {
	padLabel(descriptor[40:72], descriptor[0] == isoJoliet)
	for i := range 2 { // created, modified
		copy(descriptor[813+17*i:], "1970010100000000\x00")
	}
	for i := range 2 { // expires, effective: unset
		copy(descriptor[847+17*i:], "0000000000000000\x00")
	}
	root := descriptor[156:190]
	start := isoSectors(root[2:])
	normalizeRecord(root)
	end := start + int(binary.LittleEndian.Uint32(root[10:]))
	if start > end || end > len(b) {
		return errors.New("the root directory is beyond the end of the ISO image")
	}
	for rest := b[start:end]; len(rest) > 0; {
		length := int(rest[0])
		if length <= isoRecordHead || length > len(rest) {
			break
		}
		normalizeRecord(rest[:length])
		rest = rest[length:]
	}
	return nil
}

// padLabel pads the name of a volume with spaces, where the library writes zeros.
// wide names have two bytes a character.
func padLabel(label []byte, wide bool) {
	for i := range label {
		if label[i] == 0 && (!wide || i%2 == 1) {
			label[i] = ' '
		}
	}
}

// normalizeRecord changes a directory record: its times, and the size of a directory,
// which is one of whole sectors.
func normalizeRecord(r []byte) {
	copy(r[18:], isoTime)
	if r[25]&2 != 0 { // a directory
		size := (binary.LittleEndian.Uint32(r[10:]) + isoSector - 1) / isoSector * isoSector
		binary.LittleEndian.PutUint32(r[10:], size)
		binary.BigEndian.PutUint32(r[14:], size)
	}
	name := int(r[32])
	rockRidge := isoRecordHead + name + (name+1)%2
	if rockRidge > len(r) {
		return
	}
	// An entry of Rock Ridge has two letters, a length and a version.
	for e := r[rockRidge:]; len(e) > 4 && e[2] >= 4 && int(e[2]) <= len(e); e = e[e[2]:] {
		if string(e[:2]) != "TF" {
			continue
		}
		for at := 5; at+len(isoTime) <= int(e[2]); at += len(isoTime) {
			copy(e[at:], isoTime)
		}
	}
}
