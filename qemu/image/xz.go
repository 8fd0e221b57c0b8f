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

	"github.com/ulikunitz/xz/lzma"
)

// The container of the xz format ("The .xz File Format" 1.0.4). It is read here
// and not by package xz, which makes room for as large a dictionary as a block
// asks for, up to 4 GiB, and keeps a record of every block, however small.
const (
	xzMagic       = "\xfd7zXZ\x00"
	xzFooterMagic = "YZ"
	xzLZMA2       = 0x21

	// maxXZDict is the dictionary of xz -9.
	maxXZDict = 64 << 20
	minXZDict = 4 << 10
	// A stream may have this many blocks, and one more for every 64 KiB it
	// expands to: each costs a dictionary.
	freeXZBlocks = 256
	xzBlockBytes = 64 << 10
)

var (
	errXZ     = errors.New("it is not valid xz")
	errXZDict = errors.New("its dictionary is larger than 64 MiB")
)

// xzReader expands an xz file of one or more streams.
type xzReader struct {
	in     *bufio.Reader
	read   int64 // of in, in this stream
	crc    hash.Hash32
	flags  [2]byte
	open   bool // in a stream
	check  hash.Hash
	block  *lzma.Reader2
	begin  int64 // of the block, in the terms of read
	blocks uint64
	here   uint64 // bytes this block has expanded to
	whole  uint64 // bytes of all blocks of this stream
	total  uint64 // of all streams
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
		case err == io.EOF: // itself: an error of what brings the file may have one in it
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

// xzBody is the file as the decoder of a block sees it.
type xzBody struct{ x *xzReader }

func (b xzBody) Read(p []byte) (int, error) {
	n, err := b.x.in.Read(p)
	b.x.read += int64(n)
	return n, err
}

// next goes to the next block; io.EOF after the last.
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
		if _, err := x.in.Discard(4); err != nil { // padding
			return err
		}
	}
	h, err := x.bytes(12)
	if err != nil {
		return err
	}
	if string(h[:6]) != xzMagic || h[6] != 0 || crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
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

// openBlock reads the header of a block: one filter, LZMA2.
func (x *xzReader) openBlock(h []byte) error {
	end := len(h) - 4
	if crc32.ChecksumIEEE(h[:end]) != binary.LittleEndian.Uint32(h[end:]) || h[1]&^0xc0 != 0 {
		return errXZ
	}
	r := bytes.NewReader(h[2:end])
	expands := uint64(maxXZDict)
	for _, has := range []byte{0x40, 0x80} { // how long it is, how long it gets
		if h[1]&has != 0 {
			n, err := binary.ReadUvarint(r)
			if err != nil {
				return errXZ
			}
			if has == 0x80 {
				expands = n
			}
		}
	}
	filter := make([]byte, 3) // its number, the size of its properties, those
	if _, err := io.ReadFull(r, filter); err != nil || filter[0] != xzLZMA2 || filter[1] != 1 || filter[2] > 40 {
		return errXZ
	}
	dict := uint64(2|filter[2]&1) << (filter[2]/2 + 11)
	if dict > maxXZDict {
		return errXZDict
	}
	if x.count++; x.count > freeXZBlocks+x.total/xzBlockBytes {
		return errors.New("it has too many small blocks")
	}
	x.check.Reset()
	x.here = 0
	var err error
	x.block, err = lzma.Reader2Config{DictCap: int(max(minXZDict, min(dict, expands)))}.NewReader2(xzBody{x})
	return err
}

// endBlock reads what is after the data of a block.
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
	if x.check.Size() < sha256.Size { // the shorter ones are little-endian
		for i, j := 0, len(want)-1; i < j; i, j = i+1, j-1 {
			want[i], want[j] = want[j], want[i]
		}
	}
	if !zero(pad) || !bytes.Equal(sum, want) {
		return errors.New("a block has a wrong checksum")
	}
	return nil
}

// endStream reads the index, which must count what there was, and the footer.
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
	if !zero(pad) || le.Uint32(f) != crc || le.Uint32(f[4:]) != crc32.ChecksumIEEE(f[8:14]) ||
		int64(le.Uint32(f[8:])) != size/4-1 || [2]byte(f[12:14]) != x.flags || string(f[14:]) != xzFooterMagic {
		return errXZ
	}
	x.open = false
	return nil
}

// bytes reads n bytes, at most 1 KiB, for a checksum too.
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

// noEOF is for where a file must not end.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// noCheck stands for no checksum.
type noCheck struct{}

func (noCheck) Write(p []byte) (int, error) { return len(p), nil }
func (noCheck) Sum(b []byte) []byte         { return b }
func (noCheck) Reset()                      {}
func (noCheck) Size() int                   { return 0 }
func (noCheck) BlockSize() int              { return 1 }
