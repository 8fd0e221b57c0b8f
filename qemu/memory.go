package qemu

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"vmand/vm"
)

// The memory in MiB that a QEMU process needs besides the guest's: its own heap and,
// under TCG, the translated code (measured with an idle guest: 30 and 110).
const (
	overheadKVM = 64
	overheadTCG = 128
)

// admitMemory fails if a VM needs more memory than available, in MiB.
func admitMemory(s vm.Spec, available int) error {
	overhead := overheadTCG
	if s.Accel == vm.KVM {
		overhead = overheadKVM
	}
	if s.RAMMiB+overhead <= available {
		return nil
	}
	f := fault(vm.CodeInsufficientMemory, nil,
		"VM %s needs %d MiB of memory (%d for the guest, %d for QEMU) and the host has %d MiB available",
		s.ID, s.RAMMiB+overhead, s.RAMMiB, overhead, available)
	f.Hint = "stop another VM or use a smaller template"
	return f
}

// memAvailable returns the memory in MiB that the host has without swapping
// (MemAvailable in proc(5)).
func memAvailable() (int, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:")
		if !ok {
			continue
		}
		kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(rest, "kB")))
		if err != nil {
			return 0, fmt.Errorf("read /proc/meminfo: %w", err)
		}
		return kib / 1024, nil
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}
