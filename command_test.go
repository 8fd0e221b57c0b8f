package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmand/cli"
	"vmand/config"
	"vmand/store"
	"vmand/vm"
)

func TestWrongCommandLinesNameHelp(t *testing.T) {
	for _, args := range [][]string{
		{"--lissten"},
		{"--config"},
		{"--dry-run", "true"},
		{"start"},
		{"backup"},
		{"backup", "x", "--take-over"},
		{"--read-only"},
	} {
		if _, err := parseArgs(args); err == nil || !strings.Contains(err.Error(), "--help") {
			t.Errorf("%q: error %v, want one that names --help", args, err)
		}
	}
	line, err := parseArgs([]string{"console", "web", "--take-over"})
	if err != nil || line.command == nil {
		t.Errorf("console: %+v, %v", line, err)
	}
}

func TestHelpShowsCommandsFlagsAndSettings(t *testing.T) {
	line, err := parseArgs([]string{"--help"})
	if err != nil {
		t.Fatal(err)
	}
	text := line.answer()
	for _, word := range []string{
		"--config", "--check-config", "--version", "--help", "--read-only", "--take-over",
		"vmand backup FILE", "vmand restore FILE", "vmand network teardown", "vmand guests stop|start", "vmand console VM",
		"VMAN_LISTEN", "(default 5s)",
	} {
		if !strings.Contains(text, word) {
			t.Errorf("--help does not contain %s", word)
		}
	}
	for line := range strings.Lines(text) {
		if len(line) > 101 {
			t.Errorf("a line of --help has %d characters: %s", len(line), line)
		}
	}
}

func TestVersionHasCommitAndDate(t *testing.T) {
	line, err := parseArgs([]string{"--version"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := line.answer(), "vmand unknown (commit unknown, unknown)\n"; got != want {
		t.Errorf("--version prints %q, want %q", got, want)
	}
}

func TestTeardownOfADryRunIsANoOp(t *testing.T) {
	if out, err := command(t, dryRun(t), "network", "teardown"); err != nil || out != "nothing to remove\n" {
		t.Errorf("%q, %v; want nothing to remove", out, err)
	}
}

// command runs the command name with operand file on the directories of cfg and
// returns its output.
func command(t *testing.T, cfg config.Config, name, file string) (string, error) {
	t.Helper()
	mask := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(mask) })
	var out bytes.Buffer
	err := run([]string{
		name, file,
		"--config", configFile(t, ""),
		fmt.Sprintf("--dry-run=%t", cfg.DryRun),
		"--state-dir", cfg.StateDir,
		"--runtime-dir", cfg.RuntimeDir,
	}, cli.Streams{Out: &out})
	return out.String(), err
}

// issues returns the issues of the observer, each as "type id".
func (r *running) issues() []string {
	r.t.Helper()
	var status struct {
		Issues []struct {
			Type string `json:"issue_type"`
			ID   string `json:"resource_id"`
		} `json:"last_issues"`
	}
	if err := json.Unmarshal([]byte(r.want("GET", "/observer/status", "", 200)), &status); err != nil {
		r.t.Fatal(err)
	}
	var all []string
	for _, i := range status.Issues {
		all = append(all, i.Type+" "+i.ID)
	}
	return all
}

// makeVM creates and starts a VM.
func (r *running) makeVM(id string) {
	r.t.Helper()
	r.want("POST", "/vms", fmt.Sprintf(`{"template_name":"small","name":%q}`, id), 201)
	r.want("POST", "/vms/"+id+"/actions/start", "", 200)
}

// makeDisk creates a disk and returns its id.
func (r *running) makeDisk() string {
	r.t.Helper()
	var disk struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal([]byte(r.want("POST", "/disks", `{"size":1}`, 201)), &disk); err != nil {
		r.t.Fatal(err)
	}
	return disk.ID
}

func TestRestoreRestoresOldVMsAndKeepsNewerOnes(t *testing.T) {
	cfg := dryRun(t)
	r := start(t, cfg)
	r.want("POST", "/templates", `{"name":"small","cpu_count":1,"ram_amount":128}`, 201)
	r.makeVM("old")
	oldDisk := r.makeDisk()
	file := filepath.Join(t.TempDir(), "backup")
	if out, err := command(t, cfg, "backup", file); err != nil || !strings.Contains(out, file) {
		t.Fatalf("backup: %q, %v", out, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("the backup is %v, %v; want mode 0600", info, err)
	}
	if _, err := command(t, cfg, "backup", file); !errors.Is(err, vm.ErrExists) || !strings.Contains(err.Error(), file) {
		t.Errorf("backup to an existing file: %v", err)
	}
	r.makeVM("new")
	newDisk := r.makeDisk()
	_, err := command(t, cfg, "restore", file)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("restore while vmand runs: %v; want an error with the pid", err)
	}
	last, err := r.store.LastEvent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.stop()

	out, err := command(t, cfg, "restore", file)
	if err != nil {
		t.Fatal(err)
	}
	state := r.cfg.StateDir
	kept, err := filepath.Glob(filepath.Join(state, databaseFile+".before-restore-*"))
	if err != nil || len(kept) != 1 || !strings.Contains(out, kept[0]) {
		t.Fatalf("kept %q, %v, output %q; want one file and its name", kept, err, out)
	}
	if left, err := filepath.Glob(filepath.Join(state, ".restore-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}

	r = start(t, cfg)
	if got := r.want("GET", "/vms/old", "", 200); !strings.Contains(got, `"running"`) {
		t.Errorf("the old VM is %s, want it running", got)
	}
	r.want("GET", "/disks/"+oldDisk, "", 200)
	r.want("GET", "/vms/new", "", 404)
	want := []string{"orphan_disk " + newDisk, "orphan_disk new", "orphan_process new"}
	eventually(t, func() error {
		if got := r.issues(); !slices.Equal(got, want) {
			return fmt.Errorf("issues %q, want %q", got, want)
		}
		return nil
	})
	for _, name := range []string{"vms/new", "disks/" + newDisk + ".qcow2"} {
		if _, err := os.Stat(filepath.Join(state, name)); err != nil {
			t.Errorf("%s was removed: %v", name, err)
		}
	}
	events, err := r.store.Events(t.Context(), vm.EventFilter{Type: "daemon.started"}, vm.Page{After: last})
	if err != nil || len(events) != 1 {
		t.Errorf("events %+v, %v; want daemon.started with a number that was never used", events, err)
	}
	before, err := store.Open(t.Context(), store.Options{Path: kept[0]})
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if _, err := before.VM(t.Context(), "new"); err != nil {
		t.Errorf("the kept database lacks the newer VM: %v", err)
	}
}

// database returns a database with a VM, in the state directory of cfg.
func database(t *testing.T, cfg config.Config) *store.Store {
	t.Helper()
	state, _ := cfg.Directories()
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), store.Options{Path: filepath.Join(state, databaseFile)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	template := vm.Template{Name: "small", CPUCount: 1, RAMMiB: 128}
	a := vm.VM{
		ID:       "a",
		UUID:     "a",
		Template: template,
		State:    vm.Stopped,
		Reason:   vm.ReasonCreated,
		Desired:  vm.DesiredStopped,
		Root:     vm.DiskFile{SizeMiB: 1},
	}
	apply(t, s, vm.Change{NewTemplate: &template})
	apply(t, s, vm.Change{NewVM: &a})
	return s
}

func apply(t *testing.T, s *store.Store, c vm.Change) {
	t.Helper()
	if _, err := s.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// A backup can be taken in the middle of an operation. The operation went on after
// that, so its result must not be removed as after a crash.
func TestRestoreSettlesOpenOperations(t *testing.T) {
	cfg := dryRun(t)
	s := database(t, cfg)
	open := func(id string, kind vm.Kind, resource vm.Resource) {
		t.Helper()
		apply(t, s, vm.Change{Operation: &vm.Operation{
			ID:          id,
			Kind:        kind,
			Resource:    resource,
			State:       vm.OpRunning,
			RequestedBy: "admin",
			CreatedAt:   time.Now(),
			Log:         []vm.LogLine{},
			Key:         "key-" + id,
		}})
	}
	disk := func(d vm.Disk) {
		t.Helper()
		d.SizeMiB = 1
		apply(t, s, vm.Change{NewDisk: &d})
	}
	open("1", vm.VMCreate, vm.VMResource("made"))
	open("2", vm.DiskDelete, vm.DiskResource("back"))
	disk(vm.Disk{ID: "made", State: vm.DiskCreating})
	disk(vm.Disk{ID: "leaving", State: vm.DiskDetaching, VMID: "a", MountPoint: "/dev/sdb"})
	disk(vm.Disk{ID: "quiet", State: vm.DiskAvailable})
	file := filepath.Join(t.TempDir(), "backup")
	if _, err := command(t, cfg, "backup", file); err != nil {
		t.Fatal(err)
	}
	s.Close()
	state, _ := cfg.Directories()
	files := []string{
		"vms/a/root.qcow2",
		"vms/made/root.qcow2",
		"disks/made.qcow2",
		"disks/leaving.qcow2",
		"disks/quiet.qcow2",
		"disks/back.qcow2",
	}
	for _, name := range files {
		path := filepath.Join(state, name)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err := errors.Join(err, os.WriteFile(path, []byte(`{"size_mib":1}`), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := command(t, cfg, "restore", file); err != nil {
		t.Fatal(err)
	}
	r := start(t, cfg)
	eventually(t, func() error {
		want := []string{"orphan_disk back", "orphan_disk made", "orphan_disk made"}
		if got := r.issues(); !slices.Equal(got, want) {
			return fmt.Errorf("issues %q, want %q", got, want)
		}
		return nil
	})
	for _, name := range files {
		if _, err := os.Stat(filepath.Join(state, name)); err != nil {
			t.Errorf("%s was removed: %v", name, err)
		}
	}
	for id, want := range map[string]vm.DiskState{"leaving": vm.DiskAttached, "quiet": vm.DiskAvailable} {
		if d, err := r.store.Disk(t.Context(), id); err != nil || d.State != want {
			t.Errorf("disk %s is %s, %v; want %s", id, d.State, err, want)
		}
	}
	for _, id := range []string{"1", "2"} {
		op, err := r.store.Operation(t.Context(), id)
		if err != nil || op.State != vm.OpFailed || op.Problem == nil {
			t.Fatalf("operation %+v, %v; want it failed", op, err)
		}
		if op.Problem.Code != vm.CodeInterrupted || !strings.Contains(op.Problem.Detail, "restored") || op.Key != "" {
			t.Errorf("operation %+v, problem %+v; want it interrupted by the restore, without a key", op, op.Problem)
		}
	}
	events, err := r.store.Events(t.Context(), vm.EventFilter{Type: "operation.ended"}, vm.Page{})
	if err != nil {
		t.Fatal(err)
	}
	var ended []string
	for _, e := range events {
		ended = append(ended, e.Resource.String())
	}
	if !slices.Contains(ended, "operations/1") || !slices.Contains(ended, "operations/2") {
		t.Errorf("operation.ended of %q, want one for each operation", ended)
	}

	// Only the first start after the restore ends operations this way.
	r.stop()
	s, err = store.Open(t.Context(), store.Options{Path: filepath.Join(state, databaseFile)})
	if err != nil {
		t.Fatal(err)
	}
	open("3", vm.DiskDelete, vm.DiskResource("back"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	if op, err := r.store.Operation(t.Context(), "3"); err != nil || op.State != vm.OpSucceeded {
		t.Errorf("operation %+v, %v; want it finished by the recovery", op, err)
	}
}

func TestFailedRestoreKeepsTheDatabase(t *testing.T) {
	cfg := dryRun(t)
	database(t, cfg).Close()
	state, _ := cfg.Directories()
	dir := t.TempDir()
	good, empty, text := filepath.Join(dir, "good"), filepath.Join(dir, "empty"), filepath.Join(dir, "text")
	if _, err := command(t, cfg, "backup", good); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(state, databaseFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.WriteFile(text, []byte("hello"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, word := range map[string]string{
		empty:                      "empty",
		text:                       "damaged",
		filepath.Join(dir, "none"): "no such file",
	} {
		_, err := command(t, cfg, "restore", path)
		if err == nil || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", path, err, word)
		}
	}
	after, err := os.ReadFile(filepath.Join(state, databaseFile))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the database has changed (%v)", err)
	}
	if left, err := filepath.Glob(filepath.Join(state, "*restore*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	nowhere := cfg
	nowhere.StateDir = file
	for _, name := range []string{"backup", "restore"} {
		if _, err := command(t, nowhere, name, good+"2"); err == nil || !strings.HasPrefix(err.Error(), name+": ") {
			t.Errorf("%s without a state directory: %v", name, err)
		}
	}
}

func TestRestoreOnANewHostAndOverADamagedDatabase(t *testing.T) {
	cfg := dryRun(t)
	database(t, cfg).Close()
	file := filepath.Join(t.TempDir(), "backup")
	if _, err := command(t, cfg, "backup", file); err != nil {
		t.Fatal(err)
	}
	fresh := dryRun(t)
	if out, err := command(t, fresh, "restore", file); err != nil || !strings.Contains(out, "no previous database") {
		t.Fatalf("restore on a new host: %q, %v", out, err)
	}
	start(t, fresh).want("GET", "/vms/a", "", 200)

	state, _ := cfg.Directories()
	if err := os.WriteFile(filepath.Join(state, databaseFile), bytes.Repeat([]byte("rubbish "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newContainer(t.Context(), cfg, passed{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("started with a damaged database")
	}
	if _, err := command(t, cfg, "restore", file); err != nil {
		t.Fatal(err)
	}
	start(t, cfg).want("GET", "/vms/a", "", 200)
	if _, err := command(t, cfg, "backup", "/proc/no"); err == nil {
		t.Error("backup to a directory that does not exist: no error")
	}
}

func TestInterruptedRestoreKeepsTheDatabase(t *testing.T) {
	cfg := dryRun(t)
	s := database(t, cfg)
	file := filepath.Join(t.TempDir(), "backup")
	if _, err := command(t, cfg, "backup", file); err != nil {
		t.Fatal(err)
	}
	s.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := hostOf(cfg).Restore(ended, file); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	state, _ := cfg.Directories()
	if left, err := filepath.Glob(filepath.Join(state, "*restore*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	start(t, cfg).want("GET", "/vms/a", "", 200)
}
