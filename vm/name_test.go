package vm_test

import (
	"testing"

	"vmand/vm"
)

func TestNames(t *testing.T) {
	long := "a23456789012345678901234567890123456789012345678901234567890123"
	valid := []string{"a", "web-1", "0", long}
	invalid := []string{
		long + "4",
		"",
		"-a",
		"a-",
		"A",
		"a.b",
		"a_b",
		"a/b",
		"../a",
		"a\n",
		"a b",
		"a\x00",
		"ä",
	}
	for _, name := range valid {
		if !vm.ValidName(name) {
			t.Errorf("ValidName(%q) = false; want true", name)
		}
	}
	for _, name := range invalid {
		if vm.ValidName(name) {
			t.Errorf("ValidName(%q) = true; want false", name)
		}
	}
	for name, want := range map[string]bool{
		"a.b_c-d": true,
		"a..b":    true,
		".a":      false,
		"a.":      false,
		"_":       false,
		"a/b":     false,
	} {
		if vm.ValidTemplateName(name) != want {
			t.Errorf("ValidTemplateName(%q) = %t; want %t", name, !want, want)
		}
	}
}
