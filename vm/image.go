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

// ImageStates lists every state of an image.
var ImageStates = []ImageState{ImageImporting, ImageUploading, ImageAvailable, ImageError}

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

// Usable reports why nothing can be made of an image now; nil if it can.
func (i Image) Usable() error {
	if i.State == ImageAvailable {
		return nil
	}
	f := &Fault{Code: CodeState, Detail: fmt.Sprintf("image %s is not available: it is %s", i.Name, i.State)}
	if i.State == ImageUploading {
		f.Hint = "finish its upload first"
	}
	return f
}
