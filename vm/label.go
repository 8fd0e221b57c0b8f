package vm

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of labels and descriptions.
const (
	maxLabels      = 64
	maxLabelValue  = 255  // characters
	MaxDescription = 4096 // characters
)

var labelPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$`)

// checkDescription returns a [Fault] of code [CodeInvalid] if text cannot be the
// description of a VM or an image.
func checkDescription(text string) error {
	if plainText(text, MaxDescription, "\n\t") {
		return nil
	}
	return InvalidField("/description", "must be text of at most %d characters without control characters", MaxDescription)
}

// checkLabels returns a [Fault] of code [CodeInvalid] if labels cannot be the labels of a
// VM or an image.
func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return InvalidField("/labels", "must have at most %d entries", maxLabels)
	}
	for k, value := range labels {
		if !labelPattern.MatchString(k) {
			return InvalidField("/labels",
				"a key must have 1 to 63 characters of a-z, 0-9, '-', '.', '_' and '/', and begin and end with a letter or a digit")
		}
		if !plainText(value, maxLabelValue, "") {
			return InvalidField("/labels/"+strings.ReplaceAll(k, "/", "~1"),
				"must be text of at most %d characters without control characters", maxLabelValue)
		}
	}
	return nil
}

// plainText reports whether s is UTF-8 of at most limit characters, without control
// characters other than those in allowed.
func plainText(s string, limit int, allowed string) bool {
	if !utf8.ValidString(s) || utf8.RuneCountInString(s) > limit {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) && !strings.ContainsRune(allowed, r) {
			return false
		}
	}
	return true
}
