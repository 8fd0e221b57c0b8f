package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"vmand/qemu/qmp"
	"vmand/vm"
)

// codeOf returns the code of the fault in err, "" if it has none.
func codeOf(err error) vm.Code {
	var f *vm.Fault
	if errors.As(err, &f) {
		return f.Code
	}
	return ""
}

func TestErrorsOfTheMonitorHaveAClass(t *testing.T) {
	for _, c := range []struct {
		err  error
		want vm.Code
	}{
		{nil, ""},
		{&qmp.Error{Class: qmp.GenericError}, vm.CodeOperationFailed},
		{errGone, vm.CodeState},
		{fmt.Errorf("%w: %w", errGone, qmp.ErrNotSent), vm.CodeState},
		{fmt.Errorf("%w: %w", errGone, qmp.ErrUnknownOutcome), vm.CodeOperationFailed},
		{fmt.Errorf("x: %w: %w", qmp.ErrUnknownOutcome, context.DeadlineExceeded), vm.CodeQEMUUnresponsive},
		{context.Canceled, vm.CodeCancelled},
		{errImpostor, vm.CodeQEMUUnresponsive},
		{fault(vm.CodeInvalid, nil, "x"), vm.CodeInvalid},
	} {
		if got := codeOf(monitorFault("web", "stop", c.err)); got != c.want {
			t.Errorf("%v has code %q, want %q", c.err, got, c.want)
		}
	}
}

func TestErrorsOfFilesHaveAClass(t *testing.T) {
	for _, c := range []struct {
		err  error
		want vm.Code
	}{
		{nil, ""},
		{&fs.PathError{Err: syscall.ENOSPC}, vm.CodeInsufficientStorage},
		{syscall.EDQUOT, vm.CodeInsufficientStorage},
		{fs.ErrNotExist, vm.CodeNotFound},
		{fs.ErrPermission, vm.CodeOperationFailed},
		{context.Canceled, vm.CodeCancelled},
		{fault(vm.CodeInvalid, nil, "x"), vm.CodeInvalid},
	} {
		if got := codeOf(fileFault(c.err, "x")); got != c.want {
			t.Errorf("%v has code %q, want %q", c.err, got, c.want)
		}
	}
}
