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

// source reads an image within bounds.
type source struct {
	r     io.ReaderAt
	size  int64
	reads int
	buf   []byte // of chunkBytes, for table; made by its first call
}

func newSource(r io.ReaderAt, size int64) *source { return &source{r: r, size: size} }

// fill reads the bytes of the image at off; those past its end are zeros.
func (s *source) fill(p []byte, off uint64) error {
	clear(p)
	if off >= uint64(s.size) {
		return nil
	}
	if s.reads++; s.reads > maxReads {
		return unsafef("its tables are too large to look at")
	}
	want := int(min(uint64(len(p)), uint64(s.size)-off))
	n, err := s.r.ReadAt(p[:want], int64(off))
	switch {
	case n == want:
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF // it is shorter than was said
	default:
		return err
	}
}

// read returns n bytes at off, all of which must be in the image.
func (s *source) read(what string, off uint64, n int) ([]byte, error) {
	if !s.has(off, uint64(n)) {
		return nil, unsafef("%s is outside the file", what)
	}
	p := make([]byte, n)
	return p, s.fill(p, off)
}

// has reports whether length bytes at off are in the image.
func (s *source) has(off, length uint64) bool {
	return off <= uint64(s.size) && length <= uint64(s.size)-off
}

// table calls each for every entry of a table of so many bytes at off. The entry
// is valid during the call.
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

// A region is a part of the file that has one use.
type region struct {
	name       string
	start, end uint64
}

type regions []region

func (r *regions) add(name string, start, length uint64) {
	*r = append(*r, region{name, start, start + length})
}

// check sorts the regions and refuses two that overlap.
func (r regions) check() error {
	slices.SortFunc(r, func(a, b region) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(r); i++ {
		if r[i].start < r[i-1].end {
			return unsafef("%s overlaps %s", r[i].name, r[i-1].name)
		}
	}
	return nil
}

// at returns the name of the region, of those that check has sorted, that a block
// at start overlaps, or "".
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

// unique refuses a block that two entries of tables lead to.
func unique(what string, offsets []uint64) error {
	slices.Sort(offsets)
	for i := 1; i < len(offsets); i++ {
		if offsets[i] == offsets[i-1] {
			return unsafef("two %s are in one place, %#x", what, offsets[i])
		}
	}
	return nil
}

// bitset has a bit per block of a file of at most maxFile in blocks of 1 MiB, so
// at most 2.2 MiB.
type bitset []uint64

func newBitset(n uint64) bitset { return make(bitset, n/64+1) }

// take sets a bit and reports whether it was set, or is beyond the last.
func (b bitset) take(i uint64) bool {
	if i/64 >= uint64(len(b)) {
		return true
	}
	was := b[i/64]>>(i%64)&1 == 1
	b[i/64] |= 1 << (i % 64)
	return was
}

func ceilDiv(a, b uint64) uint64 { return a/b + min(a%b, 1) }

func alignUp(a, b uint64) uint64 { return ceilDiv(a, b) * b }
