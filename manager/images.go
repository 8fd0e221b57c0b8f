package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"sync"

	"vmand/failpoint"
	"vmand/vm"
)

// Images brings images in and deletes them.
type Images struct {
	*Engine
	// contents is locked while what images name is changed, never for long. It guards held:
	// the operations under way that need image content, by SHA-256.
	contents sync.Mutex
	held     map[string][]*holder
}

// A heldImage is an image whose content stays until [Images.release].
type heldImage struct {
	vm.Image
	by *holder
}

var imageCreate = verb{
	kind: vm.ImageCreate, timeout: copyTimeout, preemptible: true,
	cleanup: leavesNothing, reached: imageAvailable, answer: vm.AnswerCreated,
	points: []string{"image.noted", "image.stored"},
}

var imageEdit = verb{
	kind: vm.ImageEdit, timeout: recordTimeout,
	cleanup: leavesNothing, reached: recordedWithIntent, answer: vm.AnswerResource,
}

var imageDelete = verb{
	kind: vm.ImageDelete, timeout: fileTimeout,
	cleanup: finishImageDelete, reached: exists(false), answer: vm.AnswerNothing,
	points: []string{"image.delete.row-gone"},
}

func imageAvailable(ctx context.Context, e *Engine, op vm.Operation) (bool, error) {
	i, err := e.store.Image(ctx, op.Resource.ID)
	return err == nil && i.State == vm.ImageAvailable, ignoreNotFound(err)
}

// hold returns an image whose content stays, for the run, until [Images.release]. It fails
// if the image cannot be used. field is where the request names the image.
func (s *Images) hold(ctx context.Context, r *run, name, field string) (heldImage, error) {
	s.contents.Lock()
	defer s.contents.Unlock()
	i, err := s.store.Image(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		return heldImage{}, vm.InvalidField(field, "image %s not found", name)
	}
	if err == nil {
		err = i.CheckAvailable()
	}
	if err != nil {
		return heldImage{}, err
	}
	return s.holdLocked(r, i), nil
}

// holdContent holds content and returns it as an image to release.
func (s *Images) holdContent(r *run, sha256 string) heldImage {
	s.contents.Lock()
	defer s.contents.Unlock()
	return s.holdLocked(r, vm.Image{ImageContent: vm.ImageContent{SHA256: sha256}})
}

// holdLocked must be called with contents held.
func (s *Images) holdLocked(r *run, i vm.Image) heldImage {
	if s.held == nil {
		s.held = map[string][]*holder{}
	}
	s.held[i.SHA256] = append(s.held[i.SHA256], r.holder)
	return heldImage{Image: i, by: r.holder}
}

// release ends the hold on each of the images.
func (s *Images) release(images ...heldImage) {
	s.contents.Lock()
	defer s.contents.Unlock()
	for _, i := range images {
		if n := slices.Index(s.held[i.SHA256], i.by); n >= 0 {
			s.held[i.SHA256] = slices.Delete(s.held[i.SHA256], n, n+1)
		}
		if len(s.held[i.SHA256]) == 0 {
			delete(s.held, i.SHA256)
		}
	}
}

// Create begins to download an image or to make one from a disk, and returns it in its
// transitional state. [Operations.Wait] returns the outcome. If the import fails, the image
// is removed again.
func (s *Images) Create(ctx context.Context, n vm.NewImage) (vm.Image, vm.Operation, error) {
	if (n.URL == "") == (n.FromDisk == "") {
		return vm.Image{}, vm.Operation{}, vm.InvalidField("/url", "give either url or from_disk")
	}
	c := &imageCreation{s: s, n: n}
	source := ""
	if n.URL != "" {
		if err := s.driver.CheckURL(n.URL); err != nil {
			return vm.Image{}, vm.Operation{}, err
		}
		source = sourceOf(n.URL)
	}
	var err error
	if c.i, err = n.Record(vm.ImageImporting, source, now()); err != nil {
		return vm.Image{}, vm.Operation{}, err
	}
	on := []vm.Resource{vm.ImageResource(c.i.Name)}
	if n.FromDisk != "" {
		if c.disk, err = s.Disks.sourceOf(ctx, n.FromDisk); err != nil {
			return vm.Image{}, vm.Operation{}, err
		}
		c.i.Source = c.disk.String()
		on = append(on, c.disk)
	}
	q := imageCreate.request(c, on...)
	q.reads = on[1:]
	return s.start(ctx, q, c.i)
}

// sourceOf returns the parts of a URL to record, without those that may contain a secret.
func sourceOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// start begins the import of image i and returns it in its transitional state.
func (s *Images) start(ctx context.Context, q request, i vm.Image) (vm.Image, vm.Operation, error) {
	r, err := s.begin(ctx, q)
	if err != nil {
		return vm.Image{}, vm.Operation{}, err
	}
	recorded, err := s.store.Image(ctx, i.Name)
	if errors.Is(err, vm.ErrNotFound) { // it has failed by now
		recorded, err = i, nil
	}
	return recorded, r.snapshot(), err
}

// An imageCreation is one [Images.Create].
type imageCreation struct {
	s    *Images
	n    vm.NewImage
	i    vm.Image
	disk vm.Resource // to copy; zero for a download
	from vm.CopySource
}

func (c *imageCreation) intent(ctx context.Context, _ *run) (_ vm.Change, err error) {
	if c.disk != (vm.Resource{}) {
		c.from, err = c.s.Disks.copySource(ctx, c.disk)
	}
	recorded := c.i
	return vm.Change{NewImage: &recorded}, err
}

func (c *imageCreation) act(ctx context.Context, r *run) (vm.Change, error) {
	if c.disk != (vm.Resource{}) {
		return c.s.importInto(ctx, r, &c.i, "copy", func(im vm.Import) (vm.ImageContent, error) {
			return c.s.driver.ImageOfDisk(ctx, c.from, im)
		})
	}
	return c.s.importInto(ctx, r, &c.i, "fetch", func(im vm.Import) (vm.ImageContent, error) {
		return c.s.driver.FetchImage(ctx, c.n.URL, im)
	})
}

func (c *imageCreation) truth(ctx context.Context) (vm.Change, error) {
	return c.s.truth(ctx, c.i.Name)
}

// importInto imports the content of the recorded image i and returns the change that records
// it as available.
func (s *Images) importInto(
	ctx context.Context, r *run, i *vm.Image, step string, get func(vm.Import) (vm.ImageContent, error),
) (vm.Change, error) {
	r.report(step, "from "+i.Source)
	from := i.State
	_, err := get(vm.Import{
		Sum: i.Sum, Format: i.Format, Disk: i.Disk, Progress: r.progress,
		Ready: func(c vm.ImageContent) error { return s.noteContent(ctx, i, c) },
	})
	if err != nil {
		return vm.Change{}, err
	}
	failpoint.Hit("image.stored")
	i.State, i.Uploaded = vm.ImageAvailable, 0
	return vm.Change{Image: &vm.ImageUpdate{From: from, Image: *i}}, nil
}

// noteContent records which content an image is about to have. A deletion of the last other
// image of that content sees it and keeps the content; after a kill it tells whether the
// content has arrived.
func (s *Images) noteContent(ctx context.Context, i *vm.Image, c vm.ImageContent) error {
	s.contents.Lock()
	defer s.contents.Unlock()
	i.ImageContent = c
	err := s.apply(ctx, vm.Change{Image: &vm.ImageUpdate{From: i.State, Image: *i}})
	failpoint.Hit("image.noted")
	return err
}

// Update changes the description and labels of an image and returns it.
func (s *Images) Update(ctx context.Context, name string, e vm.ImageEdits, match vm.Match) (vm.Image, error) {
	record := recording(func(ctx context.Context) (vm.Change, error) {
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
	})
	r, err := s.begin(ctx, imageEdit.request(record, vm.ImageResource(name)))
	if err != nil {
		return vm.Image{}, err
	}
	return *r.intended.Image, nil
}

// Delete forgets an image, and removes its content if no other image has it. It fails with
// [vm.CodeInUse] while a disk is based on that content or a drive has it, and with
// [vm.CodeBusy] while an operation reads the content, unless force cancels that operation.
func (s *Images) Delete(ctx context.Context, name string, match vm.Match, force bool) error {
	x := &imageDeletion{s: s, name: name, match: match, force: force}
	_, err := s.run(ctx, imageDelete.request(x, vm.ImageResource(name)))
	return err
}

// An imageDeletion is one [Images.Delete].
type imageDeletion struct {
	s     *Images
	name  string
	match vm.Match
	force bool
}

func (x *imageDeletion) intent(ctx context.Context, r *run) (vm.Change, error) {
	i, err := x.s.store.Image(ctx, x.name)
	if err == nil {
		err = x.match.Check("image "+x.name, i.Version())
	}
	if err != nil {
		return vm.Change{}, err
	}
	if _, err = x.claim(ctx, r); err == nil {
		x.s.contents.Unlock() // act claims it again, with what it changes
	}
	return vm.Change{}, err
}

// act deletes the record of the image, then removes its content. The operation's target names the content,
// so that a kill in between is settled.
func (x *imageDeletion) act(ctx context.Context, r *run) (vm.Change, error) {
	s := x.s
	i, err := x.claim(ctx, r)
	if err != nil {
		return vm.Change{}, err
	}
	defer s.contents.Unlock()
	r.aim(vm.Target{Content: i.SHA256})
	r.report("remove-content", i.SHA256)
	op := r.snapshot()
	if err := s.apply(ctx, vm.Change{Operation: &op, DeleteImage: x.name}); err != nil {
		return vm.Change{}, err
	}
	failpoint.Hit("image.delete.row-gone")
	if err := s.driver.DropUpload(ctx, x.name); err != nil {
		return vm.Change{}, err
	}
	return vm.Change{}, s.dropContent(ctx, i.SHA256)
}

// claim returns the image once no operation under way needs its content, with contents
// locked: the caller must unlock it unless claim fails.
func (x *imageDeletion) claim(ctx context.Context, r *run) (vm.Image, error) {
	s := x.s
	for {
		s.contents.Lock()
		i, err := s.store.Image(ctx, x.name)
		if err == nil && len(s.held[i.SHA256]) == 0 {
			return i, nil
		}
		var reader *holder
		if err == nil {
			reader = s.held[i.SHA256][0]
		}
		s.contents.Unlock()
		switch {
		case err != nil:
			return i, err
		case !x.force || !reader.preemptible:
			return i, readFault("image "+x.name, reader)
		}
		reader.cancel(preempted{by: r.holder.what})
		select {
		case <-reader.released:
		case <-ctx.Done():
			return i, fmt.Errorf("wait for image %s: %w", x.name, context.Cause(ctx))
		}
	}
}

func (x *imageDeletion) truth(ctx context.Context) (vm.Change, error) { return x.s.truth(ctx, x.name) }

// dropContent removes content that no image has. It must be called with contents held.
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

// finishImageDelete removes the content of an image after its deletion has deleted the record.
func finishImageDelete(ctx context.Context, e *Engine, op vm.Operation) error {
	s, name := e.Images, op.Resource.ID
	recorded, err := e.recorded(ctx, op.Resource)
	if err != nil || recorded {
		return err
	}
	s.contents.Lock()
	defer s.contents.Unlock()
	if err := s.driver.DropUpload(ctx, name); err != nil {
		return err
	}
	return s.dropContent(ctx, op.Target.Content)
}

// Open opens the content of an image to read. The caller must close it.
func (s *Images) Open(ctx context.Context, name string) (vm.Image, io.ReadSeekCloser, error) {
	i, err := s.store.Image(ctx, name)
	if err == nil {
		err = i.CheckAvailable()
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

// truth implements [settler]: an interrupted import has stored either the whole content or
// nothing.
func (s *Images) truth(ctx context.Context, name string) (vm.Change, error) {
	i, err := s.store.Image(ctx, name)
	if err != nil {
		return vm.Change{}, ignoreNotFound(err)
	}
	was, arrived := i, false
	if i.SHA256 != "" {
		if arrived, err = s.driver.HasImage(ctx, i.SHA256); err != nil {
			return vm.Change{}, err
		}
	}
	switch {
	case arrived:
		i.State, i.Reason, i.Uploaded = vm.ImageAvailable, "", 0
		if was.State == vm.ImageUploading { // the content may be that of another image
			if err := s.driver.DropUpload(ctx, name); err != nil {
				return vm.Change{}, err
			}
		}
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

// stateName implements [settler].
func (s *Images) stateName(ctx context.Context, name string) (string, error) {
	i, err := s.store.Image(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		return "absent", nil
	}
	return string(i.State), err
}
