package image

import (
	"bytes"
	"strings"
)

// signatures are what images, and what is often taken for one, begin with. The
// formats that are not ours have their names here, for the error.
var signatures = []struct {
	format string
	offset int
	magic  string
}{
	{string(Qcow2), 0, qcow2Magic}, {string(VMDK), 0, vmdkMagic}, {string(VHDX), 0, vhdxMagic}, {string(VDI), 0x40, vdiMagic},
	{"an old vmdk (COWD)", 0, "COWD"}, {"a vmdk descriptor", 0, "# Disk DescriptorFile"},
	{"vpc (VHD)", 0, "conectix"}, {"qed", 0, "QED\x00"}, {"luks", 0, "LUKS\xba\xbe"}, {"bochs", 0, "Bochs Virtual HD Image"},
	{"parallels", 0, "WithoutFreeSpace"}, {"parallels", 0, "WithouFreSpacExt"}, {"cloop", 0, "#!/bin/sh\n#V2.0 Format"},
	{"gzip", 0, "\x1f\x8b\x08"}, {"xz", 0, xzMagic}, {"zstd", 0, "\x28\xb5\x2f\xfd"}, {"bzip2", 0, "BZh"},
	{"lz4", 0, "\x04\x22\x4d\x18"}, {"zip", 0, "PK\x03\x04"}, {"7z", 0, "7z\xbc\xaf\x27\x1c"},
	{"a tar archive (an OVA?)", 257, "ustar"}, {"a web page", 0, "<!DOCTYPE"}, {"a web page", 0, "<!doctype"}, {"a web page", 0, "<html"},
}

// trailers are what formats without a header end with, in the last sector.
var trailers = []struct{ format, magic string }{
	{"vpc (VHD)", "conectix"}, {"dmg", "koly"},
}

const (
	isoStart = 16 * isoSector
	isoMagic = "CD001"
)

// detect returns the format of an image by its first bytes. It refuses one that
// is two at a time, and those that would only be nonsense as raw.
func detect(s *source) (Format, error) {
	head := make([]byte, sectorBytes)
	if err := s.fill(head, 0); err != nil {
		return "", err
	}
	var found []string
	for _, sig := range signatures {
		if bytes.HasPrefix(head[sig.offset:], []byte(sig.magic)) {
			found = append(found, sig.format)
		}
	}
	id := make([]byte, len(isoMagic))
	if err := s.fill(id, isoStart+1); err != nil {
		return "", err
	}
	if string(id) == isoMagic {
		found = append(found, string(ISO))
	}
	switch {
	case len(found) > 1:
		return "", unsafef("it is %s at a time", strings.Join(found, " and "))
	case len(found) == 0:
		return Raw, checkRaw(s, head)
	}
	switch f := Format(found[0]); f {
	case Qcow2, VMDK, VHDX, VDI, ISO:
		return f, nil
	}
	return "", unsafef("it is %s, which is not accepted", found[0])
}

// checkRaw refuses what has no header and is not raw either.
func checkRaw(s *source, head []byte) error {
	if s.size >= sectorBytes {
		tail := make([]byte, sectorBytes)
		if err := s.fill(tail, uint64(s.size)-sectorBytes); err != nil {
			return err
		}
		for _, t := range trailers {
			if bytes.HasPrefix(tail, []byte(t.magic)) {
				return unsafef("it is %s, which is not accepted", t.format)
			}
		}
	}
	// QEMU takes a text for a vmdk descriptor when its first line that is not a
	// comment says a version (vmdk_probe in its block/vmdk.c).
	text := head
	for len(text) > 0 && (text[0] == '#' || text[0] == '\n' || text[0] == '\r' || text[0] == ' ') {
		_, rest, _ := bytes.Cut(text, []byte{'\n'})
		text = rest
	}
	if bytes.HasPrefix(text, []byte("version=")) {
		return unsafef("it is a vmdk descriptor, which is not accepted")
	}
	return nil
}

func inspectRaw(s *source) (uint64, error) {
	if s.size%sectorBytes != 0 {
		return 0, unsafef("it is of no known format, and for a raw disk its %d bytes are not whole sectors of %d", s.size, sectorBytes)
	}
	return uint64(s.size), nil
}
