package image

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"strings"
)

// checksums hashes the transferred bytes with the algorithms of the expected sums.
type checksums struct {
	want    Sum
	h256    hash.Hash // nil if not needed
	h512    hash.Hash
	same256 hash.Hash // if set, has the same bytes, so that h256 is not needed
}

// tee returns a reader of the bytes of r that hashes them.
func (s *checksums) tee(r io.Reader) io.Reader {
	if s.want.SHA256 != "" && s.same256 == nil {
		s.h256 = sha256.New()
		r = io.TeeReader(r, s.h256)
	}
	if s.want.SHA512 != "" {
		s.h512 = sha512.New()
		r = io.TeeReader(r, s.h512)
	}
	return r
}

func (s *checksums) check() error {
	if s.same256 != nil {
		s.h256 = s.same256
	}
	if err := compare("sha256", s.want.SHA256, s.h256); err != nil {
		return err
	}
	return compare("sha512", s.want.SHA512, s.h512)
}

// compare returns a [*Mismatch] error if the sum of h is not want. An empty want
// accepts any sum, and h may then be nil.
func compare(algorithm, want string, h hash.Hash) error {
	if want == "" {
		return nil
	}
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, want) {
		return &Mismatch{Algorithm: algorithm, Want: want, Got: got}
	}
	return nil
}

// hashFile writes the bytes of f, from an offset to the end, to the writers.
func hashFile(ctx context.Context, f *os.File, from int64, into ...io.Writer) error {
	in := &input{ctx: ctx, r: io.NewSectionReader(f, from, maxFile), max: maxFile}
	_, err := io.CopyBuffer(io.MultiWriter(into...), in, make([]byte, copyBufferBytes))
	return unwrapInput(err)
}
