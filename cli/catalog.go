package cli

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"io"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"vmand/openapi/client"
)

//go:embed catalog.yaml
var builtinCatalog []byte

const (
	// maxChecksums is the maximum size of a file with checksums in bytes.
	maxChecksums = 1 << 20
	// checksumsPatience limits how long a file with checksums may take.
	checksumsPatience = 30 * time.Second
)

// A catalogEntry is a cloud image that can be downloaded.
type catalogEntry struct {
	Name      string `yaml:"-" json:"name"`
	URL       string `yaml:"url" json:"url"`
	Checksums string `yaml:"checksums,omitempty" json:"checksums,omitempty"`
	SHA256    string `yaml:"sha256,omitempty" json:"sha256,omitempty"`
	SHA512    string `yaml:"sha512,omitempty" json:"sha512,omitempty"`
	User      string `yaml:"user,omitempty" json:"user,omitempty"`
}

// readCatalog returns the built-in entries and those of the user.
func readCatalog() (map[string]catalogEntry, error) {
	entries := map[string]catalogEntry{}
	if err := yaml.Unmarshal(builtinCatalog, &entries); err != nil {
		return nil, err
	}
	if _, err := readConfigFile("catalog.yaml", &entries); err != nil {
		return nil, err
	}
	for name, e := range entries {
		e.Name = name
		entries[name] = e
	}
	return entries, nil
}

func (a *app) catalogCommand() *cobra.Command {
	columns := []column[catalogEntry]{
		{head: "NAME", cell: func(e catalogEntry) string { return e.Name }},
		{head: "USER", cell: func(e catalogEntry) string { return e.User }},
		{head: "URL", cell: func(e catalogEntry) string { return e.URL }},
	}
	return &cobra.Command{
		Use:   "catalog",
		Short: "List the cloud images that launch and import know by name",
		Long: "List the cloud images that launch and import know by name. The file catalog.yaml beside the\n" +
			"configuration file of vman adds to them: NAME: {url: …, checksums: …, user: …}.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			entries, err := readCatalog()
			if err != nil {
				return err
			}
			l := newList(a.out, func(e catalogEntry) string { return e.Name }, columns)
			for _, name := range sortedKeys(entries) {
				raw, err := json.Marshal(entries[name])
				if err == nil {
					err = l.add(entries[name], raw)
				}
				if err != nil {
					return err
				}
			}
			return l.end()
		},
	}
}

// fromCatalog completes the request for an image with the URL and the checksum of the
// catalog.
func (a *app) fromCatalog(ctx context.Context, body *client.CreateImage) error {
	entries, err := readCatalog()
	if err != nil {
		return err
	}
	e, ok := entries[body.Name]
	if !ok {
		f := failf(exitNotFound, "the catalog has no image %q", body.Name)
		if near := nearest(body.Name, sortedKeys(entries)); near != "" {
			f.hint("did you mean %s?", near)
		}
		return f.hint("vman image catalog lists the names; name a URL for other images")
	}
	body.URL = &e.URL
	if body.SHA256 != nil || body.SHA512 != nil {
		return nil
	}
	body.SHA256, body.SHA512 = nonEmpty(e.SHA256), nonEmpty(e.SHA512)
	if e.Checksums == "" || body.SHA256 != nil || body.SHA512 != nil {
		return nil
	}
	a.progress.step("image "+body.Name, "reading the checksum")
	text, err := fetch(ctx, e.Checksums)
	if err != nil {
		return failf(exitFailed, "the checksum of image %s cannot be read: %v", body.Name, err).
			hint("without a connection to the Internet, upload an image: vman image upload FILE")
	}
	sum := findSum(text, path.Base(e.URL))
	switch len(sum) {
	case 64:
		body.SHA256 = &sum
	case 128:
		body.SHA512 = &sum
	default:
		return failf(exitFailed, "%s has no checksum for %s", e.Checksums, path.Base(e.URL)).hint("set --sha256 or --sha512")
	}
	return nil
}

var (
	sumOnly  = regexp.MustCompile(`^(?:[0-9a-fA-F]{64}|[0-9a-fA-F]{128})$`)
	sumFirst = regexp.MustCompile(`^([0-9a-fA-F]{64}|[0-9a-fA-F]{128}) [ *]?(.+)$`)
	sumLast  = regexp.MustCompile(`^SHA(?:256|512) \((.+)\) = ([0-9a-fA-F]{64}|[0-9a-fA-F]{128})$`)
)

// findSum returns the checksum of a file in the output of sha256sum or sha512sum, with or
// without --tag, or the only word of a file for one image; empty if there is none.
func findSum(text []byte, file string) string {
	if only := strings.TrimSpace(string(text)); sumOnly.MatchString(only) {
		return strings.ToLower(only)
	}
	for line := range bytes.Lines(text) {
		line := strings.TrimSpace(string(line))
		if m := sumFirst.FindStringSubmatch(line); m != nil && path.Base(m[2]) == file {
			return strings.ToLower(m[1])
		}
		if m := sumLast.FindStringSubmatch(line); m != nil && path.Base(m[1]) == file {
			return strings.ToLower(m[2])
		}
	}
	return ""
}

// fetch reads a small file from the web.
func fetch(ctx context.Context, where string) ([]byte, error) {
	ctx, stop := context.WithTimeout(ctx, checksumsPatience)
	defer stop()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, err
	}
	c := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	resp, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, failf(exitFailed, "%s answers %s", where, resp.Status)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxChecksums+1))
	if err == nil && len(text) > maxChecksums {
		err = failf(exitFailed, "%s is larger than %s", where, formatSize(maxChecksums))
	}
	return text, err
}
