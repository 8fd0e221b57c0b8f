package qemu

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmand/vm"
)

func TestLimitsAreThoseOfQEMU(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{Accel: accelTCG})
	limits := d.Limits(t.Context())
	if want := (vm.Limits{CPUs: 255, RAMMiB: 990 << 10}); limits != want {
		t.Fatalf("limits are %+v, want %+v", limits, want)
	}
	caps, err := d.probe(t.Context())
	must(t, err)
	// Memory that is never reserved, so the size does not matter to the host.
	start := func(cpus, ramMiB int) error {
		ram := strconv.Itoa(ramMiB) + "M"
		x, err := d.examine(t.Context(), caps.Binary.Path,
			"-object", "memory-backend-ram,id=ram,reserve=off,size="+ram,
			"-machine", caps.Capabilities.Machine+",memory-backend=ram", "-m", ram,
			"-accel", "tcg", "-cpu", cpuModel(vm.TCG), "-smp", strconv.Itoa(cpus))
		if err == nil {
			x.end()
		}
		return err
	}
	if err := start(limits.CPUs, 64); err != nil {
		t.Errorf("QEMU refuses the largest number of vCPUs: %v", err)
	}
	if err := start(1, limits.RAMMiB); err != nil {
		t.Errorf("QEMU refuses the largest RAM: %v", err)
	}
	if err := start(limits.CPUs+1, 64); err == nil || !strings.Contains(err.Error(), "X2APIC") {
		t.Errorf("QEMU accepts one vCPU more: %v", err)
	}
	if err := start(1, limits.RAMMiB+1); err == nil || !strings.Contains(err.Error(), "phys-bits") {
		t.Errorf("QEMU accepts one MiB more: %v", err)
	}
}

func TestRAMLimitFollowsTheAddressBits(t *testing.T) {
	for bits, want := range map[int]int{0: 0, 35: 0, 36: 30 << 10, 39: 478 << 10, 40: 990 << 10, 46: 64<<20 - 34<<10, 64: 0} {
		if got := maxRAMMiB(bits); got != want {
			t.Errorf("%d bits allow %d MiB, want %d", bits, got, want)
		}
	}
	root := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "proc"), 0o755))
	if got := physBits(root); got != 0 {
		t.Errorf("without a file there are %d address bits", got)
	}
	cpus := "processor\t: 0\nflags\t\t: fpu\naddress sizes\t: 46 bits physical, 48 bits virtual\n\n" +
		"processor\t: 1\naddress sizes\t: 39 bits physical, 48 bits virtual\n"
	must(t, os.WriteFile(filepath.Join(root, "proc/cpuinfo"), []byte(cpus), 0o644))
	if got := physBits(root); got != 46 {
		t.Errorf("there are %d address bits, want 46", got)
	}
}

// TestProbesOfAnOlderVmandAreCompleted saves the probes without the limits, as an older
// vmand did.
func TestProbesOfAnOlderVmandAreCompleted(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{Accel: accelTCG})
	p, err := d.probe(t.Context())
	must(t, err)
	p.Capabilities.MaxCPUs = 0
	d.saveProbes(p)
	must(t, d.Close())
	again, err := New(t.Context(), d.opts, d.log)
	must(t, err)
	defer again.Close()
	if l := again.Limits(t.Context()); l.CPUs != 255 {
		t.Errorf("limits are %+v", l)
	}
}

func TestLimitsAreUnknownWithoutQEMU(t *testing.T) {
	d := newDriver(t, Options{Binary: "no-such-qemu"})
	if l := d.Limits(t.Context()); l != (vm.Limits{}) {
		t.Errorf("limits are %+v", l)
	}
}
