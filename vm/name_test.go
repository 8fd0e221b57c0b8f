package vm_test

import (
	"testing"

	"vmand/vm"
)

func TestNames(t *testing.T) {
	long := "a23456789012345678901234567890123456789012345678901234567890123"
	for name, want := range map[string]bool{"a": true, "web-1": true, "0": true, long: true, long + "4": false, "": false, "-a": false, "a-": false,
		"A": false, "a.b": false, "a_b": false, "a/b": false, "../a": false, "a\n": false, "a b": false, "a\x00": false, "ä": false} {
		if vm.ValidName(name) != want {
			t.Errorf("ValidName(%q) = %t", name, !want)
		}
	}
	for name, want := range map[string]bool{"a.b_c-d": true, ".a": false, "a.": false, "_": false, "a..b": true, "a/b": false} {
		if vm.ValidTemplateName(name) != want {
			t.Errorf("ValidTemplateName(%q) = %t", name, !want)
		}
	}
}
