package image

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"regexp"
	"strings"
)

// The VMDK format: VMware's "Virtual Disk Format 5.0", as QEMU's block/vmdk.c reads it.
// Only a file that holds the whole image is accepted.
const (
	vmdkMagic = "KDMV"

	vmdkHeaderBytes  = 512
	descriptorSector = 1  // QEMU looks for a parent there, not at the offset in the header
	descriptorRead   = 20 // sectors that QEMU reads there
	maxDescriptor    = 128
	tableEntries     = 512
	grainTableBytes  = tableEntries * 4
	minGrain         = 8 // sectors
	maxGrain         = 2048
	maxGrainDirBytes = 2 * mib
	tablesAtEnd      = math.MaxUint64
	footerFromEnd    = 1536 // bytes from the marker of the footer to the end of the file
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
	newlines                   bool // the newlines are intact, so the file was not transferred as text
	compress                   bool
}

func parseVMDK(h []byte) vmdk {
	le := binary.LittleEndian
	return vmdk{
		version:         le.Uint32(h[4:]),
		flags:           le.Uint32(h[8:]),
		capacity:        le.Uint64(h[12:]),
		grain:           le.Uint64(h[20:]),
		descriptor:      le.Uint64(h[28:]),
		descriptorSize:  le.Uint64(h[36:]),
		entries:         le.Uint32(h[44:]),
		redundantTables: le.Uint64(h[48:]),
		tables:          le.Uint64(h[56:]),
		newlines:        string(h[73:77]) == "\n \r\n",
		compress:        le.Uint16(h[77:]) == 1,
	}
}

// inspectVMDK checks a VMDK image and returns the size of its disk in bytes.
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
		return unsupportedf("vmdk version %d with flags %#x is not supported", h.version, h.flags)
	case !h.newlines:
		return damagedf("the vmdk was transferred as text, which damaged it")
	case h.capacity == 0:
		return hostilef("the vmdk has no data of its own") // QEMU would open the files that its descriptor names
	case h.capacity > maxVirtual/sectorBytes:
		return unsupportedf("a vmdk disk of %d sectors is too large", h.capacity)
	case bits.OnesCount64(h.grain) != 1 || h.grain < minGrain || h.grain > maxGrain:
		return unsupportedf("vmdk grains of %d sectors are not supported", h.grain)
	case h.entries != tableEntries:
		return unsupportedf("vmdk grain tables of %d entries are not supported", h.entries)
	case h.flags&vmdkHasCompressed != 0 && !h.compress:
		return unsupportedf("the vmdk compression is not known")
	case h.descriptor != descriptorSector || h.descriptorSize == 0 || h.descriptorSize > maxDescriptor:
		return unsupportedf("a vmdk descriptor of %d sectors at sector %d is not supported", h.descriptorSize, h.descriptor)
	}
	return nil
}

// footer returns the second copy of the header, which a stream-optimized image has in
// the last sector but one.
func (h vmdk) footer(s *source) (vmdk, error) {
	if s.size < footerFromEnd+vmdkHeaderBytes || s.size%sectorBytes != 0 {
		return vmdk{}, damagedf("the vmdk footer is outside the file")
	}
	b, err := s.read("the vmdk footer", uint64(s.size)-footerFromEnd, footerFromEnd)
	if err != nil {
		return vmdk{}, err
	}
	f := parseVMDK(b[sectorBytes:])
	le := binary.LittleEndian
	switch {
	case le.Uint32(b[8:]) != 0 || le.Uint32(b[12:]) != footerMarker,
		string(b[sectorBytes:sectorBytes+len(vmdkMagic)]) != vmdkMagic:
		return vmdk{}, damagedf("the vmdk has no footer")
	case f.tables == tablesAtEnd, f.capacity != h.capacity, f.grain != h.grain:
		return vmdk{}, damagedf("the vmdk footer contradicts the header")
	}
	return f, f.check()
}

// checkTables checks the grain directories, and that the grain tables are in the file.
func (h vmdk) checkTables(s *source) error {
	entries := ceilDiv(h.capacity, h.grain*tableEntries)
	length := entries * 4
	if length > maxGrainDirBytes {
		return unsupportedf("a vmdk grain directory of %d entries is too large", entries)
	}
	var used regions
	used.add("the header", 0, (descriptorSector+h.descriptorSize)*sectorBytes)
	directories := []uint64{h.tables}
	if h.flags&vmdkHasRedundant != 0 {
		directories = append(directories, h.redundantTables)
	}
	for _, sector := range directories {
		if sector > maxFile/sectorBytes || !s.contains(sector*sectorBytes, length) {
			return damagedf("the vmdk grain directory is outside the file: sector %d", sector)
		}
		used.add("a grain directory", sector*sectorBytes, length)
	}
	if err := used.check(); err != nil {
		return err
	}
	for _, sector := range directories {
		err := s.table(sector*sectorBytes, length, 4, func(b []byte) error {
			return checkGrainTable(s, used, binary.LittleEndian.Uint32(b))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// checkGrainTable checks the sector in an entry of a grain directory. Sectors 0 and 1
// stand for no table and for a table of zeros.
func checkGrainTable(s *source, used regions, sector uint32) error {
	if sector <= 1 {
		return nil
	}
	at := uint64(sector) * sectorBytes
	if !s.contains(at, grainTableBytes) {
		return damagedf("a vmdk grain table is outside the file: %#x", at)
	}
	if name := used.at(at, grainTableBytes); name != "" {
		return hostilef("a vmdk grain table overlaps %s", name)
	}
	return nil
}

var extentLine = regexp.MustCompile(`^(RW|RDONLY|NOACCESS)\s+\d+\s+(\S+)\s+"[^"/\\]+"$`)

// checkDescriptor checks the text that lists the files of the image. Like QEMU, it
// looks for a parent anywhere in the first descriptorRead sectors, also after the end
// of the text.
func (h vmdk) checkDescriptor(s *source) error {
	text := make([]byte, max(h.descriptorSize, descriptorRead)*sectorBytes)
	if err := s.fill(text, descriptorSector*sectorBytes); err != nil {
		return err
	}
	if bytes.Contains(bytes.ToLower(text), []byte("parentfilenamehint")) {
		return hostilef("the vmdk has a parent")
	}
	text, _, _ = bytes.Cut(text[:h.descriptorSize*sectorBytes], []byte{0})
	if !bytes.HasPrefix(text, []byte("# Disk DescriptorFile")) {
		return damagedf("the vmdk has no descriptor")
	}
	var d vmdkDescriptor
	for line := range strings.Lines(string(text)) {
		if err := d.parseLine(strings.TrimSpace(line)); err != nil {
			return err
		}
	}
	if d.extents != 1 || d.createType != "monolithicSparse" && d.createType != "streamOptimized" {
		return unsupportedf("a vmdk of type %.40q with %d extents is not supported: "+
			"it must be monolithicSparse or streamOptimized with 1 extent", d.createType, d.extents)
	}
	return nil
}

type vmdkDescriptor struct {
	extents    int
	createType string
}

// parseLine parses a line of the descriptor and refuses it if it names another file.
func (d *vmdkDescriptor) parseLine(line string) error {
	if line == "" || line[0] == '#' {
		return nil
	}
	if kind := extentKind(line); kind != "" {
		if d.extents++; kind != "SPARSE" {
			return hostilef("a vmdk extent is not in the file: %.100q", line)
		}
		return nil
	}
	key, value, isSetting := strings.Cut(line, "=")
	key = strings.ToLower(strings.TrimSpace(key))
	value = strings.Trim(strings.TrimSpace(value), `"`)
	switch {
	case !isSetting || strings.HasPrefix(line, "RW") || strings.HasPrefix(line, "RDONLY"):
		return damagedf("the vmdk descriptor has an invalid line: %.100q", line)
	case key == "parentcid" && !strings.EqualFold(value, "ffffffff"), key == "changetrackpath":
		return hostilef("the vmdk needs another file: %.100q", line)
	case key == "createtype":
		d.createType = value
	}
	return nil
}

// extentKind returns the type of extent on a line of a descriptor, or "" if the line
// is not an extent.
func extentKind(line string) string {
	if m := extentLine.FindStringSubmatch(line); m != nil {
		return m[2]
	}
	return ""
}
