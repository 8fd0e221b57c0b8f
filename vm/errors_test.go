package vm_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"vmand/vm"
)

func TestWhatIsRecordedOfAnErrorIsBounded(t *testing.T) {
	for name, err := range map[string]error{
		"a fault":               &vm.Fault{Code: vm.CodeOperationFailed, Detail: "QEMU refused", Err: errors.New(strings.Repeat("ä", 1<<20))},
		"an error with a class": fmt.Errorf("%w: %s", vm.ErrUnavailable, strings.Repeat("x", 5<<10)),
	} {
		p := vm.ProblemOf(err)
		if len(p.Detail) > 4<<10 || len(p.Detail) < 4000 || !utf8.ValidString(p.Detail) || !strings.HasSuffix(p.Detail, "…") {
			t.Errorf("%s: %d bytes, the last are %q", name, len(p.Detail), p.Detail[len(p.Detail)-10:])
		}
	}
	if p := vm.ProblemOf(&vm.Fault{Code: vm.CodeBusy, Detail: "short"}); p.Detail != "short" {
		t.Errorf("a short one is %q", p.Detail)
	}
}
