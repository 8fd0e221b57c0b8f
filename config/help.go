package config

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// AddFlags adds the flag of every setting to flags. The values are checked by
// [Read], together with the other sources.
func AddFlags(flags *pflag.FlagSet) {
	for _, s := range settings {
		flags.String(s.flag(), "", "")
		if s.isSwitch() {
			flags.Lookup(s.flag()).NoOptDefVal = "true"
		}
	}
}

// Help returns the part of the --help text that describes the settings. The
// descriptions are the comments of config.yaml, whose content is defaults.
func Help(defaults []byte) string {
	var b strings.Builder
	entries := describe(defaults)
	for _, s := range settings {
		value := " VALUE"
		if s.isSwitch() {
			value = ""
		}
		e := entries[s.key]
		fmt.Fprintf(&b, "\n  --%s%s, %s, %s (default %s)\n", s.flag(), value, s.variable(), s.key, e.value)
		for line := range strings.Lines(e.comment) {
			fmt.Fprintf(&b, "      %s", strings.TrimPrefix(strings.TrimPrefix(line, "#"), " "))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// An entry is the default and the comment of a setting in config.yaml.
type entry struct{ value, comment string }

// describe returns the entries of config.yaml by key.
func describe(defaults []byte) map[string]entry {
	entries := map[string]entry{}
	var document yaml.Node
	if yaml.Unmarshal(defaults, &document) == nil && len(document.Content) == 1 { // a test checks it
		addEntries(entries, "", document.Content[0])
	}
	return entries
}

func addEntries(to map[string]entry, prefix string, mapping *yaml.Node) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		if value.Kind == yaml.MappingNode {
			addEntries(to, prefix+key.Value+".", value)
			continue
		}
		text := value.Value
		if text == "" {
			text = "empty"
		}
		to[prefix+key.Value] = entry{value: text, comment: key.HeadComment}
	}
}
