package manager

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vmand/failpoint"
	"vmand/vm"
)

var imageUpload = verb{
	kind: vm.ImageUpload, timeout: copyTimeout, preemptible: true,
	cleanup: leavesNothing, reached: imageAvailable, answer: vm.AnswerResource,
	points: []string{"image.uploaded", "image.noted", "image.stored"},
}

// Upload makes an image of r. With more, r is only the first part: [Images.ContinueUpload]
// appends the others. It returns when r is read to its end. An upload that breaks off can be
// continued or begun again; one that is refused is removed.
func (s *Images) Upload(ctx context.Context, n vm.NewImage, r io.Reader, more bool) (vm.Image, vm.Operation, error) {
	i, err := n.Record(vm.ImageUploading, "upload", now())
	if err != nil {
		return vm.Image{}, vm.Operation{}, err
	}
	return s.upload(ctx, &uploading{s: s, i: i, body: r, more: more, first: true})
}

// ContinueUpload appends r to an upload. offset must equal the number of bytes received so
// far ([vm.CodePrecondition] otherwise).
func (s *Images) ContinueUpload(
	ctx context.Context, name string, offset int64, r io.Reader, more bool,
) (vm.Image, vm.Operation, error) {
	return s.upload(ctx, &uploading{s: s, i: vm.Image{Name: name}, body: r, offset: offset, more: more})
}

func (s *Images) upload(ctx context.Context, u *uploading) (vm.Image, vm.Operation, error) {
	r, err := s.begin(ctx, imageUpload.request(u, vm.ImageResource(u.i.Name)))
	if err != nil {
		return vm.Image{}, vm.Operation{}, err
	}
	// The operation is waited for even if the client disconnects: the body ends then, and it
	// must not be read once the request is over.
	op, err := r.wait(context.WithoutCancel(ctx))
	if err != nil {
		return vm.Image{}, op, err
	}
	recorded, err := s.store.Image(context.WithoutCancel(ctx), u.i.Name)
	return recorded, op, err
}

// An uploading is one part of an upload.
type uploading struct {
	s       *Images
	i       vm.Image
	body    io.Reader
	offset  int64
	more    bool // other parts follow
	first   bool // it begins the upload
	refused bool // the upload is complete and no image
}

func (u *uploading) intent(ctx context.Context, _ *run) (vm.Change, error) {
	recorded, err := u.s.store.Image(ctx, u.i.Name)
	if u.first {
		return u.beginUpload(ctx, recorded, err)
	}
	if err != nil {
		return vm.Change{}, err
	}
	u.i = recorded
	if u.i.State != vm.ImageUploading {
		return vm.Change{}, &vm.Fault{
			Code: vm.CodeState, Detail: fmt.Sprintf("image %s is not being uploaded: it is %s", u.i.Name, u.i.State),
		}
	}
	have, err := u.s.driver.Uploaded(ctx, u.i.Name)
	if err == nil && have != u.offset {
		err = &vm.Fault{
			Code:   vm.CodePrecondition,
			Detail: fmt.Sprintf("the upload of image %s continues at offset %d, not at %d", u.i.Name, have, u.offset),
			Hint:   "read uploaded_bytes of the image",
		}
	}
	return vm.Change{}, err
}

// beginUpload removes the leftovers of an upload of the same name, which may be unrecorded
// after a restore.
func (u *uploading) beginUpload(ctx context.Context, recorded vm.Image, err error) (vm.Change, error) {
	i := u.i
	switch {
	case errors.Is(err, vm.ErrNotFound):
		return vm.Change{NewImage: &i}, u.s.driver.DropUpload(ctx, i.Name)
	case err != nil:
		return vm.Change{}, err
	case recorded.State != vm.ImageUploading:
		return vm.Change{NewImage: &i}, nil // the store refuses it: the image exists
	}
	return vm.Change{Image: &vm.ImageUpdate{From: vm.ImageUploading, Image: i}}, u.s.driver.DropUpload(ctx, i.Name)
}

func (u *uploading) act(ctx context.Context, r *run) (vm.Change, error) {
	r.report("upload", fmt.Sprintf("from byte %d on", u.offset))
	received, err := u.s.driver.UploadImage(ctx, u.i.Name, u.offset, u.body)
	if err != nil {
		return vm.Change{}, err
	}
	failpoint.Hit("image.uploaded")
	if u.more {
		u.i.Uploaded = received
		return vm.Change{Image: &vm.ImageUpdate{From: u.i.State, Image: u.i}}, nil
	}
	c, err := u.s.importInto(ctx, r, &u.i, "check", func(im vm.Import) (vm.ImageContent, error) {
		return u.s.driver.FinishUpload(ctx, u.i.Name, im)
	})
	u.refused = errors.Is(err, vm.ErrInvalid)
	return c, err
}

func (u *uploading) truth(ctx context.Context) (vm.Change, error) {
	if u.refused {
		return vm.Change{DeleteImage: u.i.Name}, u.s.driver.DropUpload(ctx, u.i.Name)
	}
	return u.s.truth(ctx, u.i.Name)
}
