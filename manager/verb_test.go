package manager

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"vmand/vm"
)

func TestEveryKindHasAVerb(t *testing.T) {
	verbs := map[vm.Kind]*verb{}
	for _, v := range allVerbs() {
		if verbs[v.kind] != nil {
			t.Errorf("kind %s has two verbs", v.kind)
		}
		verbs[v.kind] = v
	}
	for _, kind := range vm.Kinds {
		v := verbs[kind]
		if v == nil {
			t.Errorf("kind %s has no verb", kind)
			continue
		}
		for what, missing := range map[string]bool{
			"a timeout": v.timeout <= 0,
			"a cleanup": v.cleanup == nil,
			"reached":   v.reached == nil,
			"answer":    v.answer == "",
		} {
			if missing {
				t.Errorf("the verb of kind %s lacks %s", kind, what)
			}
		}
	}
	if len(verbs) != len(vm.Kinds) {
		t.Errorf("%d verbs for %d kinds", len(verbs), len(vm.Kinds))
	}
}

// vm.Kinds must list every constant of type Kind: the compiler does not check that.
func TestKindsListsEveryKind(t *testing.T) {
	source, err := os.ReadFile("../vm/operation.go")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^\t\w+ +Kind += "([^"]+)"`).FindAllSubmatch(source, -1)
	if len(found) < 30 {
		t.Fatalf("found only %d constants of type Kind", len(found))
	}
	for _, m := range found {
		if !slices.Contains(vm.Kinds, vm.Kind(m[1])) {
			t.Errorf("vm.Kinds lacks %s", m[1])
		}
	}
}
