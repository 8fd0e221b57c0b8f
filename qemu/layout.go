package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vmand/host"
	"vmand/vm"
)

// Names under the state directory, relative to it. The files survive a reboot of
// the host.
const (
	disksDir     = "disks"  // data disks
	vmsDir       = "vms"    // one directory per VM
	imagesDir    = "images" // content of images, by SHA-256
	probesFile   = "qemu.json"
	qcow2Suffix  = ".qcow2"
	maxNameBytes = 63 // of a VM's id
	maxSockPath  = 107
	crashPrefix  = "crash-"
	crashSuffix  = ".json"
)

func dataDisk(diskID string) string { return disksDir + "/" + diskID + qcow2Suffix }
func vmDir(id string) string        { return vmsDir + "/" + id }
func vmRootDisk(id string) string   { return vmDir(id) + "/root" + qcow2Suffix }
func vmSeed(id string) string       { return vmDir(id) + "/seed.iso" }   // for cloud-init
func vmIgnition(id string) string   { return vmDir(id) + "/ignition" }   // for Ignition, in fw_cfg
func vmSerialLog(id string) string  { return vmDir(id) + "/serial.log" } // the guest's console output
func vmQEMULog(id string) string    { return vmDir(id) + "/qemu.log" }   // QEMU's stdout and stderr in this run
func vmQEMULogOld(id string) string { return vmDir(id) + "/qemu.log.1" } // in the run before
func vmCrashTemp(id string) string  { return host.TempName(vmDir(id) + "/crash") }

// vmCrash names the recording of a crash, vms/<id>/crash-<unix ms>.json.
func vmCrash(id string, at time.Time) string {
	return vmDir(id) + "/" + crashPrefix + strconv.FormatInt(at.UnixMilli(), 10) + crashSuffix
}

// Suffixes of the files in the runtime directory, which a reboot of the host clears.
const (
	pidSuffix        = ".pid"                 // locked by QEMU for as long as it lives
	uuidSuffix       = ".uuid"                // the UUID that the VM's monitor must name
	qmpSuffix        = ".qmp"                 // vmand's monitor
	operatorSuffix   = ".op-qmp"              // a second monitor, for the operator of the host
	consoleSuffix    = ".tty"                 // the serial console: QEMU adds .in and .out
	consoleInSuffix  = consoleSuffix + ".in"  // a FIFO for the console input
	consoleOutSuffix = consoleSuffix + ".out" // /dev/null: the console output is in the serial log
	agentSuffix      = ".qga"                 // the port of the guest agent; vmand is its only client
	quitSuffix       = ".quit"                // exists once vmand has asked the process to end
	drySuffix        = ".dry"                 // a running VM of a dry run
)

// runSuffixes are those of the files of a VM that runs.
var runSuffixes = []string{
	pidSuffix,
	uuidSuffix,
	qmpSuffix,
	operatorSuffix,
	agentSuffix,
	consoleInSuffix,
	consoleOutSuffix,
	quitSuffix,
}

// layout names every file. Both directories are absolute.
type layout struct {
	state, run string
}

// newLayout checks both directories and makes them absolute.
func newLayout(stateDir, runtimeDir string) (layout, error) {
	var l layout
	for _, d := range []struct {
		name, given string
		to          *string
	}{
		{"state", stateDir, &l.state},
		{"runtime", runtimeDir, &l.run},
	} {
		if d.given == "" {
			return layout{}, fmt.Errorf("no %s directory is set", d.name)
		}
		abs, err := filepath.Abs(d.given)
		if err != nil {
			return layout{}, fmt.Errorf("%s directory: %w", d.name, err)
		}
		*d.to = abs
	}
	longest := max(len(operatorSuffix), len(agentSuffix))
	if n := len(l.run) + len("/") + maxNameBytes + longest; n > maxSockPath {
		return layout{}, fmt.Errorf("runtime directory %s is too long: with the longest VM id the path of a socket in it "+
			"would have %d bytes, and the kernel takes at most %d; set a runtime_dir of at most %d bytes",
			l.run, n, maxSockPath, maxSockPath-n+len(l.run))
	}
	return l, nil
}

func (l layout) inState(name string) string     { return filepath.Join(l.state, name) }
func (l layout) content(sha256 string) string   { return filepath.Join(l.state, imagesDir, sha256) }
func (l layout) inRun(id, suffix string) string { return filepath.Join(l.run, id+suffix) }
func (l layout) pidfile(id string) string       { return l.inRun(id, pidSuffix) }

// removeRun removes files of a VM from the runtime directory. It is best effort:
// the next start replaces a file that is left.
func (l layout) removeRun(id string, suffix ...string) {
	for _, s := range suffix {
		os.Remove(l.inRun(id, s))
	}
}

// create creates the directories, private to vmand. The account that QEMU runs as
// can pass through them but not list them.
func (l layout) create(a host.Account) error {
	if err := makeDirs(a, l.state, ".", disksDir, vmsDir, imagesDir); err != nil {
		return err
	}
	if err := makeDirs(a, l.run, "."); err != nil {
		return err
	}
	for _, dir := range []string{l.inState(disksDir), l.inState(imagesDir), l.run} {
		if err := checkPath(a, dir); err != nil {
			return err
		}
	}
	return nil
}

// makeDirs creates a directory, and directories in it, and lets an account pass.
func makeDirs(a host.Account, dir string, names ...string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer root.Close()
	for _, name := range names {
		if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create directory: %w", err)
		}
		if err := admit(a, root, name); err != nil {
			return err
		}
	}
	return nil
}

// vmIDs returns the ids of the VMs that have a file with this suffix in the
// runtime directory.
func (l layout) vmIDs(suffix string) ([]string, error) {
	entries, err := os.ReadDir(l.run)
	if err != nil {
		return nil, fmt.Errorf("read runtime directory: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), suffix); ok && vm.ValidName(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
