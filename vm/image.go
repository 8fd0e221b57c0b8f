package vm

import (
	"context"
	"fmt"
	"io"
	"time"
)

// ImageState is where an image is in its life.
type ImageState string

// The states of an image. Importing and Uploading images have no content yet.
const (
	ImageImporting ImageState = "importing" // an operation brings its content
	ImageUploading ImageState = "uploading" // a client brings its content, in one piece or several
	ImageAvailable ImageState = "available"
	ImageError     ImageState = "error" // its content is missing
)

// ImageFormat is how the content of an image is laid out.
type ImageFormat string

// The formats of images.
const (
	FormatQcow2 ImageFormat = "qcow2"
	FormatRaw   ImageFormat = "raw"
	FormatVMDK  ImageFormat = "vmdk"
	FormatVHDX  ImageFormat = "vhdx"
	FormatVDI   ImageFormat = "vdi"
	FormatISO   ImageFormat = "iso"
)

// ImageFormats lists every format of an image.
var ImageFormats = []ImageFormat{FormatQcow2, FormatRaw, FormatVMDK, FormatVHDX, FormatVDI, FormatISO}

// An Image is a name for content that disks are made of. The content is stored
// once, whatever number of images name it, and never changes.
type Image struct {
	Seq          int64  // order of creation, unique; set by the store
	Name         string // as of templates, unique
	State        ImageState
	Reason       string // why, in words, when State is error; may be empty
	ImageContent        // zero until its content is about to be stored
	// Sum is what its transferred bytes are to have, as it was asked for.
	Sum         ImageSum
	Format      ImageFormat // what its content is to be, as it was asked for; empty for any
	Uploaded    int64       // bytes of an upload that have come, while State is uploading
	Source      string      // "upload", a URL, "disks/<id>" or "vms/<id>"
	Description string
	Labels      map[string]string // nil for none
	CreatedAt   time.Time
	UpdatedAt   time.Time
	Revision    int64 // goes up with every change; set by the store
}

// Version returns the recorded version of the image.
func (i Image) Version() Version { return Version{i.Seq, i.Revision} }

// CheckAvailable reports why nothing can be made of an image now; nil if it can.
func (i Image) CheckAvailable() error {
	if i.State == ImageAvailable {
		return nil
	}
	f := &Fault{Code: CodeState, Detail: fmt.Sprintf("image %s is not available: it is %s", i.Name, i.State)}
	if i.State == ImageUploading {
		f.Hint = "finish its upload first"
	}
	return f
}

// Overlay returns the file of a disk that is a copy-on-write overlay of i. sizeMiB is
// the requested size, 0 for the size of i. sizeField and imageField are the fields of
// the request that a [Fault] of code [CodeInvalid] names.
func (i Image) Overlay(sizeMiB int64, sizeField, imageField string) (DiskFile, error) {
	f := DiskFile{SizeMiB: sizeMiB, Image: i.Name, Base: ContentBase(i.SHA256), BaseFormat: string(i.Layout)}
	switch {
	case i.Layout == FormatISO:
		bad := InvalidField(imageField, "image %q is an ISO image, which nothing can be written to", i.Name)
		bad.Hint = "give it to a VM as a CD-ROM: cdroms"
		return f, bad
	case sizeMiB == 0:
		f.SizeMiB = i.VirtualMiB
	case sizeMiB < i.VirtualMiB:
		return f, InvalidField(sizeField, "must be at least %g GiB, the size of image %s", float64(i.VirtualMiB)/MiBPerGiB, i.Name)
	}
	return f, CheckDiskSize(f.SizeMiB, sizeField)
}

// ImageContent is what is stored of images.
type ImageContent struct {
	SHA256     string // of the stored bytes, in lower-case hex, computed here
	Layout     ImageFormat
	VirtualMiB int64 // the size of the disk in it, rounded up
	Bytes      int64 // stored
}

// An ImageSum is what the transferred bytes of an image are to have, before they
// are decompressed, in hex; empty for any.
type ImageSum struct{ SHA256, SHA512 string }

// check returns what is wrong with a sum; field is where the request has it.
func (s ImageSum) check(prefix string) error {
	for _, f := range []struct {
		name, value string
		digits      int
	}{{"sha256", s.SHA256, 64}, {"sha512", s.SHA512, 128}} {
		if f.value != "" && (len(f.value) != f.digits || !isHex(f.value)) {
			return InvalidField(prefix+f.name, "must be %d hexadecimal digits", f.digits)
		}
	}
	return nil
}

func isHex(s string) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

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

// Record returns the image to be recorded, in a state and from a source.
func (n NewImage) Record(state ImageState, source string, at time.Time) (Image, error) {
	if !ValidTemplateName(n.Name) {
		return Image{}, InvalidField("/name", "must be 1 to 63 of a-z, 0-9, '-', '.' and '_', and begin and end with a letter or a digit")
	}
	if err := n.Sum.check("/"); err != nil {
		return Image{}, err
	}
	i := Image{Name: n.Name, State: state, Sum: n.Sum, Format: n.Format, Source: source, CreatedAt: at}
	return i, ImageEdits{Description: &n.Description, Labels: &n.Labels}.Apply(&i)
}

// ImageEdits are what can be changed of an image; nil leaves a thing as it is.
type ImageEdits struct {
	Description *string
	Labels      *map[string]string // in place of all there were
}

func (e ImageEdits) Apply(i *Image) error {
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

// An Import is how content is brought in.
type Import struct {
	Sum    ImageSum
	Format ImageFormat // what it has to be; empty for any
	// Progress may be called often; total is 0 when unknown. It may be nil.
	Progress func(done, total int64)
	// Ready is called once, when the content is complete, checked and durable but
	// has not got its name yet. If it fails, so does the import.
	Ready func(ImageContent) error
}

// Images keeps the content of images. What brings content in checks it before
// anything opens it as more than bytes. It fails with [CodeUnsafeImage] for what is
// no image or a harmful one, [CodeChecksumMismatch], [CodeTooLarge],
// [CodeInsufficientStorage], [CodeFetchFailed] for what cannot be downloaded,
// and on an error nothing is left, but of an upload, which can go on.
type Images interface {
	// CheckURL returns what is wrong with a URL to download from, as far as it shows
	// without connecting, as a [Fault] of code [CodeInvalid] of the field "/url".
	CheckURL(url string) error
	// FetchImage downloads content.
	FetchImage(ctx context.Context, url string, i Import) (ImageContent, error)
	// UploadImage appends what r has to the upload of an image at an offset, which
	// must be the one of [Images.Uploaded] ([CodePrecondition] otherwise), and
	// returns the new one, also with an error. What was appended is durable.
	UploadImage(ctx context.Context, name string, offset int64, r io.Reader) (int64, error)
	// Uploaded returns how much of an upload has come, 0 if there is none.
	Uploaded(ctx context.Context, name string) (int64, error)
	// FinishUpload makes an upload content. DropUpload forgets it; it succeeds if
	// there is none.
	FinishUpload(ctx context.Context, name string, i Import) (ImageContent, error)
	DropUpload(ctx context.Context, name string) error
	// ImageOfDisk makes content of a disk that nobody uses: qcow2, flattened.
	ImageOfDisk(ctx context.Context, from CopySource, i Import) (ImageContent, error)
	// HasImage reports whether there is content.
	HasImage(ctx context.Context, sha256 string) (bool, error)
	// OpenImage opens content to read. It fails with [ErrNotFound] if there is none.
	OpenImage(ctx context.Context, sha256 string) (io.ReadSeekCloser, error)
	// DeleteImage removes content and succeeds if there is none.
	DeleteImage(ctx context.Context, sha256 string) error
}
