package vm

import "regexp"

var (
	namePattern         = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	templateNamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
)

// ValidName reports whether s may name a VM or a disk: a DNS label in lower
// case (RFC 1123), so that a VM's id can be its guest's hostname.
func ValidName(s string) bool { return namePattern.MatchString(s) }

// ValidTemplateName reports whether s may name a template: as [ValidName], and
// dots and underscores inside.
func ValidTemplateName(s string) bool { return templateNamePattern.MatchString(s) }
