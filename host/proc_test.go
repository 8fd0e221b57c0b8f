package host

import (
	"strings"
	"testing"
)

func TestBootID(t *testing.T) {
	stat := func(start string) string {
		return "1 (a ) b) S " + strings.Repeat("7 ", 18) + start + " 8 9"
	}
	for name, tt := range map[string]struct{ stat, want string }{
		"a host":          {stat("12"), "uuid"},
		"a container":     {stat("548811"), "uuid+548811"},
		"an unknown form": {"1", "uuid"},
	} {
		if got := bootID("uuid\n", tt.stat); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	a, err := BootID()
	b, err2 := BootID()
	if err != nil || err2 != nil || a == "" || a != b {
		t.Errorf("BootID returns %q, %v, then %q, %v", a, err, b, err2)
	}
}
