package image

import (
	"cmp"
	"errors"
	"io"
	"slices"
)

const (
	chunkBytes = 64 << 10
	maxReads   = 4096
)

// source reads an image and limits the number of reads.
type source struct {
	r     io.ReaderAt
	size  int64
	reads int
	buf   []byte // of chunkBytes, for table; allocated by its first call
}

func newSource(r io.ReaderAt, size int64) *source { return &source{r: r, size: size} }

// fill reads the bytes of the image at off. Bytes beyond the end of the image are zero.
func (s *source) fill(p []byte, off uint64) error {
	clear(p)
	if off >= uint64(s.size) {
		return nil
	}
	if s.reads++; s.reads > maxReads {
		return hostilef("the tables of the image are too large to inspect")
	}
	want := int(min(uint64(len(p)), uint64(s.size)-off))
	n, err := s.r.ReadAt(p[:want], int64(off))
	switch {
	case n == want:
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF // the reader is shorter than size
	default:
		return err
	}
}

// read returns n bytes at off. It refuses the image if they are not all in it; what
// names them in the error.
func (s *source) read(what string, off uint64, n int) ([]byte, error) {
	if !s.contains(off, uint64(n)) {
		return nil, damagedf("%s is outside the file", what)
	}
	p := make([]byte, n)
	return p, s.fill(p, off)
}

// contains reports whether length bytes at off are in the image.
func (s *source) contains(off, length uint64) bool {
	return off <= uint64(s.size) && length <= uint64(s.size)-off
}

// table calls each for every entry of a table of length bytes at off. The entry is
// valid only during the call.
func (s *source) table(off, length uint64, entry int, each func(b []byte) error) error {
	if s.buf == nil {
		s.buf = make([]byte, chunkBytes)
	}
	for length >= uint64(entry) {
		p := s.buf[:min(length, chunkBytes)]
		p = p[:len(p)/entry*entry]
		if err := s.fill(p, off); err != nil {
			return err
		}
		for b := p; len(b) > 0; b = b[entry:] {
			if err := each(b[:entry]); err != nil {
				return err
			}
		}
		off, length = off+uint64(len(p)), length-uint64(len(p))
	}
	return nil
}

// A region is a part of the file that is used for one thing.
type region struct {
	name       string
	start, end uint64
}

func (r region) length() uint64 { return r.end - r.start }

// regions are the parts of the file that are known to be used.
type regions []region

func (r *regions) add(name string, start, length uint64) {
	*r = append(*r, region{name, start, start + length})
}

// check sorts the regions and refuses the image if two overlap.
func (r regions) check() error {
	slices.SortFunc(r, func(a, b region) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(r); i++ {
		if r[i].start < r[i-1].end {
			return hostilef("%s overlaps %s", r[i].name, r[i-1].name)
		}
	}
	return nil
}

// at returns the name of a region that overlaps the block at start, or "". The regions
// must be sorted by check.
func (r regions) at(start, length uint64) string {
	i, _ := slices.BinarySearchFunc(r, start, func(e region, start uint64) int {
		if e.end <= start {
			return -1
		}
		return 1
	})
	if i < len(r) && r[i].start < start+length {
		return r[i].name
	}
	return ""
}

// unique refuses the image if two entries of tables lead to the same offset.
func unique(what string, offsets []uint64) error {
	slices.Sort(offsets)
	for i := 1; i < len(offsets); i++ {
		if offsets[i] == offsets[i-1] {
			return hostilef("two %s are in the same place: %#x", what, offsets[i])
		}
	}
	return nil
}

// bitset has one bit per block. For a file of maxFile bytes in blocks of 1 MiB it
// takes 2.2 MiB.
type bitset []uint64

func newBitset(n uint64) bitset { return make(bitset, n/64+1) }

// testAndSet sets a bit and reports whether it was set before, or is out of range.
func (b bitset) testAndSet(i uint64) bool {
	if i/64 >= uint64(len(b)) {
		return true
	}
	was := b[i/64]>>(i%64)&1 == 1
	b[i/64] |= 1 << (i % 64)
	return was
}

func ceilDiv(a, b uint64) uint64 { return a/b + min(a%b, 1) }

func alignUp(a, b uint64) uint64 { return ceilDiv(a, b) * b }
