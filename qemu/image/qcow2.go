package image

import (
	"encoding/binary"
	"io"
)

// The qcow2 format: docs/interop/qcow2.txt in QEMU's source.
const (
	qcow2Magic = "QFI\xfb"

	v2HeaderBytes  = 72
	v3HeaderBytes  = 104
	v3CompressByte = v3HeaderBytes // the header of 112 bytes has the compression type here
	minClusterBits = 9
	maxClusterBits = 21
	maxNameBytes   = 1023 // of a backing file, a snapshot or a bitmap

	incompatDirty   = 1 << 0
	incompatCorrupt = 1 << 1
	incompatData    = 1 << 2
	incompatComp    = 1 << 3
	incompatL2Ext   = 1 << 4
	incompatKnown   = incompatDirty | incompatCorrupt | incompatData | incompatComp | incompatL2Ext
	autoclearRaw    = 1 << 1

	extEnd     = 0
	extData    = 0x44415441
	extFormat  = 0xe2792aca
	extCrypt   = 0x0537be77
	extBitmaps = 0x23852875
)

// Qcow2Header is the header of a qcow2 image with its extensions.
type Qcow2Header struct {
	VirtualBytes  int64  // size of the disk, above 0 and at most 16 TiB
	Backing       string // name of the backing file, empty if there is none
	BackingFormat string // empty if the header does not name it
	ExternalData  bool   // the guest's data is in another file
	Encrypted     bool

	// The fields that only inspectQcow2 checks.
	version       uint32
	backingOffset uint64
	backingBytes  uint32
	cluster       uint64 // bytes
	l1Entries     uint32
	l1            uint64
	refcounts     uint64
	refcountBytes uint64
	snapshots     uint64
	snapshotCount uint32
	features      uint64 // incompatible features
	autoclear     uint64
	refcountOrder uint32
	bytes         uint64 // length of the header
	compression   byte   // 0 if the header is too short to say
	extensions    []extension
}

// An extension is a header extension: length bytes of data at off.
type extension struct {
	kind        uint32
	off, length uint64
}

// ReadQcow2Header reads the header of a qcow2 image of size bytes, which need not be
// trusted. It checks that the header is well formed and follows no name in it. Unlike
// [Inspect], it does not read the tables of the image and accepts all known features.
// It returns an [*Rejected] error if the image is not qcow2 or its header is malformed,
// and an error of r unchanged.
func ReadQcow2Header(r io.ReaderAt, size int64) (Qcow2Header, error) {
	return readQcow2Header(newSource(r, size))
}

func readQcow2Header(s *source) (Qcow2Header, error) {
	b, err := s.read("the qcow2 header", 0, v2HeaderBytes)
	if err != nil {
		return Qcow2Header{}, err
	}
	if string(b[:len(qcow2Magic)]) != qcow2Magic {
		return Qcow2Header{}, damagedf("the file is not a qcow2 image")
	}
	var h Qcow2Header
	if err := h.parseV2(b); err != nil {
		return Qcow2Header{}, err
	}
	if h.version == 3 {
		if b, err = s.read("the qcow2 header", 0, v3HeaderBytes+8); err != nil {
			return Qcow2Header{}, err
		}
		if err := h.parseV3(b); err != nil {
			return Qcow2Header{}, err
		}
	}
	if err := h.readBacking(s); err != nil {
		return Qcow2Header{}, err
	}
	if err := h.readExtensions(s); err != nil {
		return Qcow2Header{}, err
	}
	return h, nil
}

// parseV2 parses the fields that both versions of the format have.
func (h *Qcow2Header) parseV2(b []byte) error {
	be := binary.BigEndian
	h.version = be.Uint32(b[4:])
	clusterBits := be.Uint32(b[20:])
	size := be.Uint64(b[24:])
	switch {
	case h.version != 2 && h.version != 3:
		return unsupportedf("qcow2 version %d is not supported", h.version)
	case clusterBits < minClusterBits || clusterBits > maxClusterBits:
		return unsupportedf("qcow2 clusters of 2^%d bytes are not supported", clusterBits)
	case size == 0 || size > maxVirtual:
		return unsupportedf("a qcow2 disk of %d bytes is not supported: it must have at least 1 and at most %d",
			size, int64(maxVirtual))
	}
	h.VirtualBytes = int64(size)
	h.backingOffset = be.Uint64(b[8:])
	h.backingBytes = be.Uint32(b[16:])
	h.cluster = 1 << clusterBits
	h.Encrypted = be.Uint32(b[32:]) != 0
	h.l1Entries = be.Uint32(b[36:])
	h.l1 = be.Uint64(b[40:])
	h.refcounts = be.Uint64(b[48:])
	h.refcountBytes = uint64(be.Uint32(b[56:])) * h.cluster
	h.snapshotCount = be.Uint32(b[60:])
	h.snapshots = be.Uint64(b[64:])
	h.bytes = v2HeaderBytes
	return nil
}

// parseV3 parses the fields that version 3 adds.
func (h *Qcow2Header) parseV3(b []byte) error {
	be := binary.BigEndian
	h.features = be.Uint64(b[72:])
	h.autoclear = be.Uint64(b[88:])
	h.refcountOrder = be.Uint32(b[96:])
	h.bytes = uint64(be.Uint32(b[100:]))
	switch {
	case h.bytes < v3HeaderBytes || h.bytes > h.cluster:
		return damagedf("a qcow2 header of %d bytes is not allowed", h.bytes)
	case h.features&^uint64(incompatKnown) != 0:
		return unsupportedf("unknown qcow2 features %#x", h.features)
	}
	h.ExternalData = h.features&incompatData != 0
	if h.bytes >= v3HeaderBytes+8 {
		h.compression = b[v3CompressByte]
	}
	return nil
}

// readBacking reads the name of the backing file. Like QEMU, it accepts a name in
// the first cluster only.
func (h *Qcow2Header) readBacking(s *source) error {
	if h.backingOffset == 0 {
		return nil
	}
	if h.backingBytes == 0 || h.backingBytes > maxNameBytes ||
		h.backingOffset > h.cluster || uint64(h.backingBytes) > h.cluster-h.backingOffset {
		return hostilef("the name of a qcow2 backing file cannot have %d bytes at %#x",
			h.backingBytes, h.backingOffset)
	}
	name, err := s.read("the name of the backing file", h.backingOffset, int(h.backingBytes))
	if err != nil {
		return err
	}
	h.Backing = string(name)
	return nil
}

// readExtensions reads the header extensions. They are in the first cluster: QEMU
// refuses an image with an extension that goes beyond it.
func (h *Qcow2Header) readExtensions(s *source) error {
	be := binary.BigEndian
	for off := h.bytes; off+8 <= h.cluster && off+8 <= uint64(s.size); {
		b, err := s.read("a header extension", off, 8)
		if err != nil {
			return err
		}
		off += 8
		ext := extension{
			kind:   be.Uint32(b),
			off:    off,
			length: uint64(be.Uint32(b[4:])),
		}
		if ext.kind == extEnd {
			return nil
		}
		if ext.length > h.cluster-off {
			return damagedf("a qcow2 header extension of %d bytes is not allowed", ext.length)
		}
		switch ext.kind {
		case extData:
			h.ExternalData = true
		case extCrypt:
			h.Encrypted = true
		case extFormat:
			format, err := s.read("the format of the backing file", off, int(min(ext.length, maxNameBytes)))
			if err != nil {
				return err
			}
			h.BackingFormat = string(format)
		}
		h.extensions = append(h.extensions, ext)
		off += alignUp(ext.length, 8)
	}
	return nil
}
