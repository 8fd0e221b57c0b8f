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

func checkDescription(text string) error {
	if !plainText(text, MaxDescription, "\n\t") {
		return InvalidField("/description", "must be text of at most %d characters without control characters", MaxDescription)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return InvalidField("/labels", "must be at most %d", maxLabels)
	}
	for k, value := range labels {
		if !labelPattern.MatchString(k) {
			return InvalidField("/labels", "a key must be 1 to 63 of a-z, 0-9, '-', '.', '_' and '/', and begin and end with a letter or a digit")
		}
		if !plainText(value, maxLabelValue, "") {
			return InvalidField("/labels/"+strings.ReplaceAll(k, "/", "~1"), "must be text of at most %d characters without control characters", maxLabelValue)
		}
	}
	return nil
}

// plainText reports whether s is UTF-8 of at most limit characters, with no
// control characters but those allowed.
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
