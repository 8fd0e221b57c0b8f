package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
)

// pageSize is the number of items in a page, the maximum of the API.
const pageSize = 1000

// maxItem is the maximum size of one item of a list in bytes.
const maxItem = 16 << 20

// An itemReader limits the bytes that are read for one item.
type itemReader struct {
	r    io.Reader
	left int
}

func (i *itemReader) Read(b []byte) (int, error) {
	n, err := i.r.Read(b)
	if i.left -= n; i.left < 0 {
		return 0, failf(exitFailed, "an item of the list is larger than %s", formatSize(maxItem))
	}
	return n, err
}

var nextLink = regexp.MustCompile(`<([^>]*)>; *rel="?next"?`)

// each calls visit for every item of a list, page by page, as they arrive. It holds one item
// in memory.
func each[T any](ctx context.Context, a *app, visit func(T, json.RawMessage) error) func(*http.Request, error) error {
	return func(r *http.Request, err error) error {
		for err == nil && r != nil {
			r, err = eachOfPage(ctx, a, r, visit)
		}
		return err
	}
}

// eachOfPage visits the items of one page, and returns the request for the next one, nil if
// there is none.
func eachOfPage[T any](ctx context.Context, a *app, r *http.Request, visit func(T, json.RawMessage) error) (*http.Request, error) {
	resp, err := a.stream(ctx, r, nil)
	if broken(err) && ctx.Err() == nil {
		resp, err = a.stream(ctx, r, nil)
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body := &itemReader{r: resp.Body, left: maxItem}
	d := json.NewDecoder(body)
	if token, err := d.Token(); err != nil || token != json.Delim('[') {
		return nil, cutOff(ctx, r, err)
	}
	for d.More() {
		body.left = maxItem
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, cutOff(ctx, r, err)
		}
		var item T
		if err := json.Unmarshal(raw, &item); err != nil {
			return nil, notAList(r)
		}
		if err := visit(item, raw); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, cutOff(ctx, r, err)
	}
	return nextPage(r, resp.Header.Get("Link"))
}

// cutOff returns the error for a list that ends early or is not one.
func cutOff(ctx context.Context, r *http.Request, err error) error {
	if err == nil || errors.As(err, new(*json.SyntaxError)) {
		return notAList(r)
	}
	return explain(ctx, err)
}

func notAList(r *http.Request) error {
	return failf(exitFailed, "the answer to %s %s is not the list that vmand sends", r.Method, r.URL.Path).
		hint("is this the address of a vmand?")
}

// nextPage returns the request for the page that a Link header names.
func nextPage(r *http.Request, link string) (*http.Request, error) {
	m := nextLink.FindStringSubmatch(link)
	if m == nil {
		return nil, nil
	}
	target, err := url.Parse(m[1])
	if err != nil || target.Query().Get("cursor") == "" || target.Query().Get("cursor") == r.URL.Query().Get("cursor") {
		return nil, failf(exitFailed, "the link to the next page of the list is not one of vmand: %s", printable(link))
	}
	next := r.Clone(r.Context())
	next.URL.RawQuery = target.RawQuery
	return next, nil
}

// all returns all items of a list, for lists that are short.
func all[T any](ctx context.Context, a *app) func(*http.Request, error) ([]T, error) {
	return func(r *http.Request, err error) ([]T, error) {
		var items []T
		err = each(ctx, a, func(item T, _ json.RawMessage) error {
			items = append(items, item)
			return nil
		})(r, err)
		return items, err
	}
}
