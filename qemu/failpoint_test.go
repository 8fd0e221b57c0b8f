package qemu

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

func TestEveryFailPointIsListed(t *testing.T) {
	files, err := filepath.Glob("*.go")
	must(t, err)
	call := regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`)
	there, listed := map[string]bool{}, map[string]bool{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		must(t, err)
		for _, m := range call.FindAllSubmatch(b, -1) {
			there[string(m[1])] = true
		}
	}
	for _, names := range FailPoints {
		for _, name := range names {
			listed[name] = true
		}
	}
	if !maps.Equal(there, listed) || len(there) < 10 {
		t.Errorf("the source has %q\nFailPoints lists %q", slices.Sorted(maps.Keys(there)), slices.Sorted(maps.Keys(listed)))
	}
}
