package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"
	"vmand/failpoint"
)

// importTimeout is how long bringing an image in may take: a slow line, a large
// disk. Those who wait for less cancel it.
const importTimeout = 24 * time.Hour

// A NewImage is what is asked of an image to make.
type NewImage struct {
	Name        string
	URL         string // where to download it from; empty for none
	FromDisk    string // the id of a data disk that is not attached, or of a stopped VM; empty for none
	Sum         ImageSum
	Format      ImageFormat // what it has to be; empty for any
	Description string
	Labels      map[string]string
}

// image returns the image to be recorded, in a state and from a source.
func (n NewImage) image(state ImageState, source string, at time.Time) (Image, error) {
	if !ValidTemplateName(n.Name) {
		return Image{}, invalidField("/name", "must be 1 to 63 of a-z, 0-9, '-', '.' and '_', and begin and end with a letter or a digit")
	}
	if err := n.Sum.check("/"); err != nil {
		return Image{}, err
	}
	i := Image{Name: n.Name, State: state, Sum: n.Sum, Format: n.Format, Source: source, CreatedAt: at}
	return i, ImageEdits{Description: &n.Description, Labels: &n.Labels}.apply(&i)
}

// ImageEdits are what can be changed of an image; nil leaves a thing as it is.
type ImageEdits struct {
	Description *string
	Labels      *map[string]string // in place of all there were
}

func (e ImageEdits) apply(i *Image) error {
	if e.Description != nil {
		if err := checkDescription(*e.Description); err != nil {
			return err
		}
		i.Description = *e.Description
	}
	if e.Labels != nil {
		if err := checkLabels(*e.Labels); err != nil {
			return err
		}
		i.Labels = nil
		if len(*e.Labels) > 0 {
			i.Labels = *e.Labels
		}
	}
	return nil
}

// CreateImage begins to download an image, or to make one of a disk, and returns
// it as it is recorded meanwhile. Use [Manager.Wait] to learn how that ends: an
// image that could not be had is gone again.
func (m *Manager) CreateImage(ctx context.Context, n NewImage) (Image, Operation, error) {
	var source string
	switch {
	case (n.URL == "") == (n.FromDisk == ""):
		return Image{}, Operation{}, invalidField("/url", "give either url or from_disk")
	case n.URL != "":
		if err := m.driver.CheckURL(n.URL); err != nil {
			return Image{}, Operation{}, err
		}
		source = sourceOf(n.URL)
	}
	i, err := n.image(ImageImporting, source, now())
	if err != nil {
		return Image{}, Operation{}, err
	}
	c := m.importing(&i)
	if n.URL != "" {
		c.act = m.bring(&i, "fetch", func(ctx context.Context, im Import) (ImageContent, error) {
			return m.driver.FetchImage(ctx, n.URL, im)
		})
		return m.beginImage(ctx, &i, c)
	}
	resource, err := m.copied(ctx, n.FromDisk)
	if err != nil {
		return Image{}, Operation{}, err
	}
	var from CopySource
	i.Source = resource
	c.resources = append(c.resources, resource)
	c.intent = func(ctx context.Context, _ *run) (_ Change, err error) {
		from, err = m.copySource(ctx, resource)
		return Change{NewImage: &i}, err
	}
	c.act = m.bring(&i, "copy", func(ctx context.Context, im Import) (ImageContent, error) {
		return m.driver.ImageOfDisk(ctx, from, im)
	})
	return m.beginImage(ctx, &i, c)
}

// sourceOf returns what of a URL is recorded: not its query, which may have a
// secret in it.
func sourceOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

func (m *Manager) beginImage(ctx context.Context, i *Image, c change) (Image, Operation, error) {
	r, err := m.begin(ctx, c)
	if err != nil {
		return Image{}, Operation{}, err
	}
	recorded, err := m.store.Image(ctx, i.Name)
	if errors.Is(err, ErrNotFound) { // it has failed by now
		recorded, err = *i, nil
	}
	return recorded, r.snapshot(), err
}

// importing returns the change that makes an image, but for what brings its content.
func (m *Manager) importing(i *Image) change {
	return change{
		kind: ImageCreate, resources: []string{ImageResource(i.Name)}, timeout: importTimeout, preemptible: true,
		intent: func(context.Context, *run) (Change, error) { return Change{NewImage: i}, nil },
		truth:  func(ctx context.Context) (Change, error) { return m.imageTruth(ctx, i.Name) },
	}
}

// bring returns the act that brings content for an image that is recorded as i.
func (m *Manager) bring(i *Image, step string, get func(context.Context, Import) (ImageContent, error)) func(context.Context, *run) (Change, error) {
	return func(ctx context.Context, r *run) (Change, error) {
		r.report(step, "from "+i.Source)
		from := i.State
		_, err := get(ctx, Import{Sum: i.Sum, Format: i.Format, Progress: r.progress, Ready: func(c ImageContent) error { return m.noteContent(ctx, i, c) }})
		if err != nil {
			return Change{}, err
		}
		failpoint.Hit("image.stored")
		i.State, i.Uploaded = ImageAvailable, 0
		return Change{Image: &ImageUpdate{From: from, Image: *i}}, nil
	}
}

// noteContent records what content an image is about to have. Whoever deletes the
// last other image of that content sees it and lets the content be; and after a kill
// it tells whether what was brought has got there.
func (m *Manager) noteContent(ctx context.Context, i *Image, c ImageContent) error {
	m.contents.mu.Lock()
	defer m.contents.mu.Unlock()
	i.ImageContent = c
	err := m.apply(ctx, Change{Image: &ImageUpdate{From: i.State, Image: *i}})
	failpoint.Hit("image.noted")
	return err
}

// UploadImage makes an image of what r has, which is all of it unless there is
// more to come ([Manager.ContinueUpload]). It returns when r is read to its end. An
// upload that breaks off can go on, or begin anew; one that is refused is gone.
func (m *Manager) UploadImage(ctx context.Context, n NewImage, r io.Reader, more bool) (Image, Operation, error) {
	i, err := n.image(ImageUploading, "upload", now())
	if err != nil {
		return Image{}, Operation{}, err
	}
	c := m.importing(&i)
	c.intent = func(ctx context.Context, _ *run) (Change, error) {
		begun, err := m.store.Image(ctx, i.Name)
		switch {
		case errors.Is(err, ErrNotFound): // of which something may be left all the same: the records may have been restored
			return Change{NewImage: &i}, m.driver.DropUpload(ctx, i.Name)
		case err != nil:
			return Change{}, err
		case begun.State != ImageUploading:
			return Change{NewImage: &i}, nil // which fails, as there is one
		}
		return Change{Image: &ImageUpdate{From: ImageUploading, Image: i}}, m.driver.DropUpload(ctx, i.Name)
	}
	return m.upload(ctx, &i, c, 0, r, more)
}

// ContinueUpload appends what r has to an upload, of which so many bytes must have
// come ([CodePrecondition] otherwise), as UploadImage does.
func (m *Manager) ContinueUpload(ctx context.Context, name string, offset int64, r io.Reader, more bool) (Image, Operation, error) {
	i := Image{Name: name}
	c := m.importing(&i)
	c.intent = func(ctx context.Context, _ *run) (_ Change, err error) {
		if i, err = m.store.Image(ctx, name); err != nil {
			return Change{}, err
		}
		if i.State != ImageUploading {
			return Change{}, &Fault{Code: CodeState, Detail: fmt.Sprintf("image %s is not being uploaded: it is %s", name, i.State)}
		}
		have, err := m.driver.Uploaded(ctx, name)
		if err == nil && have != offset {
			err = &Fault{Code: CodePrecondition, Detail: fmt.Sprintf("the upload of image %s goes on at offset %d, not at %d", name, have, offset),
				Hint: "read uploaded_bytes of the image"}
		}
		return Change{}, err
	}
	return m.upload(ctx, &i, c, offset, r, more)
}

func (m *Manager) upload(ctx context.Context, i *Image, c change, offset int64, body io.Reader, more bool) (Image, Operation, error) {
	c.kind = ImageUpload
	refused := false
	c.act = func(ctx context.Context, r *run) (Change, error) {
		r.report("upload", fmt.Sprintf("from byte %d on", offset))
		come, err := m.driver.UploadImage(ctx, i.Name, offset, body)
		if err != nil {
			return Change{}, err
		}
		failpoint.Hit("image.uploaded")
		if more {
			i.Uploaded = come
			return Change{Image: &ImageUpdate{From: i.State, Image: *i}}, nil
		}
		out, err := m.bring(i, "check", func(ctx context.Context, im Import) (ImageContent, error) {
			return m.driver.FinishUpload(ctx, i.Name, im)
		})(ctx, r)
		refused = errors.Is(err, ErrInvalid) // what has come will not become better
		return out, err
	}
	c.truth = func(ctx context.Context) (Change, error) {
		if !refused {
			return m.imageTruth(ctx, i.Name)
		}
		return Change{DeleteImage: i.Name}, m.driver.DropUpload(ctx, i.Name)
	}
	r, err := m.begin(ctx, c)
	if err != nil {
		return Image{}, Operation{}, err
	}
	// Not given up with the client: the body ends when the client hangs up, and
	// nobody may read it once the request is over.
	op, err := r.wait(context.WithoutCancel(ctx))
	if err != nil {
		return Image{}, op, err
	}
	recorded, err := m.store.Image(context.WithoutCancel(ctx), i.Name)
	return recorded, op, err
}

// UpdateImage changes what is said of an image and returns it.
func (m *Manager) UpdateImage(ctx context.Context, name string, e ImageEdits, match Match) (Image, error) {
	_, err := m.begin(ctx, change{
		kind: ImageEdit, resources: []string{ImageResource(name)}, timeout: templateTimeout,
		intent: func(ctx context.Context, _ *run) (Change, error) {
			i, err := m.store.Image(ctx, name)
			if err != nil {
				return Change{}, err
			}
			if err := match.check("image "+name, Version{i.Seq, i.Revision}); err != nil {
				return Change{}, err
			}
			if err := e.apply(&i); err != nil {
				return Change{}, err
			}
			return Change{Image: &ImageUpdate{From: i.State, Image: i}}, nil
		},
	})
	if err != nil {
		return Image{}, err
	}
	return m.store.Image(ctx, name)
}

// DeleteImage forgets an image, and removes its content if no other image has it.
// It fails with [CodeInUse] while a disk is based on that content or a drive has it.
func (m *Manager) DeleteImage(ctx context.Context, name string, match Match) error {
	r, err := m.begin(ctx, change{
		kind: ImageDelete, resources: []string{ImageResource(name)}, timeout: diskFileTimeout,
		intent: func(ctx context.Context, _ *run) (Change, error) {
			i, err := m.store.Image(ctx, name)
			if err == nil {
				err = match.check("image "+name, Version{i.Seq, i.Revision})
			}
			return Change{}, err
		},
		act:   func(ctx context.Context, r *run) (Change, error) { return Change{}, m.removeImage(ctx, name, r) },
		truth: func(ctx context.Context) (Change, error) { return m.imageTruth(ctx, name) },
	})
	if err != nil {
		return err
	}
	_, err = r.wait(ctx)
	return err
}

// contentStep begins the step of an operation that removes content: the SHA-256
// follows, by which a kill in between is settled.
const contentStep = "remove-content "

// removeImage forgets an image, then removes its content.
func (m *Manager) removeImage(ctx context.Context, name string, r *run) error {
	m.contents.mu.Lock()
	defer m.contents.mu.Unlock()
	i, err := m.store.Image(ctx, name)
	if err != nil {
		return err
	}
	if i.SHA256 != "" && m.contents.held[i.SHA256] > 0 {
		return &Fault{Code: CodeInUse, Detail: fmt.Sprintf("an operation is at work with the content of image %s", name), Hint: "try again when that is over"}
	}
	r.mu.Lock()
	r.op.Step = contentStep + i.SHA256
	r.mu.Unlock()
	op := r.snapshot()
	if err := m.apply(ctx, Change{Operation: &op, DeleteImage: name}); err != nil {
		return err
	}
	failpoint.Hit("image.delete.row-gone")
	if err := m.driver.DropUpload(ctx, name); err != nil {
		return err
	}
	return m.dropContent(ctx, i.SHA256)
}

// dropContent removes content that no image has. The caller holds contents.mu.
func (m *Manager) dropContent(ctx context.Context, sha256 string) error {
	if sha256 == "" {
		return nil
	}
	others, err := m.store.Images(ctx, ImageFilter{SHA256: sha256}, Page{Limit: 1})
	if err != nil || len(others) > 0 {
		return err
	}
	return m.driver.DeleteImage(ctx, sha256)
}

// OpenImage opens the content of an image to read. Close it in the end.
func (m *Manager) OpenImage(ctx context.Context, name string) (Image, io.ReadSeekCloser, error) {
	i, err := m.store.Image(ctx, name)
	if err == nil {
		err = i.usable()
	}
	if err != nil {
		return i, nil, err
	}
	content, err := m.driver.OpenImage(ctx, i.SHA256)
	if errors.Is(err, ErrNotFound) {
		err = &Fault{Code: CodeState, Detail: fmt.Sprintf("the content of image %s is missing", name), Err: err}
	}
	return i, content, err
}

// imageTruth looks at the content of an image and returns the change that makes
// the records true. An import that was cut short has brought either all of its
// content or nothing. The caller holds the image's lock.
func (m *Manager) imageTruth(ctx context.Context, name string) (Change, error) {
	i, err := m.store.Image(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return Change{}, nil
	}
	if err != nil {
		return Change{}, err
	}
	was, there := i, false
	if i.SHA256 != "" {
		if there, err = m.driver.HasImage(ctx, i.SHA256); err != nil {
			return Change{}, err
		}
	}
	switch {
	case there:
		i.State, i.Reason, i.Uploaded = ImageAvailable, "", 0
	case i.State == ImageImporting:
		return Change{DeleteImage: name}, nil
	case i.State == ImageUploading:
		i.ImageContent = ImageContent{}
		if i.Uploaded, err = m.driver.Uploaded(ctx, name); err != nil {
			return Change{}, err
		}
	default:
		i.State, i.Reason = ImageError, "its content is missing"
	}
	if i.State == was.State && i.Reason == was.Reason && i.Uploaded == was.Uploaded && i.ImageContent == was.ImageContent {
		return Change{}, nil
	}
	return Change{Image: &ImageUpdate{From: was.State, Image: i}}, nil
}

// imageState names the recorded state for a [Repair].
func (m *Manager) imageState(ctx context.Context, name string) (string, error) {
	i, err := m.store.Image(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return "absent", nil
	}
	return string(i.State), err
}

// settleImageDelete removes the content of an image that an operation cut short has
// forgotten.
func (m *Manager) settleImageDelete(ctx context.Context, name string, op Operation) error {
	sha256, ok := strings.CutPrefix(op.Step, contentStep)
	if _, err := m.store.Image(ctx, name); !ok || !errors.Is(err, ErrNotFound) {
		return ignoreNotFound(err)
	}
	m.contents.mu.Lock()
	defer m.contents.mu.Unlock()
	if err := m.driver.DropUpload(ctx, name); err != nil {
		return err
	}
	return m.dropContent(ctx, sha256)
}
