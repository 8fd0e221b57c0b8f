// Package need ends a test that needs what the host does not have. VMAN_TEST_QEMU
// decides how: "required" makes it a failure, so that nothing is left out unseen, "off"
// leaves out whatever needs QEMU or a network namespace, and otherwise a test is
// skipped where a program or a privilege is missing.
package need

import (
	"cmp"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

var mode = os.Getenv("VMAN_TEST_QEMU")

// Accel returns the accelerator of the VMs of tests: VMAN_TEST_ACCEL, by default tcg, which
// every host has.
func Accel() string { return cmp.Or(os.Getenv("VMAN_TEST_ACCEL"), "tcg") }

// Off reports whether tests with QEMU and with network namespaces are left out.
func Off() bool { return mode == "off" }

// Programs ends the test unless all programs are installed. It is for QEMU's programs
// and those that run beside them.
func Programs(t testing.TB, programs ...string) {
	t.Helper()
	if Off() {
		t.Skip("VMAN_TEST_QEMU is off")
	}
	for _, program := range programs {
		_, err := exec.LookPath(program)
		NoError(t, err)
	}
}

// Namespaces ends the test if network namespaces are left out.
func Namespaces(t testing.TB) {
	t.Helper()
	if Off() {
		t.Skip("VMAN_TEST_QEMU is off")
	}
}

// Privilege ends the test if err says that this user is not permitted to do
// something, such as mount a file system.
func Privilege(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, syscall.EPERM) {
		NoError(t, err)
	}
}

// NoError ends the test if err, which says what the host lacks, is not nil.
func NoError(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case mode == "required":
		t.Fatalf("%v, and VMAN_TEST_QEMU is required", err)
	default:
		t.Skip(err)
	}
}
