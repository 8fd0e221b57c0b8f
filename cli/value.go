package cli

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// value returns what p points at, or the zero value if p is nil.
func value[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}

// given returns a pointer to v if the flag was given, nil otherwise.
func given[T any](c *cobra.Command, flag string, v T) *T {
	if c.Flags().Changed(flag) {
		return &v
	}
	return nil
}

// parseLabels returns the labels of arguments KEY=VALUE.
func parseLabels(args []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, arg := range args {
		key, text, ok := strings.Cut(arg, "=")
		if !ok || key == "" {
			return nil, usagef("label %q: use KEY=VALUE", arg)
		}
		labels[key] = text
	}
	return labels, nil
}

// formatLabels returns labels for tables, sorted by key.
func formatLabels(labels map[string]string) string {
	var words []string
	for _, key := range sortedKeys(labels) {
		words = append(words, key+"="+labels[key])
	}
	return strings.Join(words, ",")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
