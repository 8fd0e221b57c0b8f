package config

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// otherVariables are variables with vmand's prefix that are not settings: those of the
// client vman, and in a build with fail points the one that names a fail point (package
// failpoint).
var otherVariables = []string{"VMAN_CONTEXT", "VMAN_TOKEN", "VMAN_TOKEN_FILE", "VMAN_URL"}

// unknownVariables returns a warning about each environment variable that has vmand's
// prefix and no effect: it may be misspelled, or be meant for another program. A variable
// of VMAN that has no successor among the settings is wrong if it has a value: vmand would
// not do what VMAN did.
func unknownVariables() (warnings, wrong []string) {
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || strings.HasPrefix(name, testEnvPrefix) {
			continue
		}
		isSetting := slices.ContainsFunc(settings, func(s setting) bool { return s.variable() == name || s.alias == name })
		if isSetting || slices.Contains(otherVariables, name) {
			continue
		}
		successor, isVMAN := successors[name]
		switch {
		case isVMAN && value != "":
			wrong = append(wrong, fmt.Sprintf("%s (environment): is a setting of VMAN that vmand does not have: "+
				"unset it; %s", name, successor))
		case isVMAN:
			warnings = append(warnings, fmt.Sprintf("%s (environment): is ignored; %s", name, successor))
		default:
			meant := nearest(strings.TrimPrefix(name, envPrefix)).variable()
			warnings = append(warnings, fmt.Sprintf("%s (environment): is unknown and ignored; did you mean %s?", name, meant))
		}
	}
	slices.Sort(warnings)
	slices.Sort(wrong)
	return warnings, wrong
}

// nearest returns the setting with the name that has the smallest Levenshtein distance
// to word. The names of a setting are its key, each part of the key, and its variable.
func nearest(word string) setting {
	plain := func(name string) string { return strings.ToLower(strings.ReplaceAll(name, ".", "_")) }
	word = plain(word)
	far := func(s setting) int {
		names := append(strings.Split(s.key, "."), plain(s.key), plain(strings.TrimPrefix(s.variable(), envPrefix)))
		least := levenshtein.ComputeDistance(word, names[0])
		for _, name := range names[1:] {
			least = min(least, levenshtein.ComputeDistance(word, name))
		}
		return least
	}
	return slices.MinFunc(settings, func(a, b setting) int { return far(a) - far(b) })
}
