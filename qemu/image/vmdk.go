package image

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"regexp"
	"strings"
)

// The VMDK format: VMware's "Virtual Disk Format 5.0", and what QEMU's
// block/vmdk.c makes of it. Only a file with everything in it is accepted.
const (
	vmdkMagic = "KDMV"

	vmdkHeaderBytes  = 512
	descriptorSector = 1  // where QEMU looks for a parent, whatever the header says
	descriptorRead   = 20 // sectors QEMU reads there
	maxDescriptor    = 128
	tableEntries     = 512
	grainTableBytes  = tableEntries * 4
	minGrain         = 8 // sectors
	maxGrain         = 2048
	maxGrainDirBytes = 2 * mib
	tablesAtEnd      = math.MaxUint64
	footerFromEnd    = 1536 // of its marker; the footer and the end marker follow
	footerMarker     = 3

	vmdkHasRedundant  = 1 << 1
	vmdkHasCompressed = 1 << 16
	vmdkFlags         = 1<<0 | vmdkHasRedundant | 1<<2 | vmdkHasCompressed | 1<<17
)

// vmdk is the header of a sparse extent. Offsets and sizes are in sectors.
type vmdk struct {
	version, flags             uint32
	capacity, grain            uint64
	descriptor, descriptorSize uint64
	entries                    uint32
	redundantTables, tables    uint64
	newlines, compress         bool // newlines: the test for a transfer as text is intact
}

func parseVMDK(h []byte) vmdk {
	le := binary.LittleEndian
	return vmdk{
		version: le.Uint32(h[4:]), flags: le.Uint32(h[8:]), capacity: le.Uint64(h[12:]), grain: le.Uint64(h[20:]),
		descriptor: le.Uint64(h[28:]), descriptorSize: le.Uint64(h[36:]), entries: le.Uint32(h[44:]),
		redundantTables: le.Uint64(h[48:]), tables: le.Uint64(h[56:]),
		newlines: string(h[73:77]) == "\n \r\n", compress: le.Uint16(h[77:]) == 1,
	}
}

func inspectVMDK(s *source) (uint64, error) {
	b, err := s.read("the vmdk header", 0, vmdkHeaderBytes)
	if err != nil {
		return 0, err
	}
	h := parseVMDK(b)
	if err := h.check(); err != nil {
		return 0, err
	}
	if err := h.checkDescriptor(s); err != nil {
		return 0, err
	}
	if h.tables == tablesAtEnd {
		if h, err = h.footer(s); err != nil {
			return 0, err
		}
	}
	return h.capacity * sectorBytes, h.checkTables(s)
}

func (h vmdk) check() error {
	switch {
	case h.version < 1 || h.version > 3 || h.flags&^uint32(vmdkFlags) != 0:
		return unsafef("vmdk of version %d with flags %#x", h.version, h.flags)
	case !h.newlines:
		return unsafef("the vmdk was transferred as text and is damaged")
	case h.capacity == 0:
		return unsafef("the vmdk has no data of its own") // QEMU would open what its descriptor names
	case h.capacity > maxVirtual/sectorBytes:
		return unsafef("a vmdk disk of %d sectors", h.capacity)
	case bits.OnesCount64(h.grain) != 1 || h.grain < minGrain || h.grain > maxGrain:
		return unsafef("vmdk grains of %d sectors", h.grain)
	case h.entries != tableEntries:
		return unsafef("vmdk grain tables of %d entries", h.entries)
	case h.flags&vmdkHasCompressed != 0 && !h.compress:
		return unsafef("an unknown vmdk compression")
	case h.descriptor != descriptorSector || h.descriptorSize == 0 || h.descriptorSize > maxDescriptor:
		return unsafef("a vmdk descriptor of %d sectors at sector %d", h.descriptorSize, h.descriptor)
	}
	return nil
}

// footer returns the header of a stream, which is the last but one sector.
func (h vmdk) footer(s *source) (vmdk, error) {
	if s.size < footerFromEnd+vmdkHeaderBytes || s.size%sectorBytes != 0 {
		return vmdk{}, unsafef("the vmdk footer is outside the file")
	}
	b, err := s.read("the vmdk footer", uint64(s.size)-footerFromEnd, footerFromEnd)
	if err != nil {
		return vmdk{}, err
	}
	f := parseVMDK(b[sectorBytes:])
	le := binary.LittleEndian
	switch {
	case le.Uint32(b[8:]) != 0 || le.Uint32(b[12:]) != footerMarker || string(b[sectorBytes:sectorBytes+4]) != vmdkMagic:
		return vmdk{}, unsafef("the vmdk has no footer where one should be")
	case f.tables == tablesAtEnd, f.capacity != h.capacity, f.grain != h.grain:
		return vmdk{}, unsafef("the vmdk footer contradicts the header")
	}
	return f, f.check()
}

// checkTables checks the grain directories and that the tables are in the file.
func (h vmdk) checkTables(s *source) error {
	entries := ceilDiv(h.capacity, h.grain*tableEntries)
	length := entries * 4
	if length > maxGrainDirBytes {
		return unsafef("a vmdk grain directory of %d entries", entries)
	}
	var used regions
	used.add("the header", 0, (descriptorSector+h.descriptorSize)*sectorBytes)
	directories := []uint64{h.tables}
	if h.flags&vmdkHasRedundant != 0 {
		directories = append(directories, h.redundantTables)
	}
	for _, sector := range directories {
		if sector > maxFile/sectorBytes || !s.has(sector*sectorBytes, length) {
			return unsafef("the vmdk grain directory is outside the file: sector %d", sector)
		}
		used.add("a grain directory", sector*sectorBytes, length)
	}
	if err := used.check(); err != nil {
		return err
	}
	for _, sector := range directories {
		err := s.table(sector*sectorBytes, length, 4, func(b []byte) error {
			at := uint64(binary.LittleEndian.Uint32(b)) * sectorBytes
			if at <= sectorBytes { // 0 and 1 stand for no table, and for one of zeros
				return nil
			}
			if !s.has(at, grainTableBytes) {
				return unsafef("a vmdk grain table is outside the file: %#x", at)
			}
			if name := used.at(at, grainTableBytes); name != "" {
				return unsafef("a vmdk grain table overlaps %s", name)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

var extentLine = regexp.MustCompile(`^(RW|RDONLY|NOACCESS)\s+\d+\s+(\S+)\s+"[^"/\\]+"$`)

// checkDescriptor checks the text that says what the image consists of. QEMU
// looks for a parent anywhere in the sectors it reads, so do we.
func (h vmdk) checkDescriptor(s *source) error {
	text := make([]byte, max(h.descriptorSize, descriptorRead)*sectorBytes)
	if err := s.fill(text, descriptorSector*sectorBytes); err != nil {
		return err
	}
	if bytes.Contains(bytes.ToLower(text), []byte("parentfilenamehint")) {
		return unsafef("the vmdk has a parent")
	}
	text, _, _ = bytes.Cut(text[:h.descriptorSize*sectorBytes], []byte{0})
	if !bytes.HasPrefix(text, []byte("# Disk DescriptorFile")) {
		return unsafef("the vmdk has no descriptor")
	}
	extents, kind := 0, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		key, value, isSetting := strings.Cut(line, "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		key = strings.ToLower(strings.TrimSpace(key))
		switch {
		case line == "" || line[0] == '#':
		case extentKind(line) != "":
			if extents++; extentKind(line) != "SPARSE" {
				return unsafef("a vmdk extent that is not in the file: %.100q", line)
			}
		case !isSetting || strings.HasPrefix(line, "RW") || strings.HasPrefix(line, "RDONLY"):
			return unsafef("a line of the vmdk descriptor: %.100q", line)
		case key == "parentcid" && !strings.EqualFold(value, "ffffffff"), key == "changetrackpath":
			return unsafef("the vmdk needs another file: %.100q", line)
		case key == "createtype":
			kind = value
		}
	}
	if extents != 1 || kind != "monolithicSparse" && kind != "streamOptimized" {
		return unsafef("a vmdk of type %.40q with %d extents: it must be monolithicSparse or streamOptimized, with one", kind, extents)
	}
	return nil
}

// extentKind returns the type of the extent that a line of a descriptor names, ""
// if it names none.
func extentKind(line string) string {
	if m := extentLine.FindStringSubmatch(line); m != nil {
		return m[2]
	}
	return ""
}
