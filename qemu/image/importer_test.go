package image

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func testImporter(t testing.TB, o Options) (*Importer, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	i, err := NewImporter(root, o)
	if err != nil {
		t.Fatal(err)
	}
	return i, dir
}

// wantFiles checks the names of all files in a directory.
func wantFiles(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, filepath.Base(e.Name()))
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}
