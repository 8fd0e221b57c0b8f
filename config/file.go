package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readFile returns the content and the name of the configuration file. If asked is
// empty and [DefaultFile] does not exist, both are empty.
func readFile(asked string) (content []byte, name string, err error) {
	if asked != "" {
		content, err = os.ReadFile(asked)
		if err != nil {
			return nil, "", fmt.Errorf("--config: %w", err)
		}
		return content, asked, nil
	}
	content, err = os.ReadFile(DefaultFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read the configuration: %w", err)
	}
	return content, DefaultFile, nil
}

// parseFile returns the valid entries of a configuration file as nested maps, and
// complaints about the others.
func parseFile(content []byte, name string) (given map[string]any, wrong []string) {
	d := yaml.NewDecoder(bytes.NewReader(content))
	if err := d.Decode(&given); err != nil && !errors.Is(err, io.EOF) {
		return nil, []string{fmt.Sprintf("%s: %v", name, err)}
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		wrong = append(wrong, name+": must contain one document: remove everything after the --- line")
	}
	return given, append(wrong, dropUnknown(given, "", name)...)
}

// dropUnknown removes from m, the entries under prefix, those that are not
// settings, and returns a complaint about each.
func dropUnknown(m map[string]any, prefix, file string) (wrong []string) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		key, fix := prefix+name, ""
		section, isSection := m[name].(map[string]any)
		switch {
		case strings.Contains(name, ".") && known(key):
			fix = "write the section and the key on two lines"
		case known(key) && m[name] == nil:
			fix = `has no value: add one, use "" for an empty value, or remove the key`
		case known(key) && isSection:
			fix = "takes a value, not a section"
		case known(key), knownSection(key) && m[name] == nil:
			continue
		case knownSection(key) && isSection:
			wrong = append(wrong, dropUnknown(section, key+".", file)...)
			continue
		case knownSection(key):
			fix = "is a section: write its keys below it"
		default:
			fix = fmt.Sprintf("is unknown; did you mean %s?", nearest(key).key)
		}
		wrong = append(wrong, fmt.Sprintf("%s (%s): %s", key, file, fix))
		delete(m, name)
	}
	return wrong
}

// holds reports whether nested maps have a value for a dotted key.
func holds(m map[string]any, key string) bool {
	name, rest, nested := strings.Cut(key, ".")
	if section, ok := m[name].(map[string]any); ok && nested {
		return holds(section, rest)
	}
	return m[name] != nil
}

func known(key string) bool {
	return slices.ContainsFunc(settings, func(s setting) bool { return s.key == key })
}

func knownSection(key string) bool {
	return slices.ContainsFunc(settings, func(s setting) bool { return strings.HasPrefix(s.key, key+".") })
}
