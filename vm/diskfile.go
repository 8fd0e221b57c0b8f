package vm

import (
	"regexp"
	"strings"
)

// A DiskFile is the file behind a data disk or a VM's root disk, as it is made.
type DiskFile struct {
	SizeMiB int64
	// Image is the name of the image it was made of, empty for none. It is only
	// said: by now there may be none of that name, or another one.
	Image string
	// Base is what it is a copy-on-write overlay of: content of images (see
	// [ContentBase]) or the absolute path of the operator's boot image; empty for
	// nothing.
	Base       string
	BaseFormat string // what Base is laid out as, one of [ImageFormats] but iso; empty without a base
}

const contentPrefix = "sha256:"

var contentPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ContentBase returns what [DiskFile].Base has for the content of images that has
// this SHA-256.
func ContentBase(sha256 string) string { return contentPrefix + sha256 }

// Content returns the SHA-256 of the content of images that f is an overlay of, and
// false if it is none.
func (f DiskFile) Content() (sha256 string, ok bool) {
	sha256, ok = strings.CutPrefix(f.Base, contentPrefix)
	return sha256, ok && ValidContent(sha256)
}

// ValidContent reports whether s can be the SHA-256 of content: 64 hexadecimal
// digits in lower case.
func ValidContent(s string) bool { return contentPattern.MatchString(s) }

// A CopySource is what the file of a new disk gets a copy of, with all that it is
// based on.
type CopySource struct {
	// Resource is a data disk, a VM that does not run (its root disk is meant), or zero:
	// then the source is the image content that File is an overlay of.
	Resource Resource
	File     DiskFile
}
