package image

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
)

// A signature is the bytes at an offset by which a format is recognized.
type signature struct {
	name   string // of the format: a [Format], or a name for the error message
	offset int
	magic  string
	driver string // QEMU's driver, for the formats that ProbeBase refuses
}

// signatures are the formats of images, and of files that are often mistaken for
// images. The magic of ISO is not in the first sector; see isISO.
var signatures = []signature{
	{name: string(Qcow2), magic: qcow2Magic},
	{name: string(VMDK), magic: vmdkMagic, driver: "vmdk"},
	{name: string(VHDX), magic: vhdxMagic, driver: "vhdx"},
	{name: string(VDI), offset: 0x40, magic: vdiMagic, driver: "vdi"},
	{name: string(VPC), magic: vpcMagic, driver: "vpc"},

	{name: "an old vmdk (COWD)", magic: "COWD", driver: "vmdk"},
	{name: "a vmdk descriptor", magic: "# Disk DescriptorFile", driver: "vmdk"},
	{name: "qed", magic: "QED\x00", driver: "qed"},
	{name: "luks", magic: "LUKS\xba\xbe", driver: "luks"},
	{name: "parallels", magic: "WithoutFreeSpace", driver: "parallels"},
	{name: "parallels", magic: "WithouFreSpacExt", driver: "parallels"},
	{name: "bochs", magic: "Bochs Virtual HD Image"},
	{name: "cloop", magic: "#!/bin/sh\n#V2.0 Format"},

	{name: "gzip", magic: gzipMagic},
	{name: "xz", magic: xzMagic},
	{name: "zstd", magic: zstdMagic},
	{name: "bzip2", magic: bzipMagic},
	{name: "lz4", magic: "\x04\x22\x4d\x18"},
	{name: "zip", magic: "PK\x03\x04"},
	{name: "7z", magic: "7z\xbc\xaf\x27\x1c"},
	{name: tarName, offset: tarMagicAt, magic: tarMagic},
	{name: "a web page", magic: "<!DOCTYPE"},
	{name: "a web page", magic: "<!doctype"},
	{name: "a web page", magic: "<html"},
}

// signaturesIn returns the signatures that the first sector of a file has.
func signaturesIn(head []byte) []signature {
	var found []signature
	for _, sig := range signatures {
		if bytes.HasPrefix(head[sig.offset:], []byte(sig.magic)) {
			found = append(found, sig)
		}
	}
	return found
}

// vpcMagic begins a dynamic VHD and the last sector of a fixed one.
const vpcMagic = "conectix"

// trailers are the formats without a header, by the beginning of the last sector.
var trailers = []struct{ format, magic string }{
	{string(VPC), vpcMagic},
	{"dmg", "koly"},
}

const (
	isoStart = 16 * isoSector
	isoMagic = "CD001"
	udfBegin = "BEA01" // of the extended area that names the file systems after ISO 9660
	udfEnd   = "TEA01"
)

// detect returns the format of an image by its first bytes. It refuses a file that
// is of two formats, and formats that would be misread as raw.
func detect(s *source) (Format, error) {
	head := make([]byte, sectorBytes)
	if err := s.fill(head, 0); err != nil {
		return "", err
	}
	var found []string
	for _, sig := range signaturesIn(head) {
		found = append(found, sig.name)
	}
	iso, err := isISO(s)
	if err != nil {
		return "", err
	}
	if iso {
		found = append(found, string(ISO))
	}
	tail := make([]byte, sectorBytes)
	if err := s.fill(tail, uint64(max(s.size-sectorBytes, 0))); err != nil {
		return "", err
	}
	trailer := trailerOf(tail)
	// The last sector of another format may be a part of its data.
	if trailer != "" && (len(found) == 0 || trailer == string(VPC) && !slices.Contains(found, trailer) && isFixedVPC(tail, s.size)) {
		found = append(found, trailer)
	}
	switch {
	case len(found) > 1:
		return "", hostilef("the file is %s at the same time", strings.Join(found, " and "))
	case len(found) == 0:
		return Raw, checkRaw(head)
	}
	switch f := Format(found[0]); f {
	case Qcow2, VMDK, VHDX, VDI, VPC, ISO:
		return f, nil
	}
	return "", unsupportedf("the file is %s, which is not accepted", found[0])
}

// isISO reports whether the file is a disc: it has the magic of an ISO 9660 volume, or it has
// a UDF volume only, as discs for Windows do.
func isISO(s *source) (bool, error) {
	id := make([]byte, len(isoMagic))
	err := s.fill(id, isoStart+1)
	switch {
	case err != nil || string(id) == isoMagic:
		return err == nil, err
	case string(id) != udfBegin:
		return false, nil
	}
	return hasUDFAnchor(s)
}

// hasUDFAnchor reports whether a file has an anchor of UDF (ECMA-167, 3/10.2) where a disc has
// it. A disk with sectors of 512 bytes has it elsewhere.
func hasUDFAnchor(s *source) (bool, error) {
	const anchorAt, anchorTag = 256, 2
	tag := make([]byte, 16)
	err := s.fill(tag, anchorAt*isoSector)
	le := binary.LittleEndian
	return err == nil && le.Uint16(tag) == anchorTag && le.Uint32(tag[12:]) == anchorAt, err
}

// trailerOf returns the format of a file by its last sector, or "".
func trailerOf(tail []byte) string {
	for _, t := range trailers {
		if bytes.HasPrefix(tail, []byte(t.magic)) {
			return t.format
		}
	}
	return ""
}

// checkRaw refuses a file without a signature that QEMU would not take as raw.
func checkRaw(head []byte) error {
	// QEMU takes a text file as a vmdk descriptor if its first line that is not a
	// comment is a version (vmdk_probe in its block/vmdk.c).
	text := head
	for len(text) > 0 && (text[0] == '#' || text[0] == '\n' || text[0] == '\r' || text[0] == ' ') {
		_, rest, _ := bytes.Cut(text, []byte{'\n'})
		text = rest
	}
	if bytes.HasPrefix(text, []byte("version=")) {
		return unsupportedf("the file is a vmdk descriptor, which is not accepted")
	}
	return nil
}

// inspectRaw returns the size of a raw disk in bytes. The importer pads the last sector with
// zeros, as QEMU does when it reads it. A text that is no whole number of sectors is refused:
// it is an error page or a list of checksums, not a disk.
func inspectRaw(s *source) (uint64, error) {
	head := make([]byte, min(s.size, sectorBytes))
	if err := s.fill(head, 0); err != nil {
		return 0, err
	}
	if s.size%sectorBytes != 0 && isText(head) {
		return 0, unsupportedf("the file is text, not a disk")
	}
	if s.size < sectorBytes {
		return 0, damagedf("the file has %d bytes, and no disk is smaller than a sector of %d", s.size, sectorBytes)
	}
	return alignUp(uint64(s.size), sectorBytes), nil
}

// isText reports whether b has only printable ASCII characters and white space.
func isText(b []byte) bool {
	return !bytes.ContainsFunc(b, func(r rune) bool {
		return r > '~' || r < ' ' && r != '\t' && r != '\n' && r != '\r'
	})
}
