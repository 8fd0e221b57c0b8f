package vm

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
)

// gunzip returns data decompressed. It fails if that is more than limit bytes, and never keeps
// more than that in memory.
func gunzip(data []byte, limit int) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("is not valid gzip data: %v", err)
	}
	expanded, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("is not valid gzip data: %v", err)
	case len(expanded) > limit:
		return nil, fmt.Errorf("expands to more than %d KiB", limit>>10)
	}
	return expanded, nil
}
