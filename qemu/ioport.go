package qemu

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"vmand/vm"
)

// The ports through which the registers of PCI devices are read and written.
const (
	pciAddress = 0xcf8
	pciData    = 0xcfc
)

// Registers of the power management of the q35 board: two of the LPC bridge, function
// 0 of slot 0x1f, as addresses for pciAddress, and some of the block whose port the first
// of them has.
const (
	lpcPMBase  = 0x8000f840
	lpcACPI    = 0x8000f844
	pmEnable   = 0x02 // which events raise an interrupt, such as the power button
	pmControl  = 0x04
	pmGPE      = 0x28 // enabled general-purpose events, such as the hot-plug of PCI devices
	pmBaseMask = 0xff80
)

// A portWrite writes a value of 1, 2 or 4 bytes to an I/O port of the machine.
type portWrite struct {
	port, bytes int
	value       uint32
}

// portSizes are the letters of the human monitor for the size of a value.
var portSizes = map[int]string{1: "b", 2: "h", 4: "w"}

// writePorts writes to I/O ports, for which QMP has no command.
func (s *session) writePorts(ctx context.Context, writes ...portWrite) error {
	for _, w := range writes {
		output, err := s.human(ctx, fmt.Sprintf("o /%s %#x %#x", portSizes[w.bytes], w.port, w.value))
		if err != nil {
			return err
		}
		if output != "" {
			return fault(vm.CodeOperationFailed, nil, "QEMU of VM %s cannot write port %#x: %s", s.id, w.port, output)
		}
	}
	return nil
}

// readPort reads 1, 2 or 4 bytes of an I/O port.
func (s *session) readPort(ctx context.Context, port, bytes int) (uint32, error) {
	output, err := s.human(ctx, fmt.Sprintf("i /%s %#x", portSizes[bytes], port))
	if err != nil {
		return 0, err
	}
	_, text, _ := strings.Cut(output, " = 0x")
	value, err := strconv.ParseUint(text, 16, 32)
	if err != nil {
		return 0, fault(vm.CodeOperationFailed, err, "QEMU of VM %s cannot read port %#x: %s", s.id, port, output)
	}
	return uint32(value), nil
}

// savePM returns the writes that restore the power management of a suspended machine.
func (s *session) savePM(ctx context.Context) ([]portWrite, error) {
	var writes []portWrite
	lpc := func(register uint32) (value uint32, err error) {
		if err = s.writePorts(ctx, portWrite{pciAddress, 4, register}); err == nil {
			value, err = s.readPort(ctx, pciData, 4)
		}
		writes = append(writes, portWrite{pciAddress, 4, register}, portWrite{pciData, 4, value})
		return value, err
	}
	base, err := lpc(lpcPMBase)
	if err != nil {
		return nil, err
	}
	if _, err := lpc(lpcACPI); err != nil {
		return nil, err
	}
	for _, r := range []struct{ offset, bytes int }{{pmControl, 2}, {pmEnable, 2}, {pmGPE, 4}} {
		port := int(base&pmBaseMask) + r.offset
		value, err := s.readPort(ctx, port, r.bytes)
		if err != nil {
			return nil, err
		}
		if r.offset == pmControl {
			value &= 1 // its other bits put the machine to sleep
		}
		writes = append(writes, portWrite{port, r.bytes, value})
	}
	return writes, nil
}

// restorePM restores the power management of a machine after a wake-up. QEMU 7.2 resets
// the LPC bridge, and its firmware sets up the bridge only at a boot: without this, a
// guest that was suspended once sees no power button and cannot suspend itself again. The
// vCPUs are halted meanwhile: the guest may be between writing the address of a register
// of a PCI device and its value.
func (s *session) restorePM(ctx context.Context, pm []portWrite) error {
	if err := s.stop(ctx); err != nil {
		return err
	}
	address, err := s.readPort(ctx, pciAddress, 4)
	if err == nil {
		err = s.writePorts(ctx, append(pm, portWrite{pciAddress, 4, address})...)
	}
	return errors.Join(err, s.cont(ctx))
}
