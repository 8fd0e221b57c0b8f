// Package test has what no single package owns: the real binary, driven over
// its API as a user does, with real QEMU and a real Linux guest, killed and
// started again; and the benchmarks.
package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binary is the vmand under test, guests the directory of the guest's disks.
var binary, guests string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getenv("VMAN_TEST_QEMU") == "off" {
		fmt.Println("these tests need QEMU and VMAN_TEST_QEMU is off")
		return 0
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil && os.Getenv("VMAN_TEST_QEMU") != "required" {
		fmt.Println("these tests need QEMU; `make test` installs it:", err)
		return 0
	}
	guests = os.Getenv("VMAN_TEST_GUEST")
	if guests == "" {
		guests = filepath.Join("..", "build", "guest")
		if out, err := exec.Command("./guest/build.sh", guests).CombinedOutput(); err != nil {
			fmt.Printf("build the test guest: %v\n%s", err, out)
			return 1
		}
	}
	var err error
	if guests, err = filepath.Abs(guests); err != nil {
		fmt.Println(err)
		return 1
	}
	binary = os.Getenv("VMAN_TEST_BINARY")
	if binary == "" {
		dir, err := os.MkdirTemp("", "vmand")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "vmand")
		build := exec.Command("go", "build", "-o", binary, "vmand")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Printf("build vmand: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}
