package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vmand/cli"
	"vmand/config"
	"vmand/host"
	"vmand/observer"
	"vmand/server"
	"vmand/store"
	"vmand/vm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// configure reads the configuration that args define. The test's own VMAN_ variables
// are unset.
func configure(t *testing.T, args ...string) (config.Config, error) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "VMAN_") {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	line, err := parseArgs(args)
	if err != nil {
		t.Fatal(err)
	}
	line.configFile = configFile(t, "") // so that the host's own file is not read
	return config.Read(line.sources())
}

func configFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vman.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// directories returns a state and a runtime directory that do not exist yet. Their
// path is short enough for sockets, and other users can traverse it.
func directories(t *testing.T) (state, run string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmand")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "s"), filepath.Join(dir, "r")
}

// dryRun configures a dry run in its own directories.
func dryRun(t *testing.T, args ...string) config.Config {
	t.Helper()
	state, run := directories(t)
	c, err := configure(t, append([]string{
		"--dry-run",
		"--listen=127.0.0.1:0",
		"--observer-interval=100ms",
		"--storage-low-mib=0",
		"--state-dir", state,
		"--runtime-dir", run,
	}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A running is a container whose run method is running.
type running struct {
	t *testing.T
	*container
	log  *lines
	stop func() // ends run and closes the container; idempotent
}

// lines is a log that can be read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start builds a container and runs it until the end of the test.
func start(t *testing.T, cfg config.Config) *running {
	t.Helper()
	return startPassed(t, cfg, passed{})
}

// startPassed is start with listeners that systemd passed.
func startPassed(t *testing.T, cfg config.Config, passed passed) *running {
	t.Helper()
	log := &lines{}
	ctx, cancel := context.WithCancel(t.Context())
	c, err := newContainer(ctx, cfg, passed, slog.New(slog.NewJSONHandler(log, nil)))
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.run(ctx) }()
	r := &running{t: t, container: c, log: log}
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("vmand does not stop\n%s", log)
		}
		if err := c.close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// call sends a request over TCP with the token, or over the unix socket if token is
// empty, and returns the answer.
func (r *running) call(method, path, body, token string) (status int, header http.Header, answer string) {
	r.t.Helper()
	l := r.listeners[0]
	if token != "" {
		l = r.listeners[1]
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, l.Addr().Network(), l.Addr().String())
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Prefer", "wait=10")
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

func (r *running) want(method, path, body string, status int) string {
	r.t.Helper()
	got, _, answer := r.call(method, path, body, "")
	if got != status {
		r.t.Fatalf("%s %s answered %d %s, want %d", method, path, got, answer, status)
	}
	return answer
}

func (r *running) token() string {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.cfg.StateDir, adminTokenFile))
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// eventually waits until check returns nil.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for err := check(); err != nil; err = check() {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestAVMSurvivesARestartOfTheDaemon(t *testing.T) {
	cfg := dryRun(t)
	r := start(t, cfg)
	r.want("POST", "/templates", `{"name":"small","cpu_count":1,"ram_amount":128}`, 201)
	r.want("POST", "/vms", `{"template_name":"small","name":"a"}`, 201)
	if got := r.want("POST", "/vms/a/actions/start", "", 200); !strings.Contains(got, `"running"`) {
		t.Errorf("the VM is %s, want it running", got)
	}
	status, header, answer := r.call("GET", "/vms/a", "", r.token())
	if status != 200 || header.Get("X-Vman-Dry-Run") != "true" {
		t.Errorf("over TCP with the token: %d %s, headers %v", status, answer, header)
	}
	if status, _, _ := r.call("GET", "/vms/a", "", "wrong"); status != 401 {
		t.Errorf("over TCP with a wrong token: %d, want 401", status)
	}
	file := filepath.Join(r.cfg.StateDir, adminTokenFile)
	if log := r.log.String(); strings.Contains(log, r.token()) || !strings.Contains(log, file) {
		t.Errorf("the log must contain the token's path, but not the token:\n%s", r.log)
	}
	r.stop()
	r = start(t, cfg)
	if got := r.want("GET", "/vms/a", "", 200); !strings.Contains(got, `"running"`) {
		t.Errorf("after a restart: %s", got)
	}
	if _, err := os.Stat(filepath.Join(cfg.StateDir, databaseFile)); !os.IsNotExist(err) {
		t.Errorf("a dry run created the real database: %v", err)
	}
}

func TestASecondVmandFailsAndNamesTheFirst(t *testing.T) {
	cfg := dryRun(t)
	r := start(t, cfg)
	_, err := newContainer(t.Context(), cfg, passed{}, slog.New(slog.DiscardHandler))
	for _, want := range []string{fmt.Sprintf("pid %d", os.Getpid()), r.cfg.StateDir} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
	r.want("GET", "/templates", "", 200)
	r.stop()
	start(t, cfg)
}

func TestTwoVmandsCannotShareARuntimeDirectory(t *testing.T) {
	r := start(t, dryRun(t))
	other := dryRun(t)
	other.RuntimeDir, other.Socket = filepath.Dir(r.cfg.RuntimeDir), "" // so that the socket is not the conflict
	_, err := newContainer(t.Context(), other, passed{}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "another vmand") || !strings.Contains(err.Error(), r.cfg.RuntimeDir) {
		t.Errorf("error %v, want one with the directory %s", err, r.cfg.RuntimeDir)
	}
	one := dryRun(t)
	one.RuntimeDir, one.Socket = one.StateDir, "" // one directory for both is allowed
	start(t, one)
}

func TestTheObserverReportsAFileWithoutARecord(t *testing.T) {
	r := start(t, dryRun(t))
	if err := os.WriteFile(filepath.Join(r.cfg.StateDir, "disks", "stray.qcow2"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		var status struct {
			Issues []struct {
				Type     string  `json:"issue_type"`
				Resource string  `json:"resource_id"`
				Repair   *string `json:"repair"`
			} `json:"last_issues"`
		}
		answer := r.want("GET", "/observer/status", "", 200)
		if err := json.Unmarshal([]byte(answer), &status); err != nil {
			t.Fatal(err)
		}
		if len(status.Issues) == 1 {
			i := status.Issues[0]
			if i.Type == "orphan_disk" && i.Resource == "stray" && i.Repair == nil {
				return nil
			}
		}
		return fmt.Errorf("the stray disk is not reported: %s", answer)
	})
	if _, err := os.Stat(filepath.Join(r.cfg.StateDir, "disks", "stray.qcow2")); err != nil {
		t.Errorf("the stray disk was removed: %v", err)
	}
}

func TestObserverRepairsAWrongRecordInAutoMode(t *testing.T) {
	for mode, want := range map[string][]string{
		"auto":   {`"repair_mode":"auto"`, `"repaired_at":"2`, `"state":"running"`},
		"report": {`"repair_mode":"report"`, `"repaired_at":null`, `"repair":null`, `"state":"stopped"`},
	} {
		t.Run(mode, func(t *testing.T) {
			r := start(t, dryRun(t, "--observer-interval=1s", "--observer-repair", mode))
			r.want("POST", "/templates", `{"name":"small","cpu_count":1,"ram_amount":128}`, 201)
			r.makeVM("a")
			v, err := r.store.VM(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			v.State = vm.Stopped
			apply(t, r.store, vm.Change{VM: &vm.VMUpdate{From: vm.Running, VM: v}})
			eventually(t, func() error {
				answer := r.want("GET", "/observer/status", "", 200)
				if !strings.Contains(answer, "vm_state_mismatch") {
					return fmt.Errorf("the mismatch is not reported: %s", answer)
				}
				answer += r.want("GET", "/vms/a", "", 200)
				for _, word := range want {
					if !strings.Contains(answer, word) {
						t.Errorf("the answer %s does not contain %s", answer, word)
					}
				}
				return nil
			})
		})
	}
}

func TestErrorsOfAFailedStartHaveAHint(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("KDMV is the magic of VMDK"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args []string
		want []string
	}{
		"a file for state_dir": {
			[]string{"--state-dir", file, "--dry-run=false"},
			[]string{"state_dir", file, "not a directory"},
		},
		"a file above state_dir": {
			[]string{"--state-dir", file + "/s"},
			[]string{"state_dir", file},
		},
		"a state_dir without write access": {
			[]string{"--state-dir", "/proc", "--dry-run=false"},
			[]string{"state_dir", "/proc", "uid"},
		},
		"a file for runtime_dir": {
			[]string{"--runtime-dir", file},
			[]string{"runtime_dir", file},
		},
		"a socket without a directory": {
			[]string{"--socket", "/nonexistent/s.sock"},
			[]string{"socket", "/nonexistent/s.sock"},
		},
		"a boot disk that does not exist": {
			[]string{"--default-boot-disk", "/nonexistent.qcow2"},
			[]string{"default_boot_disk", "/nonexistent.qcow2"},
		},
		"a boot disk in another format": {
			[]string{"--default-boot-disk", file},
			[]string{"default_boot_disk", "vmdk", "convert"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := newContainer(t.Context(), dryRun(t, tt.args...), passed{}, slog.New(slog.DiscardHandler))
			if err == nil {
				t.Fatal(c.close())
			}
			for _, word := range tt.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("error %v, want %q in it", err, word)
				}
			}
		})
	}
}

func TestATCPAddressThatIsTakenDelaysOnlyThatAddress(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r := start(t, dryRun(t, "--listen", taken.Addr().String()))
	_, _, answer := r.call("GET", "/health", "", "")
	if !strings.Contains(answer, "degraded") || !strings.Contains(answer, taken.Addr().String()) {
		t.Errorf("/health over the socket: %s", answer)
	}
	if !strings.Contains(r.log.String(), "an address of the API is not open") {
		t.Errorf("log: %s", r.log)
	}
	taken.Close()
	token, err := os.ReadFile(filepath.Join(r.cfg.StateDir, adminTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); r.listeners[1].Problem() != ""; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the address is not opened")
		}
	}
	if status, _, _ := r.call("GET", "/vms", "", strings.TrimSpace(string(token))); status != http.StatusOK {
		t.Errorf("status %d over TCP", status)
	}
}

func TestAProgramOfTheUserOfQEMUCannotUseTheTCPAddress(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run programs as another user")
	}
	r := start(t, dryRun(t, "--dry-run=false"))
	port := r.listeners[1].Addr().(*net.TCPAddr).Port
	get := fmt.Sprintf(`exec 3<>/dev/tcp/127.0.0.1/%d; printf 'GET /openapi.yaml HTTP/1.1\r\nHost: localhost\r\n\r\n' >&3; `+
		`head -c 12 <&3`, port)
	for uid, want := range map[int]string{r.driver.GuestUID(): "", r.driver.GuestUID() + 1: "HTTP/1.1 200"} {
		p := host.Program{Argv: []string{"/bin/bash", "-c", get}, Account: host.Account{UID: uid, GID: uid}}
		out, _ := p.Run(t.Context(), nil)
		if strings.Contains(out, "HTTP/1.1 200") != (want != "") {
			t.Errorf("uid %d: %q; want %q", uid, out, want)
		}
	}
	if !strings.Contains(r.log.String(), "a guest may not use the API of its host") {
		t.Errorf("log: %s", r.log)
	}
}

func TestADamagedDatabaseFailsTheStartAndReleasesTheDirectory(t *testing.T) {
	cfg := dryRun(t)
	start(t, cfg).stop()
	state, _ := cfg.Directories()
	db := filepath.Join(state, databaseFile)
	good, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(db, bytes.Repeat([]byte("rubbish "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = newContainer(t.Context(), cfg, passed{}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), db) {
		t.Errorf("error %v, want one that names the database", err)
	}
	if err := os.WriteFile(db, good, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, cfg)
}

func TestALinkToTheBootDiskIsResolved(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "v1.raw"), filepath.Join(dir, "current.raw")
	if err := os.WriteFile(file, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	r := start(t, dryRun(t, "--default-boot-disk", link))
	if want := (vm.DiskFile{SizeMiB: 3, Base: file, BaseFormat: "raw"}); r.cfg.Manager.Base != want {
		t.Errorf("base %+v, want %+v", r.cfg.Manager.Base, want)
	}
}

func TestWithoutQEMUHealthIsDegradedAndTheAPIAnswers(t *testing.T) {
	cfg := dryRun(t,
		"--dry-run=false",
		"--qemu-binary=/nonexistent/qemu-system-x86_64",
		"--qemu-img-binary=/nonexistent/qemu-img")
	r := start(t, cfg)
	status, _, answer := r.call("GET", "/health", "", "")
	if status != 503 {
		t.Errorf("status of /health is %d, want 503", status)
	}
	for _, want := range []string{`"degraded"`, "qemu-utils", "unknown without QEMU"} {
		if !strings.Contains(answer, want) {
			t.Errorf("health %s, want %q in it", answer, want)
		}
	}
	r.want("POST", "/templates", `{"name":"small","cpu_count":1,"ram_amount":128}`, 201)
	eventually(t, func() error {
		if log := r.log.String(); strings.Count(log, "a program is missing") == 2 {
			return nil
		}
		return fmt.Errorf("the log does not name the missing programs:\n%s", r.log)
	})
}

func TestHealthNamesTheDegradedPart(t *testing.T) {
	r := start(t, dryRun(t))
	r.want("GET", "/health", "", 200)
	h := r.health(t.Context())
	if h.Database.Degraded || h.Storage.Degraded || !strings.Contains(h.Storage.Detail, "MiB free") {
		t.Errorf("health %+v", h)
	}
	if check := checkStorage("/proc/self"); !check.Degraded || !strings.Contains(check.Detail, "/proc/self") {
		t.Errorf("a read-only directory: %+v", check)
	}
	if check := checkStorage("/nonexistent"); !check.Degraded {
		t.Errorf("no directory: %+v", check)
	}
	bad := observer.Status{Status: observer.StatusDegraded, Error: "no luck"}
	if check := checkObserver(bad); !check.Degraded || check.Detail != "no luck" {
		t.Errorf("a degraded observer: %+v", check)
	}
	r.stop()
	if h := r.health(t.Context()); !h.Database.Degraded || h.Database.Detail == "" {
		t.Errorf("with the database closed: %+v", h.Database)
	}
}

func TestSystemdIsNotified(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	expect := func(want string) {
		t.Helper()
		if err := socket.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, err := socket.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("notified %q, %v; want %q", buf[:n], err, want)
		}
	}
	r := start(t, dryRun(t))
	expect("READY=1")
	r.stop()
	expect("STOPPING=1")
	socket.Close()
	start(t, dryRun(t)).want("GET", "/health", "", 200) // a missing socket is not an error
}

func TestTheAdminToken(t *testing.T) {
	open := func(t *testing.T, dir string) *store.Store {
		t.Helper()
		s, err := store.Open(t.Context(), store.Options{Path: filepath.Join(dir, databaseFile)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	log := slog.New(slog.DiscardHandler)
	hashes := func(t *testing.T, s *store.Store) []vm.Token {
		t.Helper()
		tokens, err := s.Tokens(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return tokens
	}
	ensure := func(t *testing.T, s *store.Store, dir string) [32]byte {
		t.Helper()
		if err := ensureAdminToken(t.Context(), s, dir, log); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, adminTokenFile))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("file %v, %v; want mode 0600", info, err)
		}
		hash, err := readSecret(filepath.Join(dir, adminTokenFile))
		if err != nil {
			t.Fatal(err)
		}
		tokens := hashes(t, s)
		if len(tokens) != 1 || tokens[0].Name != "admin" || tokens[0].Role != vm.RoleAdmin || tokens[0].Hash != hash {
			t.Errorf("tokens %+v, want one, with the secret in the file", tokens)
		}
		return hash
	}
	t.Run("stays the same", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, dir)
		first := ensure(t, s, dir)
		made := hashes(t, s)[0].CreatedAt
		if again := ensure(t, s, dir); again != first || !hashes(t, s)[0].CreatedAt.Equal(made) {
			t.Error("the token changed")
		}
		left, err := filepath.Glob(filepath.Join(dir, ".*"))
		if err != nil || len(left) != 0 {
			t.Errorf("temporary files are left: %q, %v", left, err)
		}
	})
	t.Run("is replaced when its file is removed", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, dir)
		first := ensure(t, s, dir)
		if err := os.Remove(filepath.Join(dir, adminTokenFile)); err != nil {
			t.Fatal(err)
		}
		if again := ensure(t, s, dir); again == first {
			t.Error("the old secret is still valid")
		}
	})
	t.Run("is kept when the database is new", func(t *testing.T) {
		dir := t.TempDir()
		first := ensure(t, open(t, dir), dir)
		if again := ensure(t, open(t, t.TempDir()), dir); again != first {
			t.Error("the secret in the file changed")
		}
	})
	t.Run("becomes private", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, dir)
		ensure(t, s, dir)
		if err := os.Chmod(filepath.Join(dir, adminTokenFile), 0o644); err != nil {
			t.Fatal(err)
		}
		ensure(t, s, dir)
	})
	for name, content := range map[string]string{
		"empty":     "",
		"short":     "secret\n",
		"two words": strings.Repeat("word ", 20),
	} {
		t.Run("is not read from a file that is "+name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			path := filepath.Join(dir, adminTokenFile)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := ensureAdminToken(t.Context(), s, dir, log); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want one that names the file", err)
			}
			if tokens := hashes(t, s); len(tokens) != 0 {
				t.Errorf("tokens %+v, want none", tokens)
			}
		})
	}
	t.Run("needs the database", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, dir)
		s.Close()
		if err := ensureAdminToken(t.Context(), s, dir, log); err == nil {
			t.Error("no error with the database closed")
		}
	})
	t.Run("needs a directory", func(t *testing.T) {
		if err := ensureAdminToken(t.Context(), open(t, t.TempDir()), "/nonexistent", log); err == nil {
			t.Error("no error without a directory")
		}
	})
}

func TestASignalStopsVmandInOrder(t *testing.T) {
	state, run2 := directories(t)
	mask := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(mask) })
	configure(t) // unsets the test's own variables
	ended := make(chan error, 1)
	go func() {
		ended <- run([]string{
			"--config", configFile(t, ""),
			"--dry-run",
			"--listen=",
			"--state-dir", state,
			"--runtime-dir", run2,
			"--log-level=error",
		}, cli.Streams{Out: io.Discard})
	}()
	eventually(t, func() error {
		c, err := net.Dial("unix", filepath.Join(run2, "vmand.sock"))
		if err == nil {
			c.Close()
		}
		return err
	})
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("vmand does not stop")
	}
	if _, err := os.Stat(filepath.Join(run2, "vmand.sock")); !os.IsNotExist(err) {
		t.Errorf("the socket still exists: %v", err)
	}
}

func TestFlagsThatOnlyPrintStartNothing(t *testing.T) {
	mask := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(mask) })
	state, run2 := directories(t)
	configure(t)
	empty := configFile(t, "")
	for word, args := range map[string][]string{
		"vmand " + version: {"--version"},
		"VMAN_LISTEN":      {"--help"},
		"is valid":         {"--check-config", "--config", empty, "--state-dir", state, "--runtime-dir", run2},
	} {
		var out bytes.Buffer
		if err := run(args, cli.Streams{Out: &out}); err != nil || !strings.Contains(out.String(), word) {
			t.Errorf("%q: error %v, output %q; want %q", args, err, out.String(), word)
		}
	}
	for _, args := range [][]string{
		{"--nonsense"},
		{"--check-config", "--qemu-accel=xen"},
		{"--config", empty, "--state-dir", "/proc/x", "--runtime-dir", run2},
	} {
		if err := run(args, cli.Streams{Out: io.Discard}); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("the state directory was created: %v", err)
	}
}

// A new token is long enough to be read back.
func TestANewTokenCanBeRead(t *testing.T) {
	secret, hash := server.NewToken()
	path := filepath.Join(t.TempDir(), adminTokenFile)
	if err := writeSecret(filepath.Dir(path), secret); err != nil {
		t.Fatal(err)
	}
	if got, err := readSecret(path); err != nil || got != hash {
		t.Errorf("hash %x, %v; want %x", got, err, hash)
	}
	if err := writeSecret(filepath.Join(t.TempDir(), "no", "such", "directory"), "x"); err == nil {
		t.Error("write to a directory that does not exist: no error")
	}
}

// daemonEvents returns the types of the daemon's events, oldest first, and their data.
func daemonEvents(t *testing.T, s *store.Store) (kinds []string, data string) {
	t.Helper()
	events, err := s.Events(t.Context(), vm.EventFilter{Type: "daemon."}, vm.Page{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		kinds = append(kinds, e.Type)
		data += string(e.Data)
	}
	return kinds, data
}

func TestStartAndStopOfTheDaemonAreEvents(t *testing.T) {
	cfg := dryRun(t)
	start(t, cfg).stop()
	r := start(t, cfg)
	kinds, data := daemonEvents(t, r.store)
	if want := []string{"daemon.started", "daemon.stopping", "daemon.started"}; !slices.Equal(kinds, want) {
		t.Errorf("events %q, want %q", kinds, want)
	}
	for _, word := range []string{
		fmt.Sprintf(`"pid":%d`, os.Getpid()),
		fmt.Sprintf(`"version":%q`, version),
		`"interrupted_operations":0`,
	} {
		if !strings.Contains(data, word) {
			t.Errorf("the events %s do not contain %s", data, word)
		}
	}
	r.stop()
	r.event(t.Context(), "daemon.started", nil) // with the database closed
	if !strings.Contains(r.log.String(), "cannot record an event") {
		t.Errorf("the log does not report the lost event:\n%s", r.log)
	}
}

func TestAfterABootOfTheHostVMsWithAutostartAreStarted(t *testing.T) {
	cfg := dryRun(t)
	r := start(t, cfg)
	r.want("POST", "/templates", `{"name":"small","cpu_count":1,"ram_amount":128}`, 201)
	for _, id := range []string{"a", "b"} {
		r.want("POST", "/vms", fmt.Sprintf(`{"template_name":"small","name":%q}`, id), 201)
		r.want("POST", "/vms/"+id+"/actions/start", "", 200)
	}
	edit := func(id string, edits vm.VMEdits) {
		t.Helper()
		if _, err := r.engine.VMs.Update(t.Context(), id, edits, nil); err != nil {
			t.Fatal(err)
		}
	}
	edit("a", vm.VMEdits{Autostart: &vm.Autostart{Enabled: true}})
	// restart restarts the daemon, after a boot of the host if boot is not empty,
	// and waits until VM a has the state and VM b has crashed.
	restart := func(state string, boot string) {
		t.Helper()
		r.stop()
		s, err := store.Open(t.Context(), store.Options{Path: filepath.Join(r.cfg.StateDir, databaseFile)})
		if err != nil {
			t.Fatal(err)
		}
		if boot != "" {
			err = s.SetNote(t.Context(), "boot", boot)
		}
		if err := errors.Join(err, s.Close(), os.RemoveAll(r.cfg.RuntimeDir)); err != nil { // ends the VMs of a dry run
			t.Fatal(err)
		}
		r = start(t, cfg)
		eventually(t, func() error {
			a, b := r.want("GET", "/vms/a", "", 200), r.want("GET", "/vms/b", "", 200)
			if !strings.Contains(a, `"state":"`+state+`"`) || !strings.Contains(b, `"state":"error"`) {
				return fmt.Errorf("a: %s\nb: %s\nwant a %s and b in error", a, b, state)
			}
			return nil
		})
	}
	restart("error", "")
	policy := vm.RestartAlways // does not start VM b at boot
	edit("b", vm.VMEdits{Restart: &policy})
	r.want("POST", "/vms/b/actions/start", "", 200)
	restart("running", "another boot")
	r.stop()
	r.autostart(t.Context())
	if !strings.Contains(r.log.String(), "cannot start the VMs with autostart") {
		t.Errorf("the log does not report the failed autostart:\n%s", r.log)
	}
}
