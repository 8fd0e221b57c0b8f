package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"vmand/qemu/qmp"
	"vmand/vm"
)

// errGone means that the QEMU process has ended.
var errGone = errors.New("the QEMU process has ended")

// fault returns a fault with a cause, which may be nil.
func fault(code vm.Code, cause error, format string, args ...any) *vm.Fault {
	return &vm.Fault{Code: code, Detail: fmt.Sprintf(format, args...), Err: cause}
}

// monitorFault gives an error of a QMP command its class. The message names the VM.
func monitorFault(id, command string, err error) error {
	var known *vm.Fault
	var refused *qmp.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errors.As(err, &refused):
		return fault(vm.CodeOperationFailed, err, "QEMU of VM %s refused %s", id, command)
	case errors.Is(err, errGone) && errors.Is(err, qmp.ErrUnknownOutcome): // the command may have had its effect
		return fault(vm.CodeOperationFailed, err, "QEMU of VM %s ended before it answered %s", id, command)
	case errors.Is(err, errGone):
		return fault(vm.CodeState, err, "VM %s does not run", id)
	case errors.Is(err, context.Canceled):
		return fault(vm.CodeCancelled, err, "%s of VM %s was cancelled", command, id)
	default:
		return fault(vm.CodeQEMUUnresponsive, err, "QEMU of VM %s did not answer %s", id, command)
	}
}

// fileFault gives an error of the file system its class.
func fileFault(err error, format string, args ...any) error {
	var known *vm.Fault
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errors.Is(err, context.Canceled):
		return fault(vm.CodeCancelled, err, format, args...)
	case errors.Is(err, context.DeadlineExceeded):
		return fault(vm.CodeUnavailable, err, format, args...)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault(vm.CodeInsufficientStorage, err, format, args...)
	case errors.Is(err, fs.ErrNotExist):
		return fault(vm.CodeNotFound, err, format, args...)
	default:
		return fault(vm.CodeOperationFailed, err, format, args...)
	}
}

// say reports a step. report may be nil.
func say(report vm.Report, step, format string, args ...any) {
	if report != nil {
		report(step, fmt.Sprintf(format, args...))
	}
}
