package cli

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxConfig is the maximum size of a configuration file in bytes.
const maxConfig = 1 << 20

// contexts is the configuration file of the client.
type contexts struct {
	Current  string                  `yaml:"current,omitempty"`
	Contexts map[string]contextEntry `yaml:"contexts,omitempty"`
}

// A contextEntry names a daemon and the credentials for it.
type contextEntry struct {
	URL         string `yaml:"url" json:"url"`
	Token       string `yaml:"token,omitempty" json:"-"`
	TokenFile   string `yaml:"token_file,omitempty" json:"token_file,omitempty"`
	Fingerprint string `yaml:"fingerprint,omitempty" json:"fingerprint,omitempty"` // sha256:HEX
}

var (
	contextName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	fingerprint = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// configDir returns the directory of the client's configuration.
func configDir() (string, error) {
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "vman"), nil
	}
	if runtime.GOOS == "windows" {
		dir, err := os.UserConfigDir()
		return filepath.Join(dir, "vman"), err
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".config", "vman"), err
}

// readConfigFile decodes a file of the configuration directory. A file that does not
// exist leaves v unchanged.
func readConfigFile(name string, v any) (path string, err error) {
	dir, err := configDir()
	if err != nil {
		return "", nil // no home directory, so no file
	}
	path = filepath.Join(dir, name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return path, nil
	}
	if err != nil {
		return path, usagef("%v", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return path, usagef("%v", err)
	}
	if len(text) > maxConfig {
		return path, usagef("%s is larger than %s", path, formatSize(maxConfig))
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(v); err != nil && err != io.EOF {
		return path, usagef("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: ")).hint("correct or remove the file")
	}
	return path, nil
}

// readContexts reads and checks the configuration file.
func readContexts() (contexts, error) {
	var c contexts
	path, err := readConfigFile("config.yaml", &c)
	if err != nil {
		return c, err
	}
	for name, e := range c.Contexts {
		if err := e.check(name); err != nil {
			return c, usagef("%s: %v", path, err).hint("correct or remove the file")
		}
	}
	return c, nil
}

func (e contextEntry) check(name string) error {
	if !contextName.MatchString(name) {
		return usagef("context %q: a name has letters, digits, '.', '_' and '-'", name)
	}
	if _, err := parseEndpoint(e.URL); err != nil {
		return usagef("context %s: url: %v", name, err)
	}
	if e.Fingerprint != "" && !fingerprint.MatchString(e.Fingerprint) {
		return usagef("context %s: fingerprint: %q is not sha256: and 64 hexadecimal digits", name, e.Fingerprint)
	}
	return nil
}

// write replaces the configuration file. Only the user can read it.
func (c contexts) write() error {
	dir, err := configDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".config-*") // its mode is 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, "config.yaml"))
}

// names returns the names of the contexts, sorted.
func (c contexts) names() []string { return slices.Sorted(maps.Keys(c.Contexts)) }

// find returns the context with a name.
func (c contexts) find(name string) (contextEntry, error) {
	e, ok := c.Contexts[name]
	if !ok {
		f := failf(exitNotFound, "there is no context %q", name)
		if near := nearest(name, c.names()); near != "" {
			f.hint("did you mean %s?", near)
		}
		return e, f.hint("vman context ls lists the contexts")
	}
	return e, nil
}

// endpoint returns the daemon of a context. The variables for tokens are for contexts
// without one.
func (c contexts) endpoint(name string) (*endpoint, error) {
	entry, err := c.find(name)
	if err != nil {
		return nil, err
	}
	e, err := parseEndpoint(entry.URL)
	if err != nil {
		return nil, err
	}
	e.fingerprint = strings.TrimPrefix(entry.Fingerprint, "sha256:")
	switch {
	case entry.Token != "":
		e.token = entry.Token
	case entry.TokenFile != "":
		e.token, err = readToken(entry.TokenFile)
	default:
		return withToken(e, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("context %s: %w", name, err)
	}
	return e, nil
}

// where returns how the endpoint of an entry authenticates, for tables.
func (e contextEntry) credentials() string {
	switch {
	case e.Token != "":
		return "token"
	case e.TokenFile != "":
		return "file " + e.TokenFile
	}
	return cmp.Or(map[bool]string{true: "socket"}[strings.HasPrefix(e.URL, "unix:")], "environment")
}
