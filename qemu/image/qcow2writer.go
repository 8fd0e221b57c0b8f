package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The layout of the images that WriteQcow2 makes: clusters of 64 KiB; the header, the
// refcount table, the only refcount block, the L1 table. No cluster of the guest is
// allocated, so the L1 table is a hole.
const (
	newClusterBits  = 16
	newCluster      = 1 << newClusterBits
	newRefTableAt   = 1 * newCluster
	newRefBlockAt   = 2 * newCluster
	newL1At         = 3 * newCluster
	newHeaderBytes  = v3HeaderBytes + 8
	newRefcountBits = 4 // as a power of two
	bytesPerL1      = newCluster / 8 * newCluster
)

// WriteQcow2 makes the empty file w a qcow2 image without data, for a disk of size
// bytes. With the name of a backing file, the image is an overlay of that file,
// which is of the format backingFormat.
func WriteQcow2(w io.WriterAt, size int64, backing, backingFormat string) error {
	header, err := qcow2Head(size, backing, backingFormat)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	clusters := newL1At/newCluster + ceilDiv(l1Entries(size)*8, newCluster)
	refcounts := make([]byte, 2*clusters)
	for i := range clusters {
		be.PutUint16(refcounts[2*i:], 1)
	}
	end := int64(clusters) * newCluster
	for _, part := range []struct {
		at int64
		b  []byte
	}{
		{end - 1, []byte{0}}, // the file ends with a whole cluster
		{newRefTableAt, be.AppendUint64(nil, newRefBlockAt)},
		{newRefBlockAt, refcounts},
		{0, header},
	} {
		if _, err := w.WriteAt(part.b, part.at); err != nil {
			return err
		}
	}
	return nil
}

// qcow2Head returns the header with its extensions and the name of the backing file.
func qcow2Head(size int64, backing, backingFormat string) ([]byte, error) {
	if len(backing) > maxNameBytes {
		return nil, fmt.Errorf("the path of the backing file has %d bytes, qcow2 allows at most %d",
			len(backing), maxNameBytes)
	}
	if (backing == "") != (backingFormat == "") {
		return nil, errors.New("a backing file needs a format, and a format a backing file")
	}
	be := binary.BigEndian
	h := make([]byte, newHeaderBytes, newCluster)
	copy(h, qcow2Magic)
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], newClusterBits)
	be.PutUint64(h[24:], uint64(size))
	be.PutUint32(h[36:], uint32(l1Entries(size)))
	be.PutUint64(h[40:], newL1At)
	be.PutUint64(h[48:], newRefTableAt)
	be.PutUint32(h[56:], 1) // clusters of the refcount table
	be.PutUint32(h[96:], newRefcountBits)
	be.PutUint32(h[100:], newHeaderBytes)
	if backing != "" {
		h = be.AppendUint32(h, extFormat)
		h = be.AppendUint32(h, uint32(len(backingFormat)))
		h = append(h, backingFormat...)
		h = append(h, make([]byte, -len(h)&7)...)
	}
	h = append(h, make([]byte, 8)...) // end of the extensions
	if backing != "" {
		be.PutUint64(h[8:], uint64(len(h)))
		be.PutUint32(h[16:], uint32(len(backing)))
		h = append(h, backing...)
	}
	return h, nil
}

func l1Entries(size int64) uint64 { return ceilDiv(uint64(size), bytesPerL1) }
