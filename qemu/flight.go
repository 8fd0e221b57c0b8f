package qemu

import (
	"context"

	"vmand/vm"
)

// maxSerial is how much in bytes of what a guest wrote to its console is kept
// with a recording.
const maxSerial = 8 << 10

// Flight implements [vm.Driver].
func (d *Driver) Flight(_ context.Context, id string) (vm.Flight, error) {
	if !vm.ValidName(id) {
		return vm.Flight{}, nil
	}
	s, err := d.session(id)
	if err != nil {
		return vm.Flight{}, fault(vm.CodeOperationFailed, err, "look for the QEMU process of vm %s", id)
	}
	now := vm.Recording{Serial: d.endOf(vmSerialLog(id), maxSerial), Stderr: d.endOf(vmQEMULog(id), maxStderr)}
	if s != nil {
		now.PID = s.proc.pid
	}
	return vm.Flight{Now: now}, nil
}
