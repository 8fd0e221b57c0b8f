package api

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/openapi"
	"vmand/test/harness"
)

func TestASecondDaemonIsRefused(t *testing.T) {
	d := harness.StartDaemon(t)
	second := harness.NewDaemon(t)
	second.StateDir = d.StateDir
	second.Env = append(second.Env, "VMAN_STATE_DIR="+d.StateDir)
	if said := second.Refuses(); !strings.Contains(said, fmt.Sprint(d.PID())) {
		t.Errorf("the refusal of the second daemon does not contain process id %d:\n%s", d.PID(), said)
	}
	d.CreateTemplate()
}

func TestUnusableDatabaseIsRefusedAndUnchanged(t *testing.T) {
	tests := map[string]struct {
		spoil func(d *harness.Daemon, file string)
		say   []string
	}{
		"from the future": {func(d *harness.Daemon, _ string) {
			d.SQL("PRAGMA user_version = 9999")
		}, []string{"9999", "newer"}},
		"corrupt": {func(d *harness.Daemon, file string) {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				d.T.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(strings.Repeat("garbage ", 2048)), 4096); err != nil {
				d.T.Fatal(err)
			}
		}, []string{"vman.db"}},
		"not a database": {func(d *harness.Daemon, file string) {
			if err := os.WriteFile(file, []byte(strings.Repeat("garbage ", 2048)), 0o600); err != nil {
				d.T.Fatal(err)
			}
		}, []string{"vman.db"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := harness.StartDaemon(t)
			d.CreateTemplate()
			d.Stop()
			file := filepath.Join(d.StateDir, "vman.db")
			tt.spoil(d, file)
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			said := d.Refuses()
			for _, word := range tt.say {
				if !strings.Contains(said, word) {
					t.Errorf("the refusal does not contain %q:\n%s", word, said)
				}
			}
			if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
				t.Errorf("the database was changed: %v", err)
			}
		})
	}
}

func TestReadOnlyStateDirectoryIsReported(t *testing.T) {
	d := harness.NewDaemon(t)
	if err := os.MkdirAll(d.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", d.StateDir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(d.StateDir, 0); err != nil {
			t.Error(err)
		}
	}()
	if said := d.Refuses(); !strings.Contains(said, d.StateDir) {
		t.Errorf("the refusal does not contain %s:\n%s", d.StateDir, said)
	}
}

// TestFullFileSystem fills the daemon's file system.
func TestFullFileSystem(t *testing.T) {
	d := harness.NewDaemon(t)
	if err := os.MkdirAll(d.StateDir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", d.StateDir, "tmpfs", 0, "size=16m,mode=0711"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		d.Kill()
		d.KillVMs()
		if err := unix.Unmount(d.StateDir, 0); err != nil {
			t.Error(err)
		}
	}()
	d.Start()
	d.CreateTemplate()
	d.CreateVM("a")
	filler := filepath.Join(d.StateDir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<16)
	for err == nil {
		_, err = f.Write(block)
	}
	f.Close()
	disks := func() int {
		entries, err := os.ReadDir(filepath.Join(d.StateDir, "disks"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := disks()
	d.Call("POST", "/disks", map[string]any{"size": 1}).Problem(507, "insufficient-storage")
	if n := disks(); n != before {
		t.Errorf("after the refusal there are %d disk files, want %d", n, before)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d.CreateDisk(1)
	if v := d.VM("a"); v.State != "stopped" {
		t.Errorf("the VM is %+v, want stopped", v)
	}
}

func TestWithoutQEMUTheDaemonRuns(t *testing.T) {
	d := harness.StartDaemon(t,
		"VMAN_QEMU_BINARY=/nonexistent/qemu-system-x86_64",
		"VMAN_QEMU_IMG_BINARY=/nonexistent/qemu-img")
	d.CreateTemplate()
	health := harness.As[openapi.Health](d.Call("GET", "/health", nil).Want(503))
	checks := health.Checks
	if health.Status != "degraded" || checks.Qemu.Status != "degraded" || checks.Database.Status != "ok" {
		t.Errorf("the health is %+v, want degraded because of QEMU only", health)
	}
	disk := d.CreateDisk(1) // needs no program
	p := d.Call("PATCH", "/disks/"+disk.ID, map[string]any{"size": 2}).Problem(503, "qemu-unavailable")
	if !strings.Contains(p.Detail+p.Hint, "qemu-utils") {
		t.Errorf("the problem does not contain the name of the Debian package: %+v", p)
	}
	d.Stop()
	d.Env = append(d.Env, "VMAN_QEMU_IMG_BINARY=qemu-img")
	d.Start()
	d.CreateVM("a")
	p = d.Call("POST", "/vms/a/actions/start", nil).Problem(503, "qemu-unavailable")
	if !strings.Contains(p.Detail+p.Hint, "qemu-system-x86") {
		t.Errorf("the problem does not contain the name of the Debian package: %+v", p)
	}
	if v := d.VM("a"); v.State != "stopped" {
		t.Errorf("the VM is %+v, want stopped", v)
	}
}

func TestStartWithTooMuchMemoryIsRefused(t *testing.T) {
	d := harness.StartDaemon(t)
	d.Call("POST", "/templates", map[string]any{"name": "huge", "cpu_count": 1, "ram_amount": 1000000}).Want(201)
	d.Call("POST", "/vms", map[string]any{"template_name": "huge", "name": "a"}).Want(201)
	d.Call("POST", "/vms/a/actions/start", nil).Problem(503, "insufficient-memory", "1000000")
	if v := d.VM("a"); v.State != "stopped" || v.DesiredState != "stopped" {
		t.Errorf("the VM is %+v, want stopped", v)
	}
}

func TestADryRunStartsNothing(t *testing.T) {
	d := harness.StartDaemon(t, "VMAN_OPERATOR_DRY_RUN=1", "VMAN_QEMU_BINARY=/nonexistent")
	d.CreateTemplate()
	d.CreateVM("a")
	a := d.Call("POST", "/vms/a/actions/start", nil, harness.Wait).Want(200)
	if a.Header.Get("X-Vman-Dry-Run") != "true" || harness.As[openapi.VM](a).State != "running" {
		t.Errorf("the answer to the start is %s with the header %v, want running and X-Vman-Dry-Run", a.Body, a.Header)
	}
	disk := d.CreateDisk(1)
	d.AttachDisk(disk.ID, "a")
	if pids := d.QEMUs(); len(pids) != 0 {
		t.Errorf("QEMUs %v run, want none", pids)
	}
	d.Kill()
	d.Start()
	d.WaitVM("a", "running", "requested", 0)
	d.Action("a", "stop")
	if v := d.Call("GET", "/vms/nothing", nil).Want(404); v.Header.Get("X-Vman-Dry-Run") != "true" {
		t.Error("a problem has no header X-Vman-Dry-Run")
	}
	d.DeleteAll()
}

// TestAPIOverTCP sends requests over TCP, where only a token authenticates the client.
func TestAPIOverTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	d := harness.StartDaemon(t, "VMAN_LISTEN="+address)
	file := filepath.Join(d.StateDir, "admin.token")
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the file of the token is %v, %v, want mode 0600", info, err)
	}
	token := d.AdminToken()
	d.ConnectTCP(address)
	ask := func(path, authorization string) harness.Answer {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		a, err := d.Send(req)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	ask("/health", "").Want(200)
	ask("/vms", "").Problem(401, "unauthorized")
	ask("/vms", "Bearer wrong").Problem(401, "unauthorized")
	ask("/vms", "Basic "+token).Problem(401, "unauthorized")
	ask("/vms", "Bearer "+token).Want(200)
	d.Stop() // flushes the log
	if strings.Contains(d.Log(), token) {
		t.Error("the log contains the token")
	}
	if !strings.Contains(d.Log(), file) {
		t.Error("the log does not contain the path of the token")
	}
}

func TestCommandLineOutput(t *testing.T) {
	tests := map[string]struct {
		args []string
		env  []string
		ok   bool
		say  []string
	}{
		"--version": {
			args: []string{"--version"},
			ok:   true,
			say:  []string{"vmand"},
		},
		"--help": {
			args: []string{"--help"},
			ok:   true,
			say:  []string{"--config", "--dry-run", "VMAN_LISTEN", "VMAN_STATE_DIR"},
		},
		"--check-config": {
			args: []string{"--check-config"},
			ok:   true,
		},
		"an unknown flag": {
			args: []string{"--lissten"},
			say:  []string{"lissten"},
		},
		"an unknown variable": {
			args: []string{"--check-config"},
			env:  []string{"VMAN_LISSTEN=x"},
			ok:   true,
			say:  []string{"VMAN_LISSTEN", "VMAN_LISTEN"},
		},
		"a variable of VMAN without a successor": {
			args: []string{"--check-config"},
			env:  []string{"VMAN_SUBNET=10.0.0.0/24"},
			say:  []string{"VMAN_SUBNET", "POST /networks"},
		},
		"an interval in the spelling of VMAN": {
			args: []string{"--check-config"},
			env:  []string{"VMAN_OBSERVER_INTERVAL=3"},
			ok:   true,
			say:  []string{"warning", "VMAN_OBSERVER_INTERVAL=3s"},
		},
		"an interval that is long": {
			args: []string{"--check-config"},
			env:  []string{"VMAN_OBSERVER_INTERVAL=1m"},
			say:  []string{"observer.interval", "allow_slow"},
		},
		"a file that is not there": {
			args: []string{"--check-config", "--config", "/nonexistent.yaml"},
			say:  []string{"/nonexistent.yaml"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(harness.Binary(), tt.args...)
			cmd.Env = append(os.Environ(), tt.env...)
			out, err := cmd.CombinedOutput()
			if (err == nil) != tt.ok {
				t.Errorf("vmand %q ended with %v\n%s", tt.args, err, out)
			}
			for _, word := range tt.say {
				if !strings.Contains(string(out), word) {
					t.Errorf("the output of vmand %q does not contain %q:\n%s", tt.args, word, out)
				}
			}
		})
	}
}
