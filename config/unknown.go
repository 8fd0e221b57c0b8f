package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// otherVariables are variables with vmand's prefix that are not settings: those of the
// client vman, and in a build with fail points the one that names a fail point (package
// failpoint).
var otherVariables = []string{"VMAN_CONTEXT", "VMAN_TOKEN", "VMAN_TOKEN_FILE", "VMAN_URL"}

// unknownVariables returns a complaint about each environment variable that has
// vmand's prefix and is not a setting: it may be misspelled.
func unknownVariables() (wrong []string) {
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || strings.HasPrefix(name, testEnvPrefix) {
			continue
		}
		isSetting := slices.ContainsFunc(settings, func(s setting) bool { return s.variable() == name })
		if isSetting || slices.Contains(otherVariables, name) {
			continue
		}
		meant := nearest(strings.TrimPrefix(name, envPrefix)).variable()
		wrong = append(wrong, fmt.Sprintf("%s (environment): is unknown; did you mean %s?", name, meant))
	}
	slices.Sort(wrong)
	return wrong
}

// nearest returns the setting with the name that has the smallest [distance] to
// word. The names of a setting are its key, each part of the key, and its variable.
func nearest(word string) setting {
	plain := func(name string) string { return strings.ToLower(strings.ReplaceAll(name, ".", "_")) }
	word = plain(word)
	far := func(s setting) int {
		names := append(strings.Split(s.key, "."), plain(s.key), plain(strings.TrimPrefix(s.variable(), envPrefix)))
		least := distance(word, names[0])
		for _, name := range names[1:] {
			least = min(least, distance(word, name))
		}
		return least
	}
	return slices.MinFunc(settings, func(a, b setting) int { return far(a) - far(b) })
}

// distance returns how many letters must be inserted, removed or replaced to turn
// a into b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
