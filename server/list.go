package server

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/url"
	"strconv"

	"vmand/openapi"
	"vmand/vm"
)

const (
	defaultLimit = 100
	wholePage    = 500      // items that are read at a time for a list without a limit
	flushAt      = 32 << 10 // bytes that are sent at a time
	// taggedBytes is the size above which a list is sent while it is encoded, without an
	// entity tag. 800 VMs have it.
	taggedBytes = 1 << 20
)

// A list is the answer with a collection. A list of more than wholePage items is read
// and sent in parts, and never held in memory as a whole. A smaller one has an entity tag.
type list[T any] struct {
	ctx       context.Context // of the request
	read      func(context.Context, vm.Page) ([]T, error)
	seq       func(*T) int64
	api       func(*T) any // the representation of an item
	page      []T          // the first
	more      bool         // there are more pages to send
	link      string
	noneMatch *string // If-None-Match of the request
}

// A listTagger is an item of a list with an entity tag of its own. Those of other items
// follow from their bytes.
type listTagger interface{ addTag(h *maphash.Hash) }

// tagSeed makes entity tags of lists. After a restart of vmand they are others.
var tagSeed = maphash.MakeSeed()

// newList returns the list of a collection. It reads the first page, so that an error
// can be answered with a problem. path and filter are the ones of the request.
func newList[T any](ctx context.Context, path string, filter url.Values, limit *openapi.Limit, cursor *openapi.Cursor,
	noneMatch *string, read func(context.Context, vm.Page) ([]T, error), seq func(*T) int64, api func(*T) any) (list[T], error) {
	l := list[T]{ctx: ctx, read: read, seq: seq, api: api, noneMatch: noneMatch}
	var err error
	if limit == nil && cursor == nil {
		l.page, err = read(ctx, vm.Page{Limit: wholePage})
		l.more = len(l.page) == wholePage
		return l, err
	}
	page := vm.Page{Limit: defaultLimit}
	if limit != nil {
		page.Limit = *limit
	}
	if cursor != nil {
		if page.After, err = parseCursor(*cursor); err != nil {
			return l, err
		}
	}
	n := page.Limit
	page.Limit++ // one more item shows whether there is a next page
	if l.page, err = read(ctx, page); err != nil {
		return l, err
	}
	if len(l.page) > n {
		l.page = l.page[:n]
		filter.Set("limit", strconv.Itoa(n))
		filter.Set("cursor", formatCursor(seq(&l.page[n-1])))
		l.link = fmt.Sprintf(`<%s?%s>; rel="next"`, path, filter.Encode())
	}
	return l, nil
}

// Respond implements [openapi.Response]. An error after the first bytes makes the
// middleware abort the connection, so that a part never looks like the whole.
func (l list[T]) Respond(w http.ResponseWriter) error {
	h := w.Header()
	h.Set("Content-Type", jsonType)
	if l.link != "" {
		h.Set("Link", l.link)
	}
	e := getEncoder()
	defer e.free()
	var tag maphash.Hash
	tag.SetSeed(tagSeed)
	_, _ = tag.WriteString(l.link) // never fails for a hash
	tagged := !l.more
	e.buf.WriteByte('[')
	for first := true; ; {
		for i := range l.page {
			if !first {
				e.buf.WriteByte(',')
			}
			first = false
			begin := e.buf.Len()
			item := l.api(&l.page[i])
			if err := e.encode(item); err != nil {
				return err
			}
			if tagged {
				addTag(&tag, item, e.buf.Bytes()[begin:])
				tagged = e.buf.Len() < taggedBytes
			}
			if !tagged && e.buf.Len() >= flushAt {
				if err := flush(w, e); err != nil {
					return err
				}
			}
		}
		if !l.more {
			break
		}
		var err error
		l.page, err = l.read(l.ctx, vm.Page{After: l.seq(&l.page[len(l.page)-1]), Limit: wholePage})
		if err != nil {
			return err
		}
		l.more = len(l.page) == wholePage
	}
	e.buf.WriteString("]\n")
	if tagged {
		etag := fmt.Sprintf(`W/"%016x"`, tag.Sum64())
		if same := resource(etag, l.noneMatch, func() any { return nil }); same.status == http.StatusNotModified {
			h.Del("Content-Type")
			return same.Respond(w)
		}
		h.Set("Etag", etag)
		h.Set("Content-Length", strconv.Itoa(e.buf.Len()))
	}
	return flush(w, e)
}

// addTag adds an item to the entity tag of a list.
func addTag(tag *maphash.Hash, item any, encoded []byte) {
	if t, ok := item.(listTagger); ok {
		t.addTag(tag)
		return
	}
	_, _ = tag.Write(encoded) // never fails for a hash
}

// flush sends the bytes in e. A client that does not read is disconnected.
func flush(w http.ResponseWriter, e *encoder) error {
	for e.buf.Len() > 0 {
		limitSending(w)
		if _, err := w.Write(e.buf.Next(flushAt)); err != nil {
			return err
		}
	}
	e.buf.Reset()
	return nil
}

// cursorVersion is the first byte of a cursor.
const cursorVersion = 1

// formatCursor returns the cursor of the page after the entry numbered seq.
func formatCursor(seq int64) string {
	b := binary.AppendUvarint([]byte{cursorVersion}, uint64(seq))
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseCursor returns seq of formatCursor.
func parseCursor(s string) (seq int64, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil && len(b) > 1 {
		n, _ := binary.Uvarint(b[1:])
		if seq = int64(n); seq >= 0 && formatCursor(seq) == s { // only the spelling of formatCursor
			return seq, nil
		}
	}
	return 0, invalid(vm.FieldFault{Field: "cursor", Detail: "is not a cursor from a Link header"})
}

// query returns the pairs with a value, for the link to the next page.
func query(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

// value returns *p, or the zero value if p is nil.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
