package harness

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmand/test/need"
)

// A Daemon is a vmand with directories of its own. It and its VMs end with the test. The
// fields may be changed while it does not run.
type Daemon struct {
	T          testing.TB          // fails when the daemon does not do what the test expects
	StateDir   string              // VMAN_STATE_DIR
	RuntimeDir string              // VMAN_RUNTIME_DIR
	Env        []string            // added to the environment of the test
	Args       []string            // of the command line
	Binary     string              // empty: the vmand under test
	Host       *Namespace          // nil: the daemon runs in the namespaces of the test
	User       *syscall.Credential // nil: the daemon runs as the user of the test
	HTTP       *http.Client        // connects to the daemon, whatever the URL

	checker *contractChecker // of HTTP
	cmd     *exec.Cmd        // nil: the daemon does not run
	exited  chan error       // receives the end of cmd
	logFile string           // its standard error
}

// dirPrefix is the begin of the names of the daemons' directories.
const dirPrefix = "vmand"

// NewDaemon returns a daemon that does not run. Its directories can be traversed by
// QEMU's user, unlike those of t.TempDir. No daemon touches the network of the test's
// host: networks have the mode "user" unless env says otherwise.
func NewDaemon(t testing.TB, env ...string) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	d := &Daemon{
		T:          t,
		StateDir:   filepath.Join(dir, "s"),
		RuntimeDir: filepath.Join(dir, "r"),
		logFile:    filepath.Join(dir, "log"),
	}
	d.Env = append([]string{
		"VMAN_STATE_DIR=" + d.StateDir,
		"VMAN_RUNTIME_DIR=" + d.RuntimeDir,
		"VMAN_LISTEN=",
		"VMAN_QEMU_ACCEL=" + need.Accel(),
		"VMAN_OBSERVER_INTERVAL=1s",
		"VMAN_NETWORK_MODE=user",
	}, env...)
	d.checker = &contractChecker{t: t, next: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.RuntimeDir, "vmand.sock"))
		},
	}}
	d.HTTP = &http.Client{Transport: d.checker}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := os.ReadFile(d.logFile)
			t.Logf("the log of vmand:\n%s", tail(out, 8000))
		}
		d.Kill()
		d.HTTP.CloseIdleConnections()
		d.KillVMs()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return d
}

// StartDaemon starts a daemon and waits until it answers.
func StartDaemon(t testing.TB, env ...string) *Daemon {
	t.Helper()
	d := NewDaemon(t, env...)
	d.Start()
	return d
}

// Command returns the daemon's program with other arguments and the same environment,
// for the commands of an operator.
func (d *Daemon) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(cmp.Or(d.Binary, vmand), args...)
	cmd.Env = append(os.Environ(), d.Env...)
	return cmd
}

// Launch starts the daemon without waiting for its first answer.
func (d *Daemon) Launch() {
	d.T.Helper()
	log, err := os.OpenFile(d.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.T.Fatal(err)
	}
	defer log.Close()
	d.cmd = d.Command(d.Args...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: d.User} // like a service
	start := d.cmd.Start
	if d.Host != nil {
		start = func() error { return d.Host.Start(d.cmd) }
	}
	if err := start(); err != nil {
		d.T.Fatal(err)
	}
	d.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(d.cmd, d.exited)
}

// Start launches the daemon and waits until it answers.
func (d *Daemon) Start() {
	d.T.Helper()
	d.Launch()
	deadline := time.After(20 * time.Second)
	for {
		if resp, err := d.HTTP.Get("http://vmand/health"); err == nil {
			resp.Body.Close()
			return
		}
		select {
		case err := <-d.exited:
			d.exited <- err
			d.T.Fatalf("vmand ended while it started: %v\n%s", err, d.Log())
		case <-deadline:
			d.T.Fatalf("vmand does not answer\n%s", d.Log())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Kill kills the daemon. It is a no-op if the daemon does not run.
func (d *Daemon) Kill() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	<-d.exited
	d.cmd = nil
}

// Stop stops the daemon as a service manager does. Only a daemon that is stopped writes
// its coverage.
func (d *Daemon) Stop() {
	d.T.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.T.Fatal(err)
	}
	select {
	case err := <-d.exited:
		if err != nil {
			d.T.Fatalf("vmand ended with %v\n%s", err, d.Log())
		}
	case <-time.After(30 * time.Second):
		d.T.Fatalf("vmand does not stop\n%s", d.Log())
	}
	d.cmd = nil
}

// ConnectTCP makes the client connect to a TCP address instead of the daemon's socket.
func (d *Daemon) ConnectTCP(address string) {
	d.checker.next = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
		DisableKeepAlives: true,
	}
}

// PID returns the daemon's process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// WaitKilled waits until the daemon is killed by a signal, and ends the test if the
// daemon ends otherwise.
func (d *Daemon) WaitKilled() {
	d.T.Helper()
	select {
	case err := <-d.exited:
		if err == nil || err.Error() != "signal: killed" {
			d.T.Fatalf("vmand ended with %v", err)
		}
		d.cmd = nil
	case <-time.After(10 * time.Second):
		d.T.Fatal("vmand was not killed")
	}
}

// Refuses launches the daemon, ends the test if it runs, and returns its log.
func (d *Daemon) Refuses() string {
	d.T.Helper()
	d.Launch()
	select {
	case err := <-d.exited:
		d.cmd = nil
		if err == nil {
			d.T.Fatalf("vmand ended without an error\n%s", d.Log())
		}
	case <-time.After(20 * time.Second):
		d.T.Fatalf("vmand runs, want a refusal\n%s", d.Log())
	}
	return d.Log()
}

// Log returns the daemon's standard error so far, of all its runs.
func (d *Daemon) Log() string {
	out, err := os.ReadFile(d.logFile)
	if err != nil {
		d.T.Fatal(err)
	}
	return string(out)
}

// AdminToken returns the token that the daemon has written for its administrator.
func (d *Daemon) AdminToken() string {
	d.T.Helper()
	secret, err := os.ReadFile(filepath.Join(d.StateDir, "admin.token"))
	if err != nil {
		d.T.Fatal(err)
	}
	return strings.TrimSpace(string(secret))
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// SetT makes t the test that fails when the daemon does, and returns the test before.
func (d *Daemon) SetT(t testing.TB) testing.TB {
	before := d.T
	d.T = t
	if d.Host != nil {
		d.Host.T = t
	}
	d.checker.t = t
	return before
}
