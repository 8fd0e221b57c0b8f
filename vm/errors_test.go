package vm_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"vmand/vm"
)

func TestProblemDetailIsBounded(t *testing.T) {
	long := map[string]error{
		"a fault": &vm.Fault{
			Code:   vm.CodeOperationFailed,
			Detail: "QEMU refused",
			Err:    errors.New(strings.Repeat("ä", 1<<20)),
		},
		"an error with a class": fmt.Errorf("%w: %s", vm.ErrUnavailable, strings.Repeat("x", 5<<10)),
	}
	for name, err := range long {
		d := vm.ProblemOf(err).Detail
		if len(d) > 4<<10 || len(d) < 4000 || !utf8.ValidString(d) || !strings.HasSuffix(d, "…") {
			t.Errorf("%s: the detail has %d bytes and ends with %q; want valid UTF-8 of 4,000 to 4,096 bytes",
				name, len(d), d[len(d)-10:])
		}
	}
	if p := vm.ProblemOf(&vm.Fault{Code: vm.CodeBusy, Detail: "short"}); p.Detail != "short" {
		t.Errorf("short detail is %q", p.Detail)
	}
}

func TestHasCode(t *testing.T) {
	busy := &vm.Fault{Code: vm.CodeBusy, Detail: "busy"}
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"a fault":                   {busy, true},
		"a wrapped fault":           {fmt.Errorf("start: %w", busy), true},
		"a fault of another code":   {&vm.Fault{Code: vm.CodeState, Err: vm.ErrBusy}, false},
		"an error that is no fault": {vm.ErrBusy, false},
		"no error":                  {nil, false},
	} {
		if got := vm.HasCode(tt.err, vm.CodeBusy); got != tt.want {
			t.Errorf("%s: HasCode is %v, want %v", name, got, tt.want)
		}
	}
}
