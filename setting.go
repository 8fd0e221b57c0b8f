package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// readConfig returns the configuration from the flags, the environment, the
// file and the defaults; the first that says something counts. The error names
// everything that is wrong at once.
//
// viper finds the value that counts. What a value may be is looked at here: it
// takes 5 for a duration of 5 ns, 7.9 for 7, and a number for a section.
func readConfig(flags *pflag.FlagSet, environ []string, file string) (Config, error) {
	var c Config
	content, name, err := readFile(file)
	if err != nil {
		return c, err
	}
	c.File = name
	given, wrong := parseFile(content, name)
	wrong = append(wrong, unknownVariables(environ)...)
	defaults, _ := parseFile(defaultConfig, "config.yaml") // a test reads it
	in := input{viper: viper.New(), flags: flags, given: given, file: name}
	in.viper.AllowEmptyEnv(true) // VMAN_LISTEN= turns TCP off
	if err := errors.Join(in.viper.MergeConfigMap(defaults), in.viper.MergeConfigMap(given)); err != nil {
		return c, fmt.Errorf("read the configuration: %w", err)
	}
	fixes := map[string]string{} // by key
	for _, s := range settings {
		if err := errors.Join(in.viper.BindEnv(s.key, s.variable()), in.viper.BindPFlag(s.key, flags.Lookup(s.flag()))); err != nil {
			return c, fmt.Errorf("read the configuration: %w", err)
		}
		fixes[s.key] = assign(s.to(&c), in.viper.Get(s.key))
	}
	for key, fix := range c.complete() {
		fixes[key] = fix
	}
	for _, s := range settings {
		if fixes[s.key] == "" && s.check != nil {
			fixes[s.key] = s.check(&c)
		}
		if fixes[s.key] != "" {
			wrong = append(wrong, in.complaint(s, fixes[s.key]))
		}
	}
	if len(wrong) > 0 {
		return c, errors.New("the configuration cannot be used:\n  " + strings.Join(wrong, "\n  "))
	}
	return c, nil
}

// An input is where the values come from.
type input struct {
	viper *viper.Viper
	flags *pflag.FlagSet
	given map[string]any // by the file
	file  string         // its name
}

// complaint names a setting, its value, where that comes from, and how to mend it.
func (in input) complaint(s setting, fix string) string {
	source := "default"
	if holds(in.given, s.key) {
		source = in.file
	}
	if _, ok := os.LookupEnv(s.variable()); ok {
		source = s.variable()
	}
	if in.flags.Changed(s.flag()) {
		source = "--" + s.flag()
	}
	return fmt.Sprintf("%s: %q (%s): %s", s.key, fmt.Sprint(in.viper.Get(s.key)), source, fix)
}

// holds reports whether nested maps have a value for a dotted key.
func holds(m map[string]any, key string) bool {
	name, rest, nested := strings.Cut(key, ".")
	if section, ok := m[name].(map[string]any); ok && nested {
		return holds(section, rest)
	}
	return m[name] != nil
}

// assign puts a value into the setting that to points to. It says how to write
// the value if it is not of the setting's type.
func assign(to, value any) (fix string) {
	text, isText := value.(string)
	switch to := to.(type) {
	case *string:
		*to = text
		if !isText {
			return "must be text: put it in quotes"
		}
	case *bool:
		return assignBool(to, value)
	case *int:
		n, err := strconv.Atoi(fmt.Sprint(value))
		*to = n
		if err != nil {
			return "must be a whole number"
		}
	case *time.Duration:
		d, err := time.ParseDuration(text)
		*to = d
		if !isText || err != nil {
			return fmt.Sprintf("must be a duration with its unit, such as %s", likelyDuration(value))
		}
	case *[]string:
		return assignList(to, value)
	case *slog.Level:
		level, ok := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}[text]
		*to = level
		if !ok {
			return "must be one of debug, info, warn, error"
		}
	}
	return ""
}

func likelyDuration(value any) string {
	text := fmt.Sprint(value)
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return text + "s"
	}
	return "5s, 90m or 720h"
}

func assignBool(to *bool, value any) (fix string) {
	switch value {
	case true, "true", "1":
		*to = true
	case false, "false", "0":
		*to = false
	default:
		return "must be true or false"
	}
	return ""
}

func assignList(to *[]string, value any) (fix string) {
	const must = "must be a list of words, such as [one, two]"
	switch value := value.(type) {
	case string:
		for word := range strings.SplitSeq(value, ",") {
			if word = strings.TrimSpace(word); word != "" {
				*to = append(*to, word)
			}
		}
	case []any:
		for _, element := range value {
			word, ok := element.(string)
			if !ok {
				return must
			}
			*to = append(*to, word)
		}
	default:
		return must
	}
	return ""
}

// parseFile returns the settings in a configuration file as nested maps, without
// what is wrong in them, and what is wrong.
func parseFile(content []byte, name string) (given map[string]any, wrong []string) {
	d := yaml.NewDecoder(bytes.NewReader(content))
	if err := d.Decode(&given); err != nil && !errors.Is(err, io.EOF) {
		return nil, []string{fmt.Sprintf("%s: %v", name, err)}
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		wrong = append(wrong, name+": must hold one document: remove what follows the line with ---")
	}
	return given, append(wrong, dropUnknown(given, "", name)...)
}

// dropUnknown removes from m, the settings under prefix, what no setting can be.
func dropUnknown(m map[string]any, prefix, file string) (wrong []string) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		key, fix := prefix+name, ""
		section, isSection := m[name].(map[string]any)
		switch {
		case strings.Contains(name, ".") && known(key):
			fix = "write it as a section and a key in it, on two lines"
		case known(key) && m[name] == nil:
			fix = `has no value: write one, write "" for an empty one, or leave the key out`
		case known(key) && isSection:
			fix = "takes a value and is not a section"
		case known(key), knownSection(key) && m[name] == nil:
			continue
		case knownSection(key) && isSection:
			wrong = append(wrong, dropUnknown(section, key+".", file)...)
			continue
		case knownSection(key):
			fix = "is a section: write its keys under it"
		default:
			fix = fmt.Sprintf("is not known; did you mean %s?", nearest(key).key)
		}
		wrong = append(wrong, fmt.Sprintf("%s (%s): %s", key, file, fix))
		delete(m, name)
	}
	return wrong
}

func known(key string) bool {
	return slices.ContainsFunc(settings, func(s setting) bool { return s.key == key })
}

func knownSection(key string) bool {
	return slices.ContainsFunc(settings, func(s setting) bool { return strings.HasPrefix(s.key, key+".") })
}

// otherVariables are no settings and no mistakes: one that names a fail point
// (package vm), in a vmand that is built with them.
var otherVariables []string

// unknownVariables complains about variables that look like vmand's and are not:
// one that is misspelled would be ignored without a word.
func unknownVariables(environ []string) (wrong []string) {
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || strings.HasPrefix(name, testEnvPrefix) || slices.Contains(otherVariables, name) {
			continue
		}
		if !slices.ContainsFunc(settings, func(s setting) bool { return s.variable() == name }) {
			wrong = append(wrong, fmt.Sprintf("%s (environment): is not known; did you mean %s?", name, nearest(strings.TrimPrefix(name, envPrefix)).variable()))
		}
	}
	slices.Sort(wrong)
	return wrong
}

// nearest returns the setting one of whose names takes the fewest changes of one
// letter: its key, a part of that, or its variable.
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

// distance returns how many letters must be put in, left out or replaced to make
// b of a (Levenshtein).
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
