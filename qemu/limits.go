package qemu

import (
	"context"
	"strconv"
	"strings"

	"vmand/vm"
)

// maxCPUs is the largest number of vCPUs of a machine without an IOMMU: a vCPU with an
// APIC ID above 254 gets no interrupts of devices then, and QEMU 7.2 refuses more under TCG.
const maxCPUs = 255

const (
	// tcgPhysBits is the width of the physical addresses of a guest under TCG
	// (TCG_PHYS_ADDR_BITS of QEMU), unless its CPU model names another.
	tcgPhysBits = 40
	// reservedMiB is the part of the addresses of a q35 machine that is no RAM: 2 GiB below
	// 4 GiB and the 32 GiB window of 64-bit PCI devices above the RAM. Measured with QEMU
	// 7.2: with 40 bits 990 GiB start, and 991 GiB are refused ("phys-bits too low").
	reservedMiB = 34 << 10
)

// Limits implements [vm.Machines].
func (d *Driver) Limits(ctx context.Context) vm.Limits {
	p, err := d.probe(ctx)
	if err != nil {
		return vm.Limits{}
	}
	l := vm.Limits{CPUs: min(p.Capabilities.MaxCPUs, maxCPUs)}
	host := maxRAMMiB(physBits("/"))
	switch accel := d.wouldUse(); {
	case d.opts.Accel == accelTCG, accel == vm.TCG:
		l.RAMMiB = maxRAMMiB(tcgPhysBits)
	case d.opts.Accel == accelKVM, accel == vm.KVM:
		l.RAMMiB = host
	case host != 0: // not known yet
		l.RAMMiB = max(host, maxRAMMiB(tcgPhysBits))
	}
	return l
}

// maxRAMMiB returns the RAM that a machine can have with physical addresses of so many
// bits, 0 if bits is 0.
func maxRAMMiB(bits int) int {
	if bits <= 0 || bits > 52 { // 52 is the limit of the architecture
		return 0
	}
	return max(1<<bits>>20-reservedMiB, 0)
}

// physBits returns the width of the physical addresses of the host's CPUs, 0 if it is
// unknown. A guest under KVM has the same.
func physBits(root string) int {
	word, _, _ := strings.Cut(cpuInfo(root)["address sizes"], " ")
	bits, err := strconv.Atoi(word)
	if err != nil {
		return 0
	}
	return bits
}
