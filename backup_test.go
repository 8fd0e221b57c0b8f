package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmand/store"
	"vmand/vm"
)

// command runs vmand with a word in place of serving, on the directories of cfg,
// and returns what it said.
func command(t *testing.T, cfg Config, word, file string) (string, error) {
	t.Helper()
	mask := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(mask) })
	var out bytes.Buffer
	err := run([]string{word, file, "--config", configFile(t, ""), fmt.Sprintf("--dry-run=%t", cfg.DryRun),
		"--state-dir", cfg.StateDir, "--runtime-dir", cfg.RuntimeDir}, &out)
	return out.String(), err
}

// issues returns what the observer reports, as "type id".
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

// makeVM makes a VM that runs.
func (r *running) makeVM(id string) {
	r.t.Helper()
	r.want("POST", "/vms", fmt.Sprintf(`{"template_name":"small","name":%q}`, id), 201)
	r.want("POST", "/vms/"+id+"/actions/start", "", 200)
}

// makeDisk makes a disk and returns its id.
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

func TestAfterARestoreTheOldIsThereAndTheNewerIsLeftAlone(t *testing.T) {
	cfg := dryRun(t)
	r := start(t, cfg)
	r.want("POST", "/templates", `{"name":"small","cpu_count":1,"ram_amount":128}`, 201)
	r.makeVM("old")
	oldDisk := r.makeDisk()
	file := filepath.Join(t.TempDir(), "backup")
	if said, err := command(t, cfg, "backup", file); err != nil || !strings.Contains(said, file) {
		t.Fatalf("said %q, %v", said, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("the backup: %v, %v; want mode 0600", info, err)
	}
	if _, err := command(t, cfg, "backup", file); !errors.Is(err, vm.ErrExists) || !strings.Contains(err.Error(), file) {
		t.Errorf("over a file that is there: %v", err)
	}
	r.makeVM("new")
	newDisk := r.makeDisk()
	_, err := command(t, cfg, "restore", file)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("while vmand runs: %v; want it refused with the pid", err)
	}
	last, err := r.store.LastEvent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.stop()

	said, err := command(t, cfg, "restore", file)
	if err != nil {
		t.Fatal(err)
	}
	state := r.cfg.StateDir
	kept, err := filepath.Glob(filepath.Join(state, databaseFile+".before-restore-*"))
	if err != nil || len(kept) != 1 || !strings.Contains(said, kept[0]) {
		t.Fatalf("kept %q, %v; said %q; want one and its name", kept, err, said)
	}
	if left, err := filepath.Glob(filepath.Join(state, ".restore-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}

	r = start(t, cfg)
	if got := r.want("GET", "/vms/old", "", 200); !strings.Contains(got, `"running"`) {
		t.Errorf("the old VM: %s", got)
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
			t.Errorf("%s was touched: %v", name, err)
		}
	}
	events, err := r.store.Events(t.Context(), vm.EventFilter{Type: "daemon.started"}, vm.Page{After: last})
	if err != nil || len(events) != 1 {
		t.Errorf("events %+v, %v; want the start to be told of under a number that was never used", events, err)
	}
	before, err := store.Open(t.Context(), store.Options{Path: kept[0]})
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if _, err := before.VM(t.Context(), "new"); err != nil {
		t.Errorf("what was there before is not kept: %v", err)
	}
}

// database returns a database in the state directory of cfg with a VM.
func database(t *testing.T, cfg Config) *store.Store {
	t.Helper()
	state, _ := cfg.directories()
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), store.Options{Path: filepath.Join(state, databaseFile)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	template := vm.Template{Name: "small", CPUCount: 1, RAMMiB: 128}
	a := vm.VM{ID: "a", UUID: "a", Template: template, State: vm.Stopped, Reason: vm.ReasonCreated, Desired: vm.DesiredStopped, Root: vm.DiskFile{SizeMiB: 1}}
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

// A backup can be taken in the middle of an operation. What that has led to
// since is not to be undone, as it would be after a crash.
func TestWhatABackupHadInTheMakingIsNotDestroyedByARestore(t *testing.T) {
	cfg := dryRun(t)
	s := database(t, cfg)
	making := vm.Operation{ID: "1", Kind: vm.VMCreate, Resource: vm.VMResource("made"), State: vm.OpRunning, CreatedAt: time.Now(), Log: []vm.LogLine{}}
	apply(t, s, vm.Change{Operation: &making})
	deleting := vm.Operation{ID: "2", Kind: vm.DiskDelete, Resource: vm.DiskResource("back"), State: vm.OpRunning, CreatedAt: time.Now(), Log: []vm.LogLine{}}
	apply(t, s, vm.Change{Operation: &deleting})
	apply(t, s, vm.Change{NewDisk: &vm.Disk{ID: "made", DiskFile: vm.DiskFile{SizeMiB: 1}, State: vm.DiskCreating}})
	apply(t, s, vm.Change{NewDisk: &vm.Disk{ID: "leaving", DiskFile: vm.DiskFile{SizeMiB: 1}, State: vm.DiskDetaching, VMID: "a", MountPoint: "/dev/sdb"}})
	apply(t, s, vm.Change{NewDisk: &vm.Disk{ID: "quiet", DiskFile: vm.DiskFile{SizeMiB: 1}, State: vm.DiskAvailable}})
	file := filepath.Join(t.TempDir(), "backup")
	if _, err := command(t, cfg, "backup", file); err != nil {
		t.Fatal(err)
	}
	s.Close()
	state, _ := cfg.directories()
	files := []string{"vms/a/root.qcow2", "vms/made/root.qcow2", "disks/made.qcow2", "disks/leaving.qcow2", "disks/quiet.qcow2", "disks/back.qcow2"}
	for _, name := range files {
		path := filepath.Join(state, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(`{"size_mib":1}`), 0o600)); err != nil {
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
		if err != nil || op.State != vm.OpFailed || op.Problem == nil || op.Problem.Code != vm.CodeInterrupted || !strings.Contains(op.Problem.Detail, "restored") {
			t.Errorf("operation %+v, %v; want it interrupted, and why", op, err)
		}
	}
}

func TestWhatCannotBeRestoredLeavesTheDatabaseAsItIs(t *testing.T) {
	cfg := dryRun(t)
	database(t, cfg).Close()
	state, _ := cfg.directories()
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
	for path, word := range map[string]string{empty: "empty", text: "damaged", filepath.Join(dir, "none"): "no such file"} {
		_, err := command(t, cfg, "restore", path)
		if err == nil || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", path, err, word)
		}
	}
	after, err := os.ReadFile(filepath.Join(state, databaseFile))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the database has changed, %v", err)
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
	for _, word := range []string{"backup", "restore"} {
		if _, err := command(t, nowhere, word, good+"2"); err == nil || !strings.HasPrefix(err.Error(), word+": ") {
			t.Errorf("%s without a state directory: %v", word, err)
		}
	}
}

func TestARestoreOnANewHostAndOverADamagedDatabase(t *testing.T) {
	cfg := dryRun(t)
	database(t, cfg).Close()
	file := filepath.Join(t.TempDir(), "backup")
	if _, err := command(t, cfg, "backup", file); err != nil {
		t.Fatal(err)
	}
	fresh := dryRun(t)
	if said, err := command(t, fresh, "restore", file); err != nil || !strings.Contains(said, "nothing") {
		t.Fatalf("on a new host: said %q, %v; want that there was nothing", said, err)
	}
	start(t, fresh).want("GET", "/vms/a", "", 200)

	state, _ := cfg.directories()
	if err := os.WriteFile(filepath.Join(state, databaseFile), bytes.Repeat([]byte("rubbish "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newContainer(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("a damaged database was taken")
	}
	if _, err := command(t, cfg, "restore", file); err != nil {
		t.Fatal(err)
	}
	start(t, cfg).want("GET", "/vms/a", "", 200)
	if _, err := command(t, cfg, "backup", "/proc/no"); err == nil {
		t.Error("a backup was made where there is no directory")
	}
}

func TestARestoreThatIsInterruptedChangesNothing(t *testing.T) {
	cfg := dryRun(t)
	s := database(t, cfg)
	file := filepath.Join(t.TempDir(), "backup")
	if _, err := command(t, cfg, "backup", file); err != nil {
		t.Fatal(err)
	}
	s.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := restore(ended, cfg, file, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that it was cancelled", err)
	}
	if err := dropIntents(t.Context(), s); err == nil {
		t.Error("no error with the database closed")
	}
	state, _ := cfg.directories()
	if left, err := filepath.Glob(filepath.Join(state, "*restore*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	start(t, cfg).want("GET", "/vms/a", "", 200)
}
