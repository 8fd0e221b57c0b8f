// Package harness runs the vmand under test for the end-to-end tests, and observes the
// host:
//
//   - Daemon runs vmand with directories of its own. Call sends a request to its API,
//     CreateVM, WaitVM and others send the usual ones.
//   - Serial and Shell observe and control the guest of a VM.
//   - Namespace and Lab are networks for daemons and their guests.
//   - Violations compares what the API shows with processes, files, interfaces and rules.
//   - Eventually waits for a condition.
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

var (
	vmand  string // the program under test
	guests string // the directory of the guest
)

// Main runs the tests of a package and exits; TestMain calls it. It runs none if
// VMAN_TEST_QEMU is off. It builds vmand unless VMAN_TEST_BINARY names one, and the guest
// unless VMAN_TEST_GUEST names its directory.
func Main(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if need.Off() {
		fmt.Println("no tests: they need QEMU, and VMAN_TEST_QEMU is off")
		return 0
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil && os.Getenv("VMAN_TEST_QEMU") != "required" {
		fmt.Println("no tests: they need QEMU, which `make test` installs:", err)
		return 0
	}
	if guests = os.Getenv("VMAN_TEST_GUEST"); guests == "" {
		guests = File("build", "guest")
		if out, err := exec.Command(File("test", "guest", "build.sh"), guests).CombinedOutput(); err != nil {
			fmt.Printf("build the test guest: %v\n%s", err, out)
			return 1
		}
	}
	if vmand = os.Getenv("VMAN_TEST_BINARY"); vmand == "" {
		dir, err := os.MkdirTemp("", "vmand")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer os.RemoveAll(dir)
		vmand = filepath.Join(dir, "vmand")
		if err := Build(vmand); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return m.Run()
}

// Binary returns the path of the vmand under test.
func Binary() string { return vmand }

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
			panic("the working directory is not in a Go module")
		}
		dir = filepath.Dir(dir)
	}
})

// File returns the path of a file, given relative to go.mod.
func File(elem ...string) string { return filepath.Join(root(), filepath.Join(elem...)) }

// GoFiles returns the paths of the Go files of the module.
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

// Build builds vmand as the file out, with flags of go build.
func Build(out string, flags ...string) error {
	build := exec.Command("go", append(append([]string{"build"}, flags...), "-o", out, "vmand")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build vmand: %w\n%s", err, said)
	}
	return nil
}
