package vm

import (
	"context"
	"fmt"
	"io"
	"time"
)

// ImageState is the state of an image.
type ImageState string

// The states of an image. An image that is importing or uploading has no content yet.
const (
	ImageImporting ImageState = "importing" // an operation downloads or copies the content
	ImageUploading ImageState = "uploading" // clients send the content in one or more requests
	ImageAvailable ImageState = "available"
	ImageError     ImageState = "error" // the content is missing
)

// ImageFormat is the file format of the content of an image.
type ImageFormat string

// The image formats.
const (
	FormatQcow2 ImageFormat = "qcow2"
	FormatRaw   ImageFormat = "raw"
	FormatVMDK  ImageFormat = "vmdk"
	FormatVHDX  ImageFormat = "vhdx"
	FormatVDI   ImageFormat = "vdi"
	FormatVPC   ImageFormat = "vpc" // VHD
	FormatISO   ImageFormat = "iso"
)

// ImageFormats lists every image format.
var ImageFormats = []ImageFormat{FormatQcow2, FormatRaw, FormatVMDK, FormatVHDX, FormatVDI, FormatVPC, FormatISO}

// An Image names content that disks are created from. Images with equal content share one
// stored copy, which never changes.
type Image struct {
	Seq          int64  // order of creation, unique; set by the store
	Name         string // unique; see [ValidTemplateName]
	State        ImageState
	Reason       string      // free text, set when State is error; may be empty
	ImageContent             // zero until the content is complete and checked
	Sum          ImageSum    // the checksums given in the request
	Format       ImageFormat // the format given in the request; empty for any
	Disk         string      // the file of an archive given in the request; empty for the only disk
	Uploaded     int64       // bytes received, while State is uploading
	Source       string      // "upload", a URL, "disks/<id>" or "vms/<id>"
	Description  string
	Labels       map[string]string // nil for none
	CreatedAt    time.Time
	UpdatedAt    time.Time
	Revision     int64 // increases with every change; set by the store
}

// Version returns the recorded version of i.
func (i Image) Version() Version { return Version{i.Seq, i.Revision} }

// CheckAvailable returns nil if disks can be created from i, and a [Fault] of code
// [CodeState] otherwise.
func (i Image) CheckAvailable() error {
	if i.State == ImageAvailable {
		return nil
	}
	f := &Fault{
		Code:   CodeState,
		Detail: fmt.Sprintf("image %s is not available: its state is %s", i.Name, i.State),
	}
	if i.State == ImageUploading {
		f.Hint = "finish the upload first"
	}
	return f
}

// Overlay returns the file of a disk that is a copy-on-write overlay of i. sizeMiB is the
// requested size, 0 for the exact size of i. It fails with [CodeInvalid] for sizeField if the size
// is too small or too large, and for imageField if i is an ISO image.
func (i Image) Overlay(sizeMiB int64, sizeField, imageField string) (DiskFile, error) {
	f := DiskFile{
		SizeMiB:    sizeMiB,
		Image:      i.Name,
		Base:       ContentBase(i.SHA256),
		BaseFormat: string(i.Layout),
	}
	switch {
	case i.Layout == FormatISO:
		bad := InvalidField(imageField, "image %s is an ISO image, which is read-only", i.Name)
		bad.Hint = "attach it to a VM as a CD-ROM: use cdroms"
		return f, bad
	case sizeMiB == 0:
		f.SizeMiB, f.ShortBytes = i.VirtualMiB, i.VirtualShort
	case sizeMiB < i.VirtualMiB:
		return f, InvalidField(sizeField, "must be at least %s, the size of image %s",
			formatSize(i.VirtualBytes()), i.Name)
	}
	return f, CheckDiskSize(f.SizeMiB, sizeField)
}

// ImageContent describes the stored content of an image.
type ImageContent struct {
	SHA256     string // of the stored bytes, in lower-case hex; computed by the driver
	Layout     ImageFormat
	VirtualMiB int64 // the virtual size of the disk, rounded up
	// VirtualShort is how many bytes the disk is smaller than VirtualMiB, less than 1 MiB.
	VirtualShort int64
	Bytes        int64 // the size of the stored file
}

// VirtualBytes returns the virtual size of the disk in bytes.
func (c ImageContent) VirtualBytes() int64 { return c.VirtualMiB*bytesPerMiB - c.VirtualShort }

// SetVirtualBytes sets the virtual size of the disk in bytes.
func (c *ImageContent) SetVirtualBytes(n int64) { c.VirtualMiB, c.VirtualShort = splitMiB(n) }

// An ImageSum holds the checksums, in hex, that the transferred bytes of an image must have
// before they are decompressed. An empty one is not checked.
type ImageSum struct{ SHA256, SHA512 string }

// check returns a [Fault] of code [CodeInvalid] if a checksum is malformed. prefix is the
// JSON pointer of the object that holds the checksums, with a slash at its end.
func (s ImageSum) check(prefix string) error {
	sums := []struct {
		name, value string
		digits      int
	}{
		{"sha256", s.SHA256, 64},
		{"sha512", s.SHA512, 128},
	}
	for _, sum := range sums {
		if sum.value != "" && (len(sum.value) != sum.digits || !isHex(sum.value)) {
			return InvalidField(prefix+sum.name, "must be %d hexadecimal digits", sum.digits)
		}
	}
	return nil
}

// isHex reports whether s has only hexadecimal digits.
func isHex(s string) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

// maxArchiveName is the length of the longest name of a file in an archive.
const maxArchiveName = 255

// A NewImage is a request to create an image.
type NewImage struct {
	Name        string
	URL         string // the download source; empty for none
	FromDisk    string // the disk to copy: the id of a detached data disk or of a stopped VM; empty for none
	Sum         ImageSum
	Format      ImageFormat // the required format; empty for any
	Disk        string      // the file of an archive that is the image; empty for the only disk
	Description string
	Labels      map[string]string
}

// Record returns the record of the requested image, created at the given time. It fails with
// [CodeInvalid] if the name, a checksum, the description or a label is invalid.
func (n NewImage) Record(state ImageState, source string, at time.Time) (Image, error) {
	if !ValidTemplateName(n.Name) {
		return Image{}, InvalidField("/name",
			"must have 1 to 63 characters of a-z, 0-9, '-', '.' and '_', and begin and end with a letter or a digit")
	}
	if err := n.Sum.check("/"); err != nil {
		return Image{}, err
	}
	if !plainText(n.Disk, maxArchiveName, "") {
		return Image{}, InvalidField("/disk", "must have at most %d characters and no control characters", maxArchiveName)
	}
	i := Image{
		Name:      n.Name,
		State:     state,
		Sum:       n.Sum,
		Format:    n.Format,
		Disk:      n.Disk,
		Source:    source,
		CreatedAt: at,
	}
	err := ImageEdits{Description: &n.Description, Labels: &n.Labels}.Apply(&i)
	return i, err
}

// ImageEdits are the settings of an image that can change in any state. A nil field keeps
// the recorded value.
type ImageEdits struct {
	Description *string
	Labels      *map[string]string // replaces all labels
}

// Apply copies the fields of e to i. It returns a [Fault] of code [CodeInvalid] that names the
// first invalid field; i may then be partly changed.
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

// An Import holds the conditions and callbacks of an import of image content.
type Import struct {
	Sum    ImageSum
	Format ImageFormat // the required format; empty for any
	Disk   string      // the file of an archive that is the image; empty for the only disk
	// Progress reports bytes; total is 0 if unknown. It may be called often and may be nil.
	Progress func(done, total int64)
	// Ready is called once, when the content is complete, checked and durable, before it is
	// stored under its SHA-256. An error of Ready fails the import.
	Ready func(ImageContent) error
}

// Images stores the content of images.
//
// A method with an [Import] checks the content before any other program opens it. It fails with
// [CodeUnsafeImage], [CodeDamagedImage] or [CodeUnsupportedImage] if the content is rejected, and with
// [CodeChecksumMismatch], [CodeTooLarge] or [CodeInsufficientStorage]. After an error nothing
// of the import is left, except an upload, which can be continued.
//
// Methods with a context block until they are done or the context ends. All are safe for
// concurrent use.
type Images interface {
	// CheckURL returns a [Fault] of code [CodeInvalid] for the field "/url" if a download from
	// url cannot succeed. It does not connect to the server.
	CheckURL(url string) error
	// FetchImage downloads content. It fails with [CodeFetchFailed] if the download fails.
	FetchImage(ctx context.Context, url string, i Import) (ImageContent, error)
	// UploadImage appends r to the upload of an image. offset must equal the number of bytes
	// received so far ([CodePrecondition] otherwise). It returns the new number of bytes
	// received, also with an error. These bytes are durable.
	UploadImage(ctx context.Context, name string, offset int64, r io.Reader) (int64, error)
	// Uploaded returns the number of bytes received by the upload of an image, 0 if there is
	// no upload.
	Uploaded(ctx context.Context, name string) (int64, error)
	// FinishUpload imports the received bytes and ends the upload.
	FinishUpload(ctx context.Context, name string, i Import) (ImageContent, error)
	// DropUpload deletes the received bytes. It is idempotent.
	DropUpload(ctx context.Context, name string) error
	// ImageOfDisk imports a disk as one qcow2 file without a backing file. No process may
	// have the disk open.
	ImageOfDisk(ctx context.Context, from CopySource, i Import) (ImageContent, error)
	// HasImage reports whether content with the given SHA-256 is stored.
	HasImage(ctx context.Context, sha256 string) (bool, error)
	// OpenImage opens content for reading. It fails with a [Fault] of class [ErrNotFound] if
	// the content is not stored. The caller must close it.
	OpenImage(ctx context.Context, sha256 string) (io.ReadSeekCloser, error)
	// DeleteImage deletes content. It is idempotent.
	DeleteImage(ctx context.Context, sha256 string) error
}
