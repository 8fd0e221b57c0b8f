package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"vmand/failpoint"
	"vmand/vm"
)

// importTimeout is how long bringing an image in may take: a slow line, a large
// disk. Those who wait for less cancel it.
const importTimeout = 24 * time.Hour

// Create begins to download an image, or to make one of a disk, and returns
// it as it is recorded meanwhile. Use [Operations.Wait] to learn how that ends: an
// image that could not be had is gone again.
func (s *Images) Create(ctx context.Context, n vm.NewImage) (vm.Image, vm.Operation, error) {
	var source string
	switch {
	case (n.URL == "") == (n.FromDisk == ""):
		return vm.Image{}, vm.Operation{}, vm.InvalidField("/url", "give either url or from_disk")
	case n.URL != "":
		if err := s.driver.CheckURL(n.URL); err != nil {
			return vm.Image{}, vm.Operation{}, err
		}
		source = sourceOf(n.URL)
	}
	i, err := n.Record(vm.ImageImporting, source, now())
	if err != nil {
		return vm.Image{}, vm.Operation{}, err
	}
	c := s.importing(&i)
	if n.URL != "" {
		c.act = s.importInto(&i, "fetch", func(ctx context.Context, im vm.Import) (vm.ImageContent, error) {
			return s.driver.FetchImage(ctx, n.URL, im)
		})
		return s.start(ctx, &i, c)
	}
	resource, err := s.Disks.copied(ctx, n.FromDisk)
	if err != nil {
		return vm.Image{}, vm.Operation{}, err
	}
	var from vm.CopySource
	i.Source = resource
	c.resources = append(c.resources, resource)
	c.intent = func(ctx context.Context, _ *run) (_ vm.Change, err error) {
		from, err = s.Disks.copySource(ctx, resource)
		return vm.Change{NewImage: &i}, err
	}
	c.act = s.importInto(&i, "copy", func(ctx context.Context, im vm.Import) (vm.ImageContent, error) {
		return s.driver.ImageOfDisk(ctx, from, im)
	})
	return s.start(ctx, &i, c)
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

func (s *Images) start(ctx context.Context, i *vm.Image, c change) (vm.Image, vm.Operation, error) {
	r, err := s.begin(ctx, c)
	if err != nil {
		return vm.Image{}, vm.Operation{}, err
	}
	recorded, err := s.store.Image(ctx, i.Name)
	if errors.Is(err, vm.ErrNotFound) { // it has failed by now
		recorded, err = *i, nil
	}
	return recorded, r.snapshot(), err
}

// importing returns the change that makes an image, but for what brings its content.
func (s *Images) importing(i *vm.Image) change {
	return change{
		kind: vm.ImageCreate, resources: []string{vm.ImageResource(i.Name)}, timeout: importTimeout, preemptible: true,
		intent: func(context.Context, *run) (vm.Change, error) { return vm.Change{NewImage: i}, nil },
		truth:  func(ctx context.Context) (vm.Change, error) { return s.truth(ctx, i.Name) },
	}
}

// importInto returns the act that brings content for an image that is recorded as i.
func (s *Images) importInto(i *vm.Image, step string, get func(context.Context, vm.Import) (vm.ImageContent, error)) func(context.Context, *run) (vm.Change, error) {
	return func(ctx context.Context, r *run) (vm.Change, error) {
		r.report(step, "from "+i.Source)
		from := i.State
		_, err := get(ctx, vm.Import{Sum: i.Sum, Format: i.Format, Progress: r.progress, Ready: func(c vm.ImageContent) error { return s.noteContent(ctx, i, c) }})
		if err != nil {
			return vm.Change{}, err
		}
		failpoint.Hit("image.stored")
		i.State, i.Uploaded = vm.ImageAvailable, 0
		return vm.Change{Image: &vm.ImageUpdate{From: from, Image: *i}}, nil
	}
}

// noteContent records what content an image is about to have. Whoever deletes the
// last other image of that content sees it and lets the content be; and after a kill
// it tells whether what was brought has got there.
func (s *Images) noteContent(ctx context.Context, i *vm.Image, c vm.ImageContent) error {
	s.contents.mu.Lock()
	defer s.contents.mu.Unlock()
	i.ImageContent = c
	err := s.apply(ctx, vm.Change{Image: &vm.ImageUpdate{From: i.State, Image: *i}})
	failpoint.Hit("image.noted")
	return err
}

// Upload makes an image of what r has, which is all of it unless there is
// more to come ([Images.ContinueUpload]). It returns when r is read to its end. An
// upload that breaks off can go on, or begin anew; one that is refused is gone.
func (s *Images) Upload(ctx context.Context, n vm.NewImage, r io.Reader, more bool) (vm.Image, vm.Operation, error) {
	i, err := n.Record(vm.ImageUploading, "upload", now())
	if err != nil {
		return vm.Image{}, vm.Operation{}, err
	}
	c := s.importing(&i)
	c.intent = func(ctx context.Context, _ *run) (vm.Change, error) {
		begun, err := s.store.Image(ctx, i.Name)
		switch {
		case errors.Is(err, vm.ErrNotFound): // of which something may be left all the same: the records may have been restored
			return vm.Change{NewImage: &i}, s.driver.DropUpload(ctx, i.Name)
		case err != nil:
			return vm.Change{}, err
		case begun.State != vm.ImageUploading:
			return vm.Change{NewImage: &i}, nil // which fails, as there is one
		}
		return vm.Change{Image: &vm.ImageUpdate{From: vm.ImageUploading, Image: i}}, s.driver.DropUpload(ctx, i.Name)
	}
	return s.upload(ctx, &i, c, 0, r, more)
}

// ContinueUpload appends what r has to an upload, of which so many bytes must have
// come ([CodePrecondition] otherwise), as UploadImage does.
func (s *Images) ContinueUpload(ctx context.Context, name string, offset int64, r io.Reader, more bool) (vm.Image, vm.Operation, error) {
	i := vm.Image{Name: name}
	c := s.importing(&i)
	c.intent = func(ctx context.Context, _ *run) (_ vm.Change, err error) {
		if i, err = s.store.Image(ctx, name); err != nil {
			return vm.Change{}, err
		}
		if i.State != vm.ImageUploading {
			return vm.Change{}, &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("image %s is not being uploaded: it is %s", name, i.State)}
		}
		have, err := s.driver.Uploaded(ctx, name)
		if err == nil && have != offset {
			err = &vm.Fault{Code: vm.CodePrecondition, Detail: fmt.Sprintf("the upload of image %s goes on at offset %d, not at %d", name, have, offset),
				Hint: "read uploaded_bytes of the image"}
		}
		return vm.Change{}, err
	}
	return s.upload(ctx, &i, c, offset, r, more)
}

func (s *Images) upload(ctx context.Context, i *vm.Image, c change, offset int64, body io.Reader, more bool) (vm.Image, vm.Operation, error) {
	c.kind = vm.ImageUpload
	refused := false
	c.act = func(ctx context.Context, r *run) (vm.Change, error) {
		r.report("upload", fmt.Sprintf("from byte %d on", offset))
		come, err := s.driver.UploadImage(ctx, i.Name, offset, body)
		if err != nil {
			return vm.Change{}, err
		}
		failpoint.Hit("image.uploaded")
		if more {
			i.Uploaded = come
			return vm.Change{Image: &vm.ImageUpdate{From: i.State, Image: *i}}, nil
		}
		out, err := s.importInto(i, "check", func(ctx context.Context, im vm.Import) (vm.ImageContent, error) {
			return s.driver.FinishUpload(ctx, i.Name, im)
		})(ctx, r)
		refused = errors.Is(err, vm.ErrInvalid) // what has come will not become better
		return out, err
	}
	c.truth = func(ctx context.Context) (vm.Change, error) {
		if !refused {
			return s.truth(ctx, i.Name)
		}
		return vm.Change{DeleteImage: i.Name}, s.driver.DropUpload(ctx, i.Name)
	}
	r, err := s.begin(ctx, c)
	if err != nil {
		return vm.Image{}, vm.Operation{}, err
	}
	// Not given up with the client: the body ends when the client hangs up, and
	// nobody may read it once the request is over.
	op, err := r.wait(context.WithoutCancel(ctx))
	if err != nil {
		return vm.Image{}, op, err
	}
	recorded, err := s.store.Image(context.WithoutCancel(ctx), i.Name)
	return recorded, op, err
}

// Update changes what is said of an image and returns it.
func (s *Images) Update(ctx context.Context, name string, e vm.ImageEdits, match vm.Match) (vm.Image, error) {
	_, err := s.begin(ctx, change{
		kind: vm.ImageEdit, resources: []string{vm.ImageResource(name)}, timeout: templateTimeout,
		intent: func(ctx context.Context, _ *run) (vm.Change, error) {
			i, err := s.store.Image(ctx, name)
			if err != nil {
				return vm.Change{}, err
			}
			if err := match.Check("image "+name, i.Version()); err != nil {
				return vm.Change{}, err
			}
			if err := e.Apply(&i); err != nil {
				return vm.Change{}, err
			}
			return vm.Change{Image: &vm.ImageUpdate{From: i.State, Image: i}}, nil
		},
	})
	if err != nil {
		return vm.Image{}, err
	}
	return s.store.Image(ctx, name)
}

// Delete forgets an image, and removes its content if no other image has it.
// It fails with [CodeInUse] while a disk is based on that content or a drive has it.
func (s *Images) Delete(ctx context.Context, name string, match vm.Match) error {
	r, err := s.begin(ctx, change{
		kind: vm.ImageDelete, resources: []string{vm.ImageResource(name)}, timeout: diskFileTimeout,
		intent: func(ctx context.Context, _ *run) (vm.Change, error) {
			i, err := s.store.Image(ctx, name)
			if err == nil {
				err = match.Check("image "+name, i.Version())
			}
			return vm.Change{}, err
		},
		act:   func(ctx context.Context, r *run) (vm.Change, error) { return vm.Change{}, s.remove(ctx, name, r) },
		truth: func(ctx context.Context) (vm.Change, error) { return s.truth(ctx, name) },
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

// remove forgets an image, then removes its content.
func (s *Images) remove(ctx context.Context, name string, r *run) error {
	s.contents.mu.Lock()
	defer s.contents.mu.Unlock()
	i, err := s.store.Image(ctx, name)
	if err != nil {
		return err
	}
	if i.SHA256 != "" && s.contents.held[i.SHA256] > 0 {
		return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("an operation is at work with the content of image %s", name), Hint: "try again when that is over"}
	}
	r.mu.Lock()
	r.op.Step = contentStep + i.SHA256
	r.mu.Unlock()
	op := r.snapshot()
	if err := s.apply(ctx, vm.Change{Operation: &op, DeleteImage: name}); err != nil {
		return err
	}
	failpoint.Hit("image.delete.row-gone")
	if err := s.driver.DropUpload(ctx, name); err != nil {
		return err
	}
	return s.dropContent(ctx, i.SHA256)
}

// dropContent removes content that no image has. The caller holds contents.mu.
func (s *Images) dropContent(ctx context.Context, sha256 string) error {
	if sha256 == "" {
		return nil
	}
	others, err := s.store.Images(ctx, vm.ImageFilter{SHA256: sha256}, vm.Page{Limit: 1})
	if err != nil || len(others) > 0 {
		return err
	}
	return s.driver.DeleteImage(ctx, sha256)
}

// Open opens the content of an image to read. Close it in the end.
func (s *Images) Open(ctx context.Context, name string) (vm.Image, io.ReadSeekCloser, error) {
	i, err := s.store.Image(ctx, name)
	if err == nil {
		err = i.Usable()
	}
	if err != nil {
		return i, nil, err
	}
	content, err := s.driver.OpenImage(ctx, i.SHA256)
	if errors.Is(err, vm.ErrNotFound) {
		err = &vm.Fault{Code: vm.CodeState, Detail: fmt.Sprintf("the content of image %s is missing", name), Err: err}
	}
	return i, content, err
}

// truth looks at the content of an image and returns the change that makes
// the records true. An import that was cut short has brought either all of its
// content or nothing. The caller holds the image's lock.
func (s *Images) truth(ctx context.Context, name string) (vm.Change, error) {
	i, err := s.store.Image(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		return vm.Change{}, nil
	}
	if err != nil {
		return vm.Change{}, err
	}
	was, there := i, false
	if i.SHA256 != "" {
		if there, err = s.driver.HasImage(ctx, i.SHA256); err != nil {
			return vm.Change{}, err
		}
	}
	switch {
	case there:
		i.State, i.Reason, i.Uploaded = vm.ImageAvailable, "", 0
	case i.State == vm.ImageImporting:
		return vm.Change{DeleteImage: name}, nil
	case i.State == vm.ImageUploading:
		i.ImageContent = vm.ImageContent{}
		if i.Uploaded, err = s.driver.Uploaded(ctx, name); err != nil {
			return vm.Change{}, err
		}
	default:
		i.State, i.Reason = vm.ImageError, "its content is missing"
	}
	if i.State == was.State && i.Reason == was.Reason && i.Uploaded == was.Uploaded && i.ImageContent == was.ImageContent {
		return vm.Change{}, nil
	}
	return vm.Change{Image: &vm.ImageUpdate{From: was.State, Image: i}}, nil
}

// stateName names the recorded state for a [Repair].
func (s *Images) stateName(ctx context.Context, name string) (string, error) {
	i, err := s.store.Image(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		return "absent", nil
	}
	return string(i.State), err
}

// settleDelete removes the content of an image that an operation cut short has
// forgotten.
func (s *Images) settleDelete(ctx context.Context, name string, op vm.Operation) error {
	sha256, ok := strings.CutPrefix(op.Step, contentStep)
	if _, err := s.store.Image(ctx, name); !ok || !errors.Is(err, vm.ErrNotFound) {
		return ignoreNotFound(err)
	}
	s.contents.mu.Lock()
	defer s.contents.mu.Unlock()
	if err := s.driver.DropUpload(ctx, name); err != nil {
		return err
	}
	return s.dropContent(ctx, sha256)
}
