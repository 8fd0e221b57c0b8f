// Package harness starts what the end-to-end tests need and looks at what comes of
// it: the vmand under test with directories of its own (Daemon), requests to its API
// (Call), the guests of its VMs (Serial, Shell), network namespaces (Namespace, Lab),
// and the state of the host (Violations, QEMUProcesses).
package harness

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"vmand/test/need"
)

// binary is the vmand under test; guests is the directory of the guest's disks.
var binary, guests string

// Main runs the tests of a package and exits. It is called by TestMain. The tests are
// left out where VMAN_TEST_QEMU is off. Without VMAN_TEST_BINARY it builds vmand, and
// without VMAN_TEST_GUEST the guest.
func Main(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if need.Off() {
		fmt.Println("these tests need QEMU and VMAN_TEST_QEMU is off")
		return 0
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil && os.Getenv("VMAN_TEST_QEMU") != "required" {
		fmt.Println("these tests need QEMU; `make test` installs it:", err)
		return 0
	}
	if guests = os.Getenv("VMAN_TEST_GUEST"); guests == "" {
		guests = File("build", "guest")
		if out, err := exec.Command(File("test", "guest", "build.sh"), guests).CombinedOutput(); err != nil {
			fmt.Printf("build the test guest: %v\n%s", err, out)
			return 1
		}
	}
	if binary = os.Getenv("VMAN_TEST_BINARY"); binary == "" {
		dir, err := os.MkdirTemp("", "vmand")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "vmand")
		if err := Build(binary); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return m.Run()
}

// Binary returns the path of the vmand under test.
func Binary() string { return binary }

// GuestFile returns the path of a file that test/guest/build.sh made.
func GuestFile(name string) string { return filepath.Join(guests, name) }

// root is the directory of go.mod.
var root = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			panic("the tests do not run in the checkout")
		}
		dir = filepath.Dir(dir)
	}
})

// File returns the path of a file of the checkout.
func File(elem ...string) string { return filepath.Join(root(), filepath.Join(elem...)) }

// GoFiles returns the paths of the module's Go files.
func GoFiles(t testing.TB) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(root(), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "build" || d.Name() == ".git"):
			return fs.SkipDir
		case filepath.Ext(path) == ".go":
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Build builds vmand, static, as the file out.
func Build(out string, flags ...string) error {
	build := exec.Command("go", append(append([]string{"build"}, flags...), "-o", out, "vmand")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build vmand: %w\n%s", err, said)
	}
	return nil
}
