package image

import (
	"encoding/binary"
)

// The qcow2 format: docs/interop/qcow2.txt in QEMU's source. The limits below are
// lower than QEMU's where an honest image is far from them.
const (
	qcow2Magic = "QFI\xfb"

	v2HeaderBytes   = 72
	v3HeaderBytes   = 104
	minClusterBits  = 9
	maxClusterBits  = 21
	maxTableBytes   = 2 * mib // of an L1 or a refcount table
	maxSnapshots    = 1024
	maxBitmaps      = 1024
	maxBitmapDir    = mib
	maxNameBytes    = 1023
	maxRefcountBits = 6 // as a power of two
	offsetMask      = 0x00fffffffffffe00
	refcountMask    = ^uint64(0x1ff)

	incompatCorrupt = 1 << 1
	incompatData    = 1 << 2
	incompatComp    = 1 << 3
	incompatL2Ext   = 1 << 4
	incompatKnown   = 1<<0 | incompatCorrupt | incompatData | incompatComp | incompatL2Ext
	autoclearRaw    = 1 << 1

	extEnd     = 0
	extData    = 0x44415441
	extCrypt   = 0x0537be77
	extBitmaps = 0x23852875
)

// qcow2 is what of a qcow2 image is known so far.
type qcow2 struct {
	*source
	cluster  uint64
	size     uint64
	features uint64
	used     regions
	blocks   []uint64 // where the entries of the tables lead
}

func inspectQcow2(s *source) (uint64, error) {
	h, err := s.read("the qcow2 header", 0, v2HeaderBytes)
	if err != nil {
		return 0, err
	}
	be := binary.BigEndian
	version, bits := be.Uint32(h[4:]), be.Uint32(h[20:])
	switch {
	case version != 2 && version != 3:
		return 0, unsafef("qcow2 of version %d", version)
	case bits < minClusterBits || bits > maxClusterBits:
		return 0, unsafef("qcow2 clusters of 2^%d bytes", bits)
	case be.Uint64(h[8:]) != 0 || be.Uint32(h[16:]) != 0:
		return 0, unsafef("it has a backing file")
	case be.Uint32(h[32:]) != 0:
		return 0, unsafef("it is encrypted")
	}
	q := &qcow2{source: s, cluster: 1 << bits, size: be.Uint64(h[24:])}
	if q.size == 0 || q.size > maxVirtual || q.size%sectorBytes != 0 {
		return 0, unsafef("a qcow2 disk of %d bytes", q.size)
	}
	q.used.add("the header", 0, q.cluster)
	headerBytes := uint64(v2HeaderBytes)
	if version == 3 {
		if headerBytes, err = q.readV3(); err != nil {
			return 0, err
		}
	}
	for _, step := range []func() error{
		func() error { return q.addSnapshots(be.Uint64(h[64:]), be.Uint32(h[60:])) },
		func() error { return q.readExtensions(headerBytes) },
		func() error { return q.checkTables(h) },
	} {
		if err := step(); err != nil {
			return 0, err
		}
	}
	return q.size, nil
}

// readV3 checks what version 3 added to the header and returns its length.
func (q *qcow2) readV3() (uint64, error) {
	h, err := q.read("the qcow2 header", 0, v3HeaderBytes+8)
	if err != nil {
		return 0, err
	}
	be := binary.BigEndian
	q.features = be.Uint64(h[72:])
	order, length := be.Uint32(h[96:]), uint64(be.Uint32(h[100:]))
	long := length >= v3HeaderBytes+8
	switch {
	case length < v3HeaderBytes || length%8 != 0 || length > q.cluster:
		return 0, unsafef("a qcow2 header of %d bytes", length)
	case q.features&^uint64(incompatKnown) != 0:
		return 0, unsafef("unknown qcow2 features %#x", q.features)
	case q.features&incompatData != 0 || be.Uint64(h[88:])&autoclearRaw != 0:
		return 0, unsafef("its data are in another file")
	case q.features&incompatCorrupt != 0:
		return 0, unsafef("it is marked as corrupt")
	case q.features&incompatL2Ext != 0 && q.cluster < 1<<14:
		return 0, unsafef("qcow2 subclusters in clusters of %d bytes", q.cluster)
	case order > maxRefcountBits:
		return 0, unsafef("qcow2 reference counts of 2^%d bits", order)
	case q.features&incompatComp != 0 && (!long || h[104] != 1), q.features&incompatComp == 0 && long && h[104] != 0:
		return 0, unsafef("an unknown qcow2 compression")
	}
	return length, nil
}

// readExtensions looks through the header extensions, which are in the first
// cluster.
func (q *qcow2) readExtensions(off uint64) error {
	for off+8 <= q.cluster && off+8 <= uint64(q.source.size) {
		ext, err := q.read("a header extension", off, 8)
		if err != nil {
			return err
		}
		kind, length := binary.BigEndian.Uint32(ext), uint64(binary.BigEndian.Uint32(ext[4:]))
		if kind == extEnd {
			return nil
		}
		off += 8
		if length > q.cluster-off {
			return unsafef("a qcow2 header extension of %d bytes", length)
		}
		switch kind {
		case extData:
			return unsafef("its data are in another file")
		case extCrypt:
			return unsafef("it is encrypted")
		case extBitmaps:
			err = q.addBitmaps(off, length)
		}
		if err != nil {
			return err
		}
		off += alignUp(length, 8)
	}
	return nil
}

// addBitmaps checks the directory of bitmaps and where it leads.
func (q *qcow2) addBitmaps(off, length uint64) error {
	const entryBytes = 24
	if length != 24 {
		return unsafef("a qcow2 bitmaps extension of %d bytes", length)
	}
	h, err := q.read("the bitmaps extension", off, 24)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	count, bytes, dir := be.Uint32(h), be.Uint64(h[8:]), be.Uint64(h[16:])
	if count == 0 || count > maxBitmaps || be.Uint32(h[4:]) != 0 || bytes > maxBitmapDir || bytes < uint64(count)*entryBytes || dir%q.cluster != 0 || dir == 0 {
		return unsafef("%d qcow2 bitmaps in a directory of %d bytes at %#x", count, bytes, dir)
	}
	if err := q.claim("the bitmap directory", dir, bytes); err != nil {
		return err
	}
	end := dir + bytes
	for at := dir; count > 0; count-- {
		if at+entryBytes > end {
			return unsafef("the bitmap directory is cut off")
		}
		e, err := q.read("a bitmap", at, entryBytes)
		if err != nil {
			return err
		}
		table, entries := be.Uint64(e), uint64(be.Uint32(e[8:]))
		name, extra := uint64(be.Uint16(e[18:])), uint64(be.Uint32(e[20:]))
		if name > maxNameBytes || extra > maxNameBytes || entries*8 > maxTableBytes || table%q.cluster != 0 {
			return unsafef("a qcow2 bitmap of %d clusters at %#x with a name of %d bytes", entries, table, name)
		}
		if entries > 0 {
			if err := q.claim("a bitmap table", table, entries*8); err != nil {
				return err
			}
		}
		at += alignUp(entryBytes+extra+name, 8)
	}
	return nil
}

// addSnapshots checks the table of internal snapshots and where it leads.
func (q *qcow2) addSnapshots(off uint64, count uint32) error {
	const entryBytes = 40
	if count == 0 {
		return nil
	}
	if count > maxSnapshots || off%q.cluster != 0 {
		return unsafef("%d qcow2 snapshots at %#x", count, off)
	}
	be := binary.BigEndian
	at := off
	for ; count > 0; count-- {
		e, err := q.read("the snapshot table", at, entryBytes)
		if err != nil {
			return err
		}
		table, entries := be.Uint64(e), uint64(be.Uint32(e[8:]))
		id, name, extra := uint64(be.Uint16(e[12:])), uint64(be.Uint16(e[14:])), uint64(be.Uint32(e[36:]))
		if id > maxNameBytes || name > maxNameBytes || extra > maxNameBytes || entries*8 > maxTableBytes || table%q.cluster != 0 {
			return unsafef("a qcow2 snapshot with a table of %d entries at %#x and a name of %d bytes", entries, table, name)
		}
		if entries > 0 {
			if err := q.claim("a snapshot's table", table, entries*8); err != nil {
				return err
			}
		}
		at += alignUp(entryBytes+extra+id+name, 8)
	}
	return q.claim("the snapshot table", off, at-off)
}

// claim notes a use of a part of the file; its last cluster may be cut off.
func (q *qcow2) claim(name string, off, length uint64) error {
	end := alignUp(uint64(q.source.size), q.cluster)
	if off == 0 || off >= uint64(q.source.size) || length > end-off {
		return unsafef("%s is outside the file: %d bytes at %#x", name, length, off)
	}
	q.used.add(name, off, length)
	return nil
}

// checkTables checks the L1 and the refcount table that header h names, and that
// no two uses of the file are in one place.
func (q *qcow2) checkTables(h []byte) error {
	be := binary.BigEndian
	entries, l1 := uint64(be.Uint32(h[36:])), be.Uint64(h[40:])
	counts, countBytes := be.Uint64(h[48:]), uint64(be.Uint32(h[56:]))*q.cluster
	perL2 := q.cluster / 8
	if q.features&incompatL2Ext != 0 {
		perL2 = q.cluster / 16
	}
	switch {
	case entries*8 > maxTableBytes || l1%q.cluster != 0:
		return unsafef("a qcow2 L1 table of %d entries at %#x", entries, l1)
	case entries < ceilDiv(q.size, q.cluster*perL2):
		return unsafef("a qcow2 L1 table of %d entries for %d bytes", entries, q.size)
	case countBytes == 0 || countBytes > maxTableBytes || counts%q.cluster != 0:
		return unsafef("a qcow2 refcount table of %d bytes at %#x", countBytes, counts)
	}
	if err := q.claim("the L1 table", l1, entries*8); err != nil {
		return err
	}
	if err := q.claim("the refcount table", counts, countBytes); err != nil {
		return err
	}
	if err := q.used.check(); err != nil {
		return err
	}
	q.blocks = make([]uint64, 0, min(entries+countBytes/8, uint64(q.source.size)/q.cluster+1))
	err := q.table(l1, entries*8, 8, func(b []byte) error { return q.lead("an L2 table", be.Uint64(b)&offsetMask) })
	if err == nil {
		err = q.table(counts, countBytes, 8, func(b []byte) error { return q.lead("a refcount block", be.Uint64(b)&refcountMask) })
	}
	if err != nil {
		return err
	}
	return unique("qcow2 tables", q.blocks)
}

// lead checks where an entry of a table leads.
func (q *qcow2) lead(what string, off uint64) error {
	switch {
	case off == 0:
		return nil
	case off%q.cluster != 0 || off >= uint64(q.source.size):
		return unsafef("%s is outside the file, or not at a cluster: %#x", what, off)
	}
	if name := q.used.at(off, q.cluster); name != "" {
		return unsafef("%s overlaps %s", what, name)
	}
	q.blocks = append(q.blocks, off)
	return nil
}
