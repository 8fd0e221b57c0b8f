package vm

import (
	"context"
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

// An Image is a name for content that disks are made of. The content is stored
// once, whatever number of images name it, and never changes.
type Image struct {
	Seq         int64  // order of creation, unique; set by the store
	Name        string // as of templates, unique
	State       ImageState
	Reason      string      // why, in words, when State is error; may be empty
	SHA256      string      // of the stored content, in hex, computed here; empty without content
	Format      ImageFormat // empty without content
	VirtualMiB  int64       // as a guest sees it, rounded up; 0 without content
	Bytes       int64       // stored; while it is uploaded, how many have come
	Source      string      // "upload", the URL, or "disks/<id>" or "vms/<id>"
	Description string
	Labels      map[string]string // nil for none
	CreatedAt   time.Time
	UpdatedAt   time.Time
	Revision    int64 // goes up with every change; set by the store
}

// ImageResource returns the resource name of an image.
func ImageResource(name string) string { return "images/" + name }

// ImageContent is what an import has brought.
type ImageContent struct {
	SHA256     string
	Format     ImageFormat
	VirtualMiB int64
	Bytes      int64
}

// An ImageSum is what the content is to have: of what is transferred, before it is
// decompressed, in hex; empty for any.
type ImageSum struct{ SHA256, SHA512 string }

// Images keeps the content of images. Import methods check it before anything
// opens it as more than bytes and fail with [CodeUnsafeImage]; on an error
// nothing is left, but of an upload, which can go on.
type Images interface {
	// FetchImage downloads content. progress may be called often; total is 0 when
	// unknown.
	FetchImage(ctx context.Context, url string, sum ImageSum, progress func(done, total int64)) (ImageContent, error)
	// UploadImage appends what r has to the upload of an image at an offset, which
	// must be the one of [Images.Uploaded] ([CodePrecondition] otherwise), and
	// returns the new one, also with an error. What was appended is durable.
	UploadImage(ctx context.Context, name string, offset int64, r io.Reader) (int64, error)
	// Uploaded returns how much of an upload has come.
	Uploaded(ctx context.Context, name string) (int64, error)
	// FinishUpload makes an upload content. DropUpload forgets it; it succeeds if
	// there is none.
	FinishUpload(ctx context.Context, name string, sum ImageSum) (ImageContent, error)
	DropUpload(ctx context.Context, name string) error
	// ImageOfDisk copies what a data disk, or with vm the root disk of a VM that does
	// not run, has, with all it is based on.
	ImageOfDisk(ctx context.Context, id string, vm bool, progress func(done, total int64)) (ImageContent, error)
	// OpenImage opens content to read.
	OpenImage(ctx context.Context, sha256 string) (io.ReadSeekCloser, error)
	// DeleteImage removes content and succeeds if there is none.
	DeleteImage(ctx context.Context, sha256 string) error
	// ImageFile returns the absolute path of content, for [RootDisk].Base.
	ImageFile(sha256 string) string
	// ImageContents returns the content there is, by SHA-256, and its size in bytes.
	ImageContents(ctx context.Context) (map[string]int64, error)
}
