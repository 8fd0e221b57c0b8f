package test

import (
	"context"
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
)

func TestASecondDaemonIsRefused(t *testing.T) {
	d := startDaemon(t)
	second := newDaemon(t)
	second.state = d.state
	second.env[0] = "VMAN_STATE_DIR=" + d.state
	if said := second.fails(); !strings.Contains(said, fmt.Sprint(d.cmd.Process.Pid)) {
		t.Errorf("the second daemon does not name the first, %d:\n%s", d.cmd.Process.Pid, said)
	}
	d.template()
}

func TestADatabaseItCannotUseIsLeftAlone(t *testing.T) {
	tests := map[string]struct {
		spoil func(d *daemon, file string)
		say   []string
	}{
		"from the future": {func(d *daemon, _ string) { d.sql("PRAGMA user_version = 9999") }, []string{"9999", "newer"}},
		"corrupt": {func(d *daemon, file string) {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				d.t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(strings.Repeat("garbage ", 2048)), 4096); err != nil {
				d.t.Fatal(err)
			}
		}, []string{"vman.db"}},
		"not a database": {func(d *daemon, file string) {
			if err := os.WriteFile(file, []byte(strings.Repeat("garbage ", 2048)), 0o600); err != nil {
				d.t.Fatal(err)
			}
		}, []string{"vman.db"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t)
			d.template()
			d.stop()
			file := filepath.Join(d.state, "vman.db")
			tt.spoil(d, file)
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			said := d.fails()
			for _, word := range tt.say {
				if !strings.Contains(said, word) {
					t.Errorf("the refusal does not say %q:\n%s", word, said)
				}
			}
			if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
				t.Errorf("the database was changed (%v)", err)
			}
		})
	}
}

func TestAStateDirectoryThatCannotBeWrittenIsNamed(t *testing.T) {
	d := newDaemon(t)
	if err := os.MkdirAll(d.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", d.state, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(d.state, 0); err != nil {
			t.Error(err)
		}
	}()
	if said := d.fails(); !strings.Contains(said, d.state) {
		t.Errorf("the refusal does not name %s:\n%s", d.state, said)
	}
}

// TestNoRoom gives the daemon a small file system and fills it.
func TestNoRoom(t *testing.T) {
	d := newDaemon(t)
	if err := os.MkdirAll(d.state, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", d.state, "tmpfs", 0, "size=16m,mode=0711"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		d.kill()
		d.endVMs()
		if err := unix.Unmount(d.state, 0); err != nil {
			t.Error(err)
		}
	}()
	d.start()
	d.template()
	d.create("a")
	filler := filepath.Join(d.state, "filler")
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
		entries, err := os.ReadDir(filepath.Join(d.state, "disks"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := disks()
	d.call("POST", "/disks", map[string]any{"size": 1}).problem(507, "insufficient-storage")
	if n := disks(); n != before {
		t.Errorf("%d files; there were %d", n, before)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d.newDisk(1)
	if v := d.vm("a"); v.State != "stopped" {
		t.Errorf("the VM is %+v", v)
	}
}

func TestWithoutQEMUTheDaemonRuns(t *testing.T) {
	d := startDaemon(t, "VMAN_QEMU_BINARY=/nonexistent/qemu-system-x86_64", "VMAN_QEMU_IMG_BINARY=/nonexistent/qemu-img")
	d.template()
	health := as[openapi.Health](d.call("GET", "/health", nil).want(503))
	if health.Status != "degraded" || health.Checks.Qemu.Status != "degraded" || health.Checks.Database.Status != "ok" {
		t.Errorf("health: %+v", health)
	}
	disk := d.newDisk(1) // which takes no program
	p := d.call("PATCH", "/disks/"+disk.ID, map[string]any{"size": 2}).problem(503, "qemu-unavailable")
	if !strings.Contains(p.Detail+p.Hint, "qemu-utils") {
		t.Errorf("the problem does not name the package: %+v", p)
	}
	d.stop()
	d.env = append(d.env, "VMAN_QEMU_IMG_BINARY=qemu-img")
	d.start()
	d.create("a")
	p = d.call("POST", "/vms/a/actions/start", nil).problem(503, "qemu-unavailable")
	if !strings.Contains(p.Detail+p.Hint, "qemu-system-x86") {
		t.Errorf("the problem does not name the package: %+v", p)
	}
	if v := d.vm("a"); v.State != "stopped" {
		t.Errorf("the VM is %+v", v)
	}
}

func TestMoreMemoryThanTheHostHas(t *testing.T) {
	d := startDaemon(t)
	d.call("POST", "/templates", map[string]any{"name": "huge", "cpu_count": 1, "ram_amount": 4194304}).want(201)
	d.call("POST", "/vms", map[string]any{"template_name": "huge", "name": "a"}).want(201)
	d.call("POST", "/vms/a/actions/start", nil).problem(503, "insufficient-memory", "4194304")
	if v := d.vm("a"); v.State != "stopped" || v.DesiredState != "stopped" {
		t.Errorf("the VM is %+v", v)
	}
}

func TestADryRunStartsNothing(t *testing.T) {
	d := startDaemon(t, "VMAN_OPERATOR_DRY_RUN=1", "VMAN_QEMU_BINARY=/nonexistent")
	d.template()
	d.create("a")
	a := d.call("POST", "/vms/a/actions/start", nil, wait).want(200)
	if a.header.Get("X-Vman-Dry-Run") != "true" || as[openapi.VM](a).State != "running" {
		t.Errorf("started: %v %s", a.header, a.body)
	}
	disk := d.newDisk(1)
	d.attach(disk.ID, "a")
	if pids := d.qemus(); len(pids) != 0 {
		t.Errorf("QEMUs: %v", pids)
	}
	d.kill()
	d.start()
	d.waitVM("a", "running", "requested", 0)
	d.do("a", "stop")
	if v := d.call("GET", "/vms/nothing", nil).want(404); v.header.Get("X-Vman-Dry-Run") != "true" {
		t.Error("a problem does not say that this is a dry run")
	}
	d.clean()
}

// TestTheTCPDoor has its own client: there the peer's credentials say nothing.
func TestTheTCPDoor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	d := startDaemon(t, "VMAN_LISTEN="+address)
	file := filepath.Join(d.state, "admin.token")
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the token's file: %v, %v", info, err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(text))
	d.client.Transport.(*checked).next = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}, DisableKeepAlives: true}
	ask := func(path, authorization string) answer {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := d.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		a := answer{t: t, what: path, status: resp.StatusCode, header: resp.Header}
		a.body = make([]byte, 4096)
		n, _ := resp.Body.Read(a.body)
		a.body = a.body[:n]
		return a
	}
	ask("/health", "").want(200)
	ask("/vms", "").problem(401, "unauthorized")
	ask("/vms", "Bearer wrong").problem(401, "unauthorized")
	ask("/vms", "Basic "+token).problem(401, "unauthorized")
	ask("/vms", "Bearer "+token).want(200)
	d.stop() // and all of the log is written
	if strings.Contains(d.said(), token) {
		t.Error("the token is in the log")
	}
	if !strings.Contains(d.said(), file) {
		t.Error("the log does not say where the token is")
	}
}

func TestWhatTheCommandLineAnswers(t *testing.T) {
	tests := map[string]struct {
		args []string
		env  []string
		ok   bool
		say  []string
	}{
		"--version":                 {[]string{"--version"}, nil, true, []string{"vmand"}},
		"--help":                    {[]string{"--help"}, nil, true, []string{"--config", "--dry-run", "VMAN_LISTEN", "VMAN_STATE_DIR"}},
		"--check-config":            {[]string{"--check-config"}, nil, true, nil},
		"an unknown flag":           {[]string{"--lissten"}, nil, false, []string{"lissten"}},
		"an unknown variable":       {[]string{"--check-config"}, []string{"VMAN_LISSTEN=x"}, false, []string{"VMAN_LISSTEN", "VMAN_LISTEN"}},
		"an interval without units": {[]string{"--check-config"}, []string{"VMAN_OBSERVER_INTERVAL=3"}, false, []string{"observer.interval", "3s"}},
		"an interval that is long":  {[]string{"--check-config"}, []string{"VMAN_OBSERVER_INTERVAL=1m"}, false, []string{"observer.interval", "allow_slow"}},
		"a file that is not there":  {[]string{"--check-config", "--config", "/nonexistent.yaml"}, nil, false, []string{"/nonexistent.yaml"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(binary, tt.args...)
			cmd.Env = append(os.Environ(), tt.env...)
			out, err := cmd.CombinedOutput()
			if (err == nil) != tt.ok {
				t.Errorf("it ended with %v:\n%s", err, out)
			}
			for _, word := range tt.say {
				if !strings.Contains(string(out), word) {
					t.Errorf("it does not say %q:\n%s", word, out)
				}
			}
		})
	}
}
