package image

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"

	"github.com/ulikunitz/xz/lzma"
)

// The container of the xz format ("The .xz File Format" 1.0.4). Package xz is not used
// for it: it allocates the dictionary that a block asks for, up to 4 GiB, and keeps a
// record of every block, however small.
const (
	xzMagic       = "\xfd7zXZ\x00"
	xzFooterMagic = "YZ"
	xzLZMA2       = 0x21

	// maxXZDict is the dictionary size of xz -9.
	maxXZDict = 64 << 20
	minXZDict = 4 << 10
	// A stream may have freeXZBlocks blocks, and one more for every 64 KiB it expands
	// to: each block costs the allocation of a dictionary.
	freeXZBlocks = 256
	xzBlockBytes = 64 << 10
)

var (
	errXZ       = errors.New("not valid xz")
	errXZDict   = errors.New("the dictionary is larger than 64 MiB")
	errXZBlocks = errors.New("too many small blocks")
	errXZSum    = errors.New("a block has a wrong checksum")
)

// xzReader expands an xz file of one or more streams.
type xzReader struct {
	in     *bufio.Reader
	read   int64       // bytes of in that were read in this stream
	crc    hash.Hash32 // of the header bytes since the last Reset
	flags  [2]byte     // of the stream
	open   bool        // a stream has begun and not ended
	check  hash.Hash   // of the block
	block  *lzma.Reader2
	begin  int64  // value of read at the begin of the block
	blocks uint64 // of this stream
	here   uint64 // bytes that this block expanded to
	whole  uint64 // bytes that the blocks of this stream expanded to
	total  uint64 // bytes that all streams expanded to
	count  uint64 // blocks of all streams
	err    error
}

func newXZReader(in *bufio.Reader) io.Reader { return &xzReader{in: in, crc: crc32.NewIEEE()} }

// Read implements [io.Reader].
func (x *xzReader) Read(p []byte) (int, error) {
	for x.err == nil && len(p) > 0 {
		if x.block == nil {
			x.err = x.next()
			continue
		}
		n, err := x.block.Read(p)
		x.check.Write(p[:n])
		x.here, x.total = x.here+uint64(n), x.total+uint64(n)
		switch {
		case err == io.EOF: // not errors.Is: an error of the input may wrap io.EOF
			x.err = x.endBlock()
		case err != nil:
			x.err = err
		}
		if n > 0 {
			return n, nil
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	return 0, x.err
}

// xzBody is the input of the decoder of a block. It counts the bytes.
type xzBody struct{ x *xzReader }

func (b xzBody) Read(p []byte) (int, error) {
	n, err := b.x.in.Read(p)
	b.x.read += int64(n)
	return n, err
}

// next opens the next block. It returns io.EOF after the last.
func (x *xzReader) next() error {
	if !x.open {
		if err := x.openStream(); err != nil {
			return err
		}
	}
	x.crc.Reset()
	x.begin = x.read
	size, err := x.byte()
	if err != nil {
		return err
	}
	if size == 0 {
		return x.endStream()
	}
	rest, err := x.bytes(int(size)*4 + 3)
	if err != nil {
		return err
	}
	return x.openBlock(append([]byte{size}, rest...))
}

// openStream reads the header of a stream, and the padding before it. It returns
// io.EOF at the end of the file.
func (x *xzReader) openStream() error {
	x.read, x.blocks, x.whole = 0, 0, 0
	for first := x.total == 0 && x.count == 0; ; {
		head, err := x.in.Peek(4)
		if len(head) == 0 && err == io.EOF && !first {
			return io.EOF
		}
		if err != nil {
			return noEOF(err)
		}
		if !bytes.Equal(head, make([]byte, 4)) || first {
			break
		}
		if _, err := x.in.Discard(4); err != nil {
			return err
		}
	}
	h, err := x.bytes(12)
	if err != nil {
		return err
	}
	sum := binary.LittleEndian.Uint32(h[8:])
	if string(h[:6]) != xzMagic || h[6] != 0 || crc32.ChecksumIEEE(h[6:8]) != sum {
		return errXZ
	}
	x.flags = [2]byte(h[6:8])
	switch h[7] {
	case 0x00:
		x.check = noCheck{}
	case 0x01:
		x.check = crc32.NewIEEE()
	case 0x04:
		x.check = crc64.New(crc64ECMA)
	case 0x0a:
		x.check = sha256.New()
	default:
		return errXZ
	}
	x.open = true
	return nil
}

var crc64ECMA = crc64.MakeTable(crc64.ECMA)

// openBlock reads the header of a block, which must have LZMA2 as its only filter.
func (x *xzReader) openBlock(h []byte) error {
	end := len(h) - 4
	if crc32.ChecksumIEEE(h[:end]) != binary.LittleEndian.Uint32(h[end:]) || h[1]&^0xc0 != 0 {
		return errXZ
	}
	r := bytes.NewReader(h[2:end])
	expands := uint64(maxXZDict)
	const hasSize, hasExpandedSize = 0x40, 0x80
	for _, flag := range []byte{hasSize, hasExpandedSize} {
		if h[1]&flag == 0 {
			continue
		}
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return errXZ
		}
		if flag == hasExpandedSize {
			expands = n
		}
	}
	filter := make([]byte, 3) // id, size of the properties, properties
	_, err := io.ReadFull(r, filter)
	if err != nil || filter[0] != xzLZMA2 || filter[1] != 1 || filter[2] > 40 {
		return errXZ
	}
	dict := uint64(2|filter[2]&1) << (filter[2]/2 + 11)
	if dict > maxXZDict {
		return errXZDict
	}
	if x.count++; x.count > freeXZBlocks+x.total/xzBlockBytes {
		return errXZBlocks
	}
	x.check.Reset()
	x.here = 0
	x.block, err = lzma.Reader2Config{DictCap: int(max(minXZDict, min(dict, expands)))}.NewReader2(xzBody{x})
	return err
}

// endBlock reads the padding and the checksum after the data of a block.
func (x *xzReader) endBlock() error {
	x.block = nil
	x.blocks, x.whole = x.blocks+1, x.whole+x.here
	pad, err := x.bytes(int(-(x.read - x.begin) & 3))
	if err != nil {
		return err
	}
	sum, err := x.bytes(x.check.Size())
	if err != nil {
		return err
	}
	want := x.check.Sum(nil)
	if x.check.Size() < sha256.Size { // CRCs are little-endian
		slices.Reverse(want)
	}
	if !isZero(pad) || !bytes.Equal(sum, want) {
		return errXZSum
	}
	return nil
}

// endStream reads the footer and the index of a stream. The index must have the number
// of blocks and their total size.
func (x *xzReader) endStream() error {
	records, err := x.uvarint()
	if err != nil {
		return err
	}
	var sum uint64
	for i := uint64(0); i < records && records == x.blocks; i++ {
		if _, err := x.uvarint(); err != nil {
			return err
		}
		n, err := x.uvarint()
		if err != nil {
			return err
		}
		sum += n
	}
	if records != x.blocks || sum != x.whole {
		return errXZ
	}
	pad, err := x.bytes(int(-(x.read - x.begin) & 3))
	if err != nil {
		return err
	}
	crc := x.crc.Sum32()
	size := x.read - x.begin + 4
	f, err := x.bytes(16)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if !isZero(pad) || le.Uint32(f) != crc || le.Uint32(f[4:]) != crc32.ChecksumIEEE(f[8:14]) ||
		int64(le.Uint32(f[8:])) != size/4-1 || [2]byte(f[12:14]) != x.flags || string(f[14:]) != xzFooterMagic {
		return errXZ
	}
	x.open = false
	return nil
}

// bytes reads n bytes, at most 1 KiB, and adds them to x.crc.
func (x *xzReader) bytes(n int) ([]byte, error) {
	p := make([]byte, n)
	k, err := io.ReadFull(x.in, p)
	x.read += int64(k)
	x.crc.Write(p[:k])
	return p, noEOF(err)
}

func (x *xzReader) byte() (byte, error) {
	p, err := x.bytes(1)
	return p[0], err
}

// ReadByte implements [io.ByteReader].
func (x *xzReader) ReadByte() (byte, error) { return x.byte() }

func (x *xzReader) uvarint() (uint64, error) { return binary.ReadUvarint(x) }

// noEOF returns io.ErrUnexpectedEOF for io.EOF: the file must not end here.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// noCheck is the hash of a stream without checksums.
type noCheck struct{}

func (noCheck) Write(p []byte) (int, error) { return len(p), nil }
func (noCheck) Sum(b []byte) []byte         { return b }
func (noCheck) Reset()                      {}
func (noCheck) Size() int                   { return 0 }
func (noCheck) BlockSize() int              { return 1 }
