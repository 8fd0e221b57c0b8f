package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

// Images imports, uploads, reads and deletes images.
type Images interface {
	Create(ctx context.Context, n vm.NewImage) (vm.Image, vm.Operation, error)
	Upload(ctx context.Context, n vm.NewImage, r io.Reader, more bool) (vm.Image, vm.Operation, error)
	ContinueUpload(ctx context.Context, name string, offset int64, r io.Reader, more bool) (vm.Image, vm.Operation, error)
	Update(ctx context.Context, name string, e vm.ImageEdits, match vm.Match) (vm.Image, error)
	Delete(ctx context.Context, name string, match vm.Match, force bool) error
	Open(ctx context.Context, name string) (vm.Image, io.ReadSeekCloser, error)
}

// CreateImage implements [openapi.StrictServerInterface].
func (s *Server) CreateImage(ctx context.Context, r openapi.CreateImageRequestObject) (openapi.Response, error) {
	if r.JSONBody == nil {
		return s.uploadImage(ctx, r)
	}
	wait, err := parseWait(value(r.Params.Prefer))
	if err != nil {
		return nil, err
	}
	if err := checkImport(r.JSONBody, &r.Params); err != nil {
		return nil, err
	}
	b := r.JSONBody
	i, o, err := s.Images.Create(ctx, vm.NewImage{
		Name:        b.Name,
		URL:         value(b.URL),
		FromDisk:    value(b.FromDisk),
		Sum:         vm.ImageSum{SHA256: value(b.SHA256), SHA512: value(b.SHA512)},
		Format:      vm.ImageFormat(value(b.Format)),
		Disk:        value(b.Disk),
		Description: value(b.Description),
		Labels:      value(b.Labels),
	})
	if err != nil {
		return nil, err
	}
	return s.held(ctx, imageAnswer(&i), o, hold{wait: wait})
}

// checkImport returns the faults of a request with a JSON body: parameters that are
// only for uploads, and combinations of properties that are not allowed.
func checkImport(b *openapi.CreateImage, p *openapi.CreateImageParams) error {
	var faults []vm.FieldFault
	for _, parameter := range []struct {
		name  string
		given bool
	}{{"name", p.Name != nil}, {"sha256", p.SHA256 != nil}, {"sha512", p.SHA512 != nil}, {"format", p.Format != nil},
		{"disk", p.Disk != nil},
		{"description", p.Description != nil}, {"more", p.More != nil}} {
		if parameter.given {
			faults = append(faults, vm.FieldFault{
				Field:  parameter.name,
				Detail: "is only allowed with a body of type application/octet-stream",
			})
		}
	}
	switch {
	case b.URL == nil && b.FromDisk == nil:
		faults = append(faults, vm.FieldFault{
			Field:  "/url",
			Detail: "is missing: url or from_disk is required",
		})
	case b.URL != nil && b.FromDisk != nil:
		faults = append(faults, vm.FieldFault{Field: "/from_disk", Detail: "must not be given together with url"})
	case b.FromDisk != nil && (b.SHA256 != nil || b.SHA512 != nil || b.Format != nil || b.Disk != nil):
		faults = append(faults, vm.FieldFault{
			Field:  "/from_disk",
			Detail: "must not be given together with sha256, sha512, format or disk",
		})
	}
	if len(faults) > 0 {
		return invalid(faults...)
	}
	return nil
}

// uploadImage creates an image from the body of the request.
func (s *Server) uploadImage(ctx context.Context, r openapi.CreateImageRequestObject) (answer, error) {
	p := &r.Params
	if p.Name == nil {
		return answer{}, invalid(vm.FieldFault{Field: "name", Detail: "is missing"})
	}
	i, o, err := s.Images.Upload(ctx, vm.NewImage{
		Name:        *p.Name,
		Sum:         vm.ImageSum{SHA256: value(p.SHA256), SHA512: value(p.SHA512)},
		Format:      vm.ImageFormat(value(p.Format)),
		Disk:        value(p.Disk),
		Description: value(p.Description),
	}, r.Body, value(p.More))
	if a, more, err := uploaded(&i, o, r.Body, err); more || err != nil {
		return a, inQuery(err)
	}
	return imageAnswer(&i).created("/images/" + i.Name), nil
}

// inQuery changes the JSON pointers in a fault into names of query parameters.
func inQuery(err error) error {
	var f *vm.Fault
	if !errors.As(err, &f) || len(f.Fields) == 0 {
		return err
	}
	renamed := *f
	renamed.Fields = make([]vm.FieldFault, len(f.Fields))
	for i, field := range f.Fields {
		renamed.Fields[i] = vm.FieldFault{Field: strings.TrimPrefix(field.Field, "/"), Detail: field.Detail}
	}
	renamed.Detail = strings.TrimPrefix(renamed.Detail, "/")
	return &renamed
}

// ContinueUpload implements [openapi.StrictServerInterface].
func (s *Server) ContinueUpload(ctx context.Context, r openapi.ContinueUploadRequestObject) (openapi.Response, error) {
	i, o, err := s.Images.ContinueUpload(ctx, r.Name, r.Params.Offset, r.Body, value(r.Params.More))
	a, _, err := uploaded(&i, o, r.Body, err)
	return a, err
}

// uploaded returns the answer to a request that uploads bytes of an image, and reports
// whether the upload is incomplete. The body must not be read afterwards.
func uploaded(i *vm.Image, o vm.Operation, body io.Reader, err error) (a answer, more bool, _ error) {
	if b, ok := body.(*streamedBody); ok && b.fault != nil {
		hinted := *b.fault // more specific than err
		hinted.Hint = "continue the upload at uploaded_bytes of the image"
		return a, false, &hinted
	}
	if err != nil {
		return a, false, err
	}
	a = imageAnswer(i)
	if i.State == vm.ImageUploading {
		a.status, a.location, a.etag = http.StatusAccepted, "/operations/"+o.ID, ""
		return a, true, nil
	}
	return a, false, nil
}

// ListImages implements [openapi.StrictServerInterface].
func (s *Server) ListImages(ctx context.Context, r openapi.ListImagesRequestObject) (openapi.Response, error) {
	label := value(r.Params.Label)
	f := vm.ImageFilter{State: vm.ImageState(value(r.Params.State)), SHA256: strings.ToLower(value(r.Params.SHA256))}
	f.Label, f.LabelValue, _ = strings.Cut(label, "=")
	return newList(ctx, "/images", query("state", string(f.State), "label", label, "sha256", f.SHA256),
		r.Params.Limit, r.Params.Cursor, r.Params.IfNoneMatch,
		func(ctx context.Context, p vm.Page) ([]vm.Image, error) { return s.reader.Images(ctx, f, p) },
		func(i *vm.Image) int64 { return i.Seq },
		func(i *vm.Image) any { return apiImage(i) })
}

// GetImage implements [openapi.StrictServerInterface].
func (s *Server) GetImage(ctx context.Context, r openapi.GetImageRequestObject) (openapi.Response, error) {
	i, err := s.reader.Image(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	return resource(etagOf(imageVersion(&i)), r.Params.IfNoneMatch, func() any { return apiImage(&i) }), nil
}

// UpdateImage implements [openapi.StrictServerInterface].
func (s *Server) UpdateImage(ctx context.Context, r openapi.UpdateImageRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	i, err := s.Images.Update(ctx, r.Name, vm.ImageEdits{
		Description: r.Body.Description,
		Labels:      (*map[string]string)(r.Body.Labels),
	}, match)
	if err != nil {
		return nil, err
	}
	return imageAnswer(&i), nil
}

// DeleteImage implements [openapi.StrictServerInterface].
func (s *Server) DeleteImage(ctx context.Context, r openapi.DeleteImageRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	if err := s.Images.Delete(ctx, r.Name, match, value(r.Params.Force)); err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// imageAnswer returns the answer 200 with an image.
func imageAnswer(i *vm.Image) answer {
	return answer{status: http.StatusOK, body: apiImage(i), etag: etagOf(imageVersion(i))}
}

func apiImage(i *vm.Image) *openapi.Image {
	out := &openapi.Image{
		Name:        i.Name,
		State:       openapi.ImageState(i.State),
		StateReason: optional(&i.Reason),
		Source:      i.Source,
		Description: i.Description,
		Labels:      i.Labels,
		CreatedAt:   openapi.Time{Time: i.CreatedAt},
		UpdatedAt:   openapi.Time{Time: i.UpdatedAt},
	}
	if out.Labels == nil {
		out.Labels = openapi.Labels{}
	}
	if i.State == vm.ImageUploading {
		out.UploadedBytes = &i.Uploaded
	}
	if i.SHA256 != "" {
		bytes := i.VirtualBytes()
		size := gib(bytes)
		out.Format = (*openapi.ImageFormat)(&i.Layout)
		out.SHA256 = &i.SHA256
		out.VirtualSize, out.VirtualSizeBytes = &size, &bytes
		out.SizeBytes = &i.Bytes
	}
	return out
}

// ReadImage implements [openapi.StrictServerInterface].
func (s *Server) ReadImage(ctx context.Context, r openapi.ReadImageRequestObject) (openapi.Response, error) {
	i, content, err := s.Images.Open(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	get := &http.Request{Method: http.MethodGet, Header: http.Header{}}
	if ctx.Value(headKey{}) != nil {
		get.Method = http.MethodHead // net/http would read the content and discard it
	}
	for name, v := range map[string]*string{
		"If-Range":      r.Params.IfRange,
		"If-None-Match": r.Params.IfNoneMatch,
		"Range":         r.Params.Range,
	} {
		if v != nil && (name != "Range" || oneRange.MatchString(*v)) {
			get.Header.Set(name, *v)
		}
	}
	return imageContent{image: i, content: content, request: get}, nil
}

// oneRange matches the Range headers that are supported: a single range of bytes.
// Others are ignored, which RFC 9110, 14.2 allows.
var oneRange = regexp.MustCompile(`^bytes=([0-9]{1,18}-[0-9]{0,18}|-0*[1-9][0-9]{0,17})$`)

// imageContent is the answer with the content of an image.
type imageContent struct {
	image   vm.Image
	content io.ReadSeekCloser
	request *http.Request // its method and its conditional headers
}

// Respond implements [openapi.Response].
func (c imageContent) Respond(w http.ResponseWriter) error {
	defer c.content.Close()
	h := w.Header()
	h.Set("Etag", `"`+c.image.SHA256+`"`)
	h.Set("Content-Type", bytesType)
	h.Set("Content-Disposition", `attachment; filename="`+c.image.Name+"."+string(c.image.Layout)+`"`)
	out := &contentWriter{ResponseWriter: w, content: c.content}
	http.ServeContent(out, c.request, "", time.Time{}, out)
	if out.refused == 0 {
		return out.err
	}
	h.Set("Cache-Control", "no-store") // net/http removed it
	for _, name := range []string{"Etag", "Content-Disposition", "Accept-Ranges"} {
		h.Del(name)
	}
	if out.refused != http.StatusRequestedRangeNotSatisfiable {
		return fmt.Errorf("read the content of image %s: status %d: %w", c.image.Name, out.refused, out.err)
	}
	h.Set("Content-Range", "bytes */"+strconv.FormatInt(c.image.Bytes, 10))
	return &vm.Fault{Code: codeRange, Detail: "the content has " + strconv.FormatInt(c.image.Bytes, 10) + " bytes"}
}

// A contentWriter stands between [http.ServeContent] and both the content and the
// client. It records errors, which that function does not return, and discards its
// text answers, which are not problems. A client that does not read is disconnected.
type contentWriter struct {
	http.ResponseWriter
	content io.ReadSeeker
	refused int   // status of a discarded answer, or 0
	err     error // of the content or the client
}

func (c *contentWriter) WriteHeader(status int) {
	if status >= http.StatusBadRequest {
		c.refused = status
		return
	}
	limitSending(c.ResponseWriter)
	c.ResponseWriter.WriteHeader(status)
}

func (c *contentWriter) Write(p []byte) (int, error) {
	if c.refused != 0 {
		return len(p), nil
	}
	limitSending(c.ResponseWriter)
	n, err := c.ResponseWriter.Write(p)
	c.err = err
	return n, err
}

func (c *contentWriter) Read(p []byte) (int, error) {
	n, err := c.content.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

func (c *contentWriter) Seek(offset int64, whence int) (int64, error) {
	n, err := c.content.Seek(offset, whence)
	if err != nil {
		c.err = err
	}
	return n, err
}
