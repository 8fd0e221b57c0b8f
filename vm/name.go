package vm

import "regexp"

var (
	namePattern         = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	templateNamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
)

// ValidName reports whether s can be the id of a VM or a disk: a DNS label in lower case
// (RFC 1123), so that the id of a VM can be the hostname of its guest.
func ValidName(s string) bool { return namePattern.MatchString(s) }

// ValidTemplateName reports whether s can be the name of a template or an image: as
// [ValidName], and also with dots and underscores between the first and the last character.
func ValidTemplateName(s string) bool { return templateNamePattern.MatchString(s) }
