package image

import (
	"encoding/binary"
)

// The limits on qcow2 images that are imported. They are lower than QEMU's where
// an honest image is far from them.
const (
	maxTableBytes   = 2 * mib // of an L1 or a refcount table
	maxSnapshots    = 1024
	maxBitmaps      = 1024
	maxBitmapDir    = mib
	maxRefcountBits = 6       // as a power of two
	minL2ExtCluster = 1 << 14 // bytes; subclusters are not smaller than a sector
	offsetMask      = 0x00fffffffffffe00
	refcountMask    = ^uint64(0x1ff)
)

// qcow2 is the inspection of a qcow2 image.
type qcow2 struct {
	*source
	Qcow2Header
	used   regions
	blocks []uint64 // the offsets that the entries of the tables lead to
}

// inspectQcow2 checks a qcow2 image and returns the size of its disk in bytes.
func inspectQcow2(s *source) (uint64, error) {
	h, err := readQcow2Header(s)
	if err != nil {
		return 0, err
	}
	if err := h.check(); err != nil {
		return 0, err
	}
	q := &qcow2{source: s, Qcow2Header: h}
	q.used.add("the header", 0, q.cluster)
	for _, step := range []func() error{
		q.addSnapshots,
		q.addExtensions,
		q.checkTables,
	} {
		if err := step(); err != nil {
			return 0, err
		}
	}
	return uint64(h.VirtualBytes), nil
}

// check refuses headers that lead out of the image, and features that honest
// images do not have.
func (h *Qcow2Header) check() error {
	long := h.bytes >= v3HeaderBytes+8
	compressed := h.features&incompatComp != 0
	switch {
	case h.backingOffset != 0 || h.backingBytes != 0:
		return hostilef("the image has a backing file")
	case h.Encrypted:
		return unsupportedf("the image is encrypted")
	case h.VirtualBytes%sectorBytes != 0:
		return unsupportedf("a qcow2 disk of %d bytes is not supported: it must be a multiple of %d",
			h.VirtualBytes, sectorBytes)
	case h.bytes%8 != 0:
		return damagedf("a qcow2 header of %d bytes is not allowed", h.bytes)
	case h.ExternalData || h.autoclear&autoclearRaw != 0:
		return hostilef("the data of the image is in another file")
	case h.features&incompatCorrupt != 0:
		return damagedf("the image is marked as corrupt")
	case h.features&incompatL2Ext != 0 && h.cluster < minL2ExtCluster:
		return unsupportedf("qcow2 subclusters in clusters of %d bytes are not allowed", h.cluster)
	case h.refcountOrder > maxRefcountBits:
		return unsupportedf("qcow2 reference counts of 2^%d bits are not supported", h.refcountOrder)
	case compressed && (!long || h.compression != 1), !compressed && h.compression != 0:
		return unsupportedf("the qcow2 compression is not known")
	}
	return nil
}

// addExtensions checks the header extensions that lead to other parts of the file.
func (q *qcow2) addExtensions() error {
	for _, ext := range q.extensions {
		if ext.kind != extBitmaps {
			continue
		}
		if err := q.addBitmaps(ext.off, ext.length); err != nil {
			return err
		}
	}
	return nil
}

// addBitmaps checks the directory of bitmaps, and the offsets in it.
func (q *qcow2) addBitmaps(off, length uint64) error {
	const entryBytes = 24
	const extensionBytes = 24
	if length != extensionBytes {
		return damagedf("a qcow2 bitmaps extension of %d bytes is not allowed", length)
	}
	h, err := q.read("the bitmaps extension", off, extensionBytes)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	count, reserved := be.Uint32(h), be.Uint32(h[4:])
	bytes, dir := be.Uint64(h[8:]), be.Uint64(h[16:])
	if count == 0 || count > maxBitmaps || reserved != 0 ||
		bytes > maxBitmapDir || bytes < uint64(count)*entryBytes || dir == 0 || dir%q.cluster != 0 {
		return damagedf("%d qcow2 bitmaps in a directory of %d bytes at %#x are not allowed", count, bytes, dir)
	}
	if err := q.claim("the bitmap directory", dir, bytes); err != nil {
		return err
	}
	end := dir + bytes
	for at := dir; count > 0; count-- {
		if at+entryBytes > end {
			return damagedf("the qcow2 bitmap directory is cut off")
		}
		e, err := q.read("a bitmap", at, entryBytes)
		if err != nil {
			return err
		}
		table, entries := be.Uint64(e), uint64(be.Uint32(e[8:]))
		name, extra := uint64(be.Uint16(e[18:])), uint64(be.Uint32(e[20:]))
		if name > maxNameBytes || extra > maxNameBytes || entries*8 > maxTableBytes || table%q.cluster != 0 {
			return damagedf("a qcow2 bitmap of %d clusters at %#x with a name of %d bytes is not allowed",
				entries, table, name)
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

// addSnapshots checks the table of internal snapshots, and the offsets in it.
func (q *qcow2) addSnapshots() error {
	const entryBytes = 40
	off, count := q.snapshots, q.snapshotCount
	if count == 0 {
		return nil
	}
	if count > maxSnapshots || off%q.cluster != 0 {
		return damagedf("%d qcow2 snapshots at %#x are not allowed", count, off)
	}
	be := binary.BigEndian
	at := off
	for ; count > 0; count-- {
		e, err := q.read("the snapshot table", at, entryBytes)
		if err != nil {
			return err
		}
		table, entries := be.Uint64(e), uint64(be.Uint32(e[8:]))
		id, name := uint64(be.Uint16(e[12:])), uint64(be.Uint16(e[14:]))
		extra := uint64(be.Uint32(e[36:]))
		if id > maxNameBytes || name > maxNameBytes || extra > maxNameBytes ||
			entries*8 > maxTableBytes || table%q.cluster != 0 {
			return damagedf("a qcow2 snapshot with a table of %d entries at %#x and a name of %d bytes is not allowed",
				entries, table, name)
		}
		if entries > 0 {
			if err := q.claim("the L1 table of a snapshot", table, entries*8); err != nil {
				return err
			}
		}
		at += alignUp(entryBytes+extra+id+name, 8)
	}
	return q.claim("the snapshot table", off, at-off)
}

// claim adds a region. It refuses one outside the file, except that the last cluster
// of the file may be cut off.
func (q *qcow2) claim(name string, off, length uint64) error {
	end := alignUp(uint64(q.source.size), q.cluster)
	if off == 0 || off >= uint64(q.source.size) || length > end-off {
		return damagedf("%s is outside the file: %d bytes at %#x", name, length, off)
	}
	q.used.add(name, off, length)
	return nil
}

// checkTables checks the L1 and the refcount table, and that no two parts of the
// file overlap.
func (q *qcow2) checkTables() error {
	be := binary.BigEndian
	size := uint64(q.VirtualBytes)
	entries, l1 := uint64(q.l1Entries), q.l1
	counts, countBytes := q.refcounts, q.refcountBytes
	perL2 := q.cluster / 8
	if q.features&incompatL2Ext != 0 {
		perL2 = q.cluster / 16
	}
	switch {
	case entries*8 > maxTableBytes || l1%q.cluster != 0:
		return damagedf("a qcow2 L1 table of %d entries at %#x is not allowed", entries, l1)
	case entries < ceilDiv(size, q.cluster*perL2):
		return damagedf("a qcow2 L1 table of %d entries is too small for %d bytes", entries, size)
	case countBytes == 0 || countBytes > maxTableBytes || counts%q.cluster != 0:
		return damagedf("a qcow2 refcount table of %d bytes at %#x is not allowed", countBytes, counts)
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
	err := q.table(l1, entries*8, 8, func(b []byte) error {
		return q.addBlock("an L2 table", be.Uint64(b)&offsetMask)
	})
	if err != nil {
		return err
	}
	err = q.table(counts, countBytes, 8, func(b []byte) error {
		return q.addBlock("a refcount block", be.Uint64(b)&refcountMask)
	})
	if err != nil {
		return err
	}
	return unique("qcow2 tables", q.blocks)
}

// addBlock checks the offset in an entry of a table, and notes it in q.blocks.
func (q *qcow2) addBlock(what string, off uint64) error {
	switch {
	case off == 0:
		return nil
	case off >= uint64(q.source.size):
		return damagedf("%s is outside the file: %#x", what, off)
	case off%q.cluster != 0:
		return damagedf("%s does not begin at a cluster: %#x", what, off)
	}
	if name := q.used.at(off, q.cluster); name != "" {
		return hostilef("%s overlaps %s", what, name)
	}
	q.blocks = append(q.blocks, off)
	return nil
}
