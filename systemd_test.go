package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/config"
)

// notifications returns a channel of the states that vmand reports to systemd.
func notifications(t *testing.T) <-chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	states := make(chan string, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			states <- string(b[:n])
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return states
}

// next waits for a state with a prefix, and skips others.
func next(t *testing.T, states <-chan string, prefix string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case s := <-states:
			if strings.HasPrefix(s, prefix) {
				return
			}
		case <-deadline:
			t.Fatalf("systemd is not notified of %s", prefix)
		}
	}
}

func TestSystemdIsNotifiedOfReadinessWatchdogAndStop(t *testing.T) {
	states := notifications(t)
	t.Setenv("WATCHDOG_USEC", "150000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	r := start(t, dryRun(t))
	next(t, states, "READY=1")
	for range 3 {
		next(t, states, "WATCHDOG=1")
	}
	if os.Getenv("WATCHDOG_USEC") != "" {
		t.Error("other programs inherit the watchdog's environment")
	}
	r.stop()
	next(t, states, "STOPPING=1")
}

func TestWatchdogNeedsObserverAndDatabase(t *testing.T) {
	r := start(t, dryRun(t))
	works := func() error { return r.works(t.Context(), time.Now(), time.Second) }
	if err := works(); err != nil {
		t.Errorf("a working vmand: %v", err)
	}
	if note, err := r.store.Note(t.Context(), watchdogNote); err != nil || note == "" {
		t.Errorf("the watchdog wrote %q, %v", note, err)
	}
	if err := r.works(t.Context(), time.Now(), 0); err == nil {
		t.Error("a database that does not answer counts as working")
	}
	r.stop()
	if err := works(); err == nil {
		t.Error("a closed database counts as working")
	}
}

func TestWatchdogSignalIsWithheldAndLogged(t *testing.T) {
	states := notifications(t)
	r := start(t, dryRun(t))
	next(t, states, "READY=1")
	r.stop()
	next(t, states, "STOPPING=1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.watchdogEvery(ctx, time.Millisecond) }()
	eventually(t, func() error {
		if !strings.Contains(r.log.String(), "withholds the watchdog's signal") {
			return errors.New("the log does not say that the signal is withheld")
		}
		return nil
	})
	cancel()
	<-done
	select {
	case s := <-states:
		t.Errorf("systemd is notified of %s", s)
	default:
	}
}

// listenFile returns the descriptor of a listener as systemd passes it.
func listenFile(t *testing.T, network, address string) *os.File {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return f
}

func TestListenersThatSystemdPassesReplaceTheSettings(t *testing.T) {
	cfg := dryRun(t)
	path := filepath.Join(filepath.Dir(cfg.StateDir), "door")
	var p passed
	for _, f := range []*os.File{listenFile(t, "unix", path), listenFile(t, "tcp", "127.0.0.1:0")} {
		if err := p.add(f, false); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	tcp := p.tcp.Addr().String()
	r := startPassed(t, cfg, p)
	if a, b := r.listeners[0].Addr().String(), r.listeners[1].Addr().String(); a != path || b != tcp {
		t.Fatalf("vmand listens on %s and %s, want %s and %s", a, b, path, tcp)
	}
	r.want("GET", "/vms", "", 200) // by the credentials of the peer
	if status, _, _ := r.call("GET", "/vms", "", "wrong"); status != 401 {
		t.Errorf("a wrong token over the passed TCP socket answers %d, want 401", status)
	}
	if status, _, body := r.call("GET", "/health", "", r.token()); status != 200 || !strings.Contains(body, path) {
		t.Errorf("GET /health answers %d %s", status, body)
	}
	if _, err := os.Stat(cfg.Socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of the setting exists, too: %v", err)
	}
	r.stop()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("vmand removed the socket of systemd: %v", err)
	}
}

func TestUnusablePassedSocketsAreRefused(t *testing.T) {
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	datagram, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for want, f := range map[string]*os.File{
		"must be a listening stream socket": file,
		"ListenStream=":                     os.NewFile(uintptr(datagram), "udp"),
		"beyond loopback":                   listenFile(t, "tcp", "0.0.0.0:0"),
	} {
		var p passed
		if err := p.add(f, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
		p.close()
		f.Close()
	}
	var p passed
	defer func() { p.close() }()
	for i, want := range []string{"", "second tcp socket"} {
		f := listenFile(t, "tcp", "0.0.0.0:0")
		err := p.add(f, true)
		f.Close()
		if want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("socket %d: %v; want %q", i, err, want)
		}
	}
}

func TestReloadReportsWhatTakesEffect(t *testing.T) {
	r := start(t, dryRun(t))
	level := &slog.LevelVar{}
	now := r.cfg
	var broken error
	r.settings = settings{current: now, level: level, read: func() (config.Config, error) { return now, broken }}
	for _, step := range []struct {
		change func()
		log    string
	}{
		{func() { now.LogLevel = slog.LevelDebug }, `"settings":["log.level"]`},
		{func() { now.QEMU.Accel = "tcg"; now.Listen = "127.0.0.1:1" }, `restart of vmand","settings":["listen","qemu.accel"]`},
		{func() { broken = errors.New("line 7") }, `cannot reload the settings; the ones from before are in effect","err":"line 7"`},
	} {
		step.change()
		r.reload(t.Context())
		if !strings.Contains(r.log.String(), step.log) {
			t.Errorf("the log does not contain %s:\n%s", step.log, r.log)
		}
	}
	if level.Level() != slog.LevelDebug {
		t.Errorf("the level is %s, want DEBUG", level.Level())
	}
	if n := strings.Count(r.log.String(), "the tokens are reloaded"); n != 3 {
		t.Errorf("the tokens were reloaded %d times, want 3", n)
	}
}
