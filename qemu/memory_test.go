package qemu

import (
	"strings"
	"testing"

	"vmand/vm"
)

func TestAVMThatDoesNotFitIsNotAdmitted(t *testing.T) {
	for _, c := range []struct {
		accel     vm.Accel
		available int
		fits      bool
	}{
		{vm.KVM, 512 + overheadKVM, true},
		{vm.KVM, 512 + overheadKVM - 1, false},
		{vm.TCG, 512 + overheadTCG, true},
		{vm.TCG, 512 + overheadTCG - 1, false},
	} {
		spec := testSpec()
		spec.Accel = c.accel
		err := admitMemory(spec, c.available)
		if (err == nil) != c.fits {
			t.Errorf("%s with %d MiB: %v", c.accel, c.available, err)
		}
		if !c.fits && (codeOf(err) != vm.CodeInsufficientMemory || !strings.Contains(err.Error(), "512")) {
			t.Errorf("%s with %d MiB: %v has code %q", c.accel, c.available, err, codeOf(err))
		}
	}
}

func TestTheHostsMemoryIsKnown(t *testing.T) {
	if mib, err := memAvailable(); err != nil || mib < 16 || mib > 1<<30 {
		t.Errorf("%d MiB, %v", mib, err)
	}
}
