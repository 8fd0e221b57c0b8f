package harness

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Namespace is a network namespace, with interfaces, a firewall and /proc/sys/net of
// its own, and a mount namespace in which /sys shows that network. It lives in one locked
// thread and ends with the test.
type Namespace struct {
	T     testing.TB
	Name  string   // for messages
	net   *os.File // to move interfaces into the namespace
	tasks chan func()
}

// NewNamespace returns a namespace with a loopback interface that is up.
func NewNamespace(t testing.TB, name string) *Namespace {
	t.Helper()
	n := &Namespace{T: t, Name: name, tasks: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		// The thread is never unlocked: it must not run other goroutines, and ends
		// with this one.
		runtime.LockOSThread()
		err := n.enter()
		ready <- err
		if err != nil {
			return
		}
		for task := range n.tasks {
			task()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("create namespace %s: %v", name, err)
	}
	t.Cleanup(func() {
		n.net.Close()
		close(n.tasks)
	})
	n.LinkUp("lo")
	return n
}

// enter moves the calling thread into new namespaces.
func (n *Namespace) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if err := unmountDaemons(); err != nil {
		return err
	}
	var err error
	n.net, err = os.Open("/proc/thread-self/ns/net")
	return err
}

// unmountDaemons removes the file systems of daemons from the calling thread's mount
// namespace. The namespace would keep a file system in use that another test, which may run
// in another process, has unmounted and mounts again.
func unmountDaemons() error {
	mounts, err := os.ReadFile("/proc/thread-self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		dir := strings.Fields(line)[1]
		if !strings.HasPrefix(dir, filepath.Join(os.TempDir(), dirPrefix)) {
			continue
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return nil
}

// Do runs f in the namespace. Sockets that f opens belong to the namespace, unless it
// opens them in another goroutine, and so do processes that f starts. f must not call
// FailNow.
func (n *Namespace) Do(f func()) {
	done := make(chan struct{})
	n.tasks <- func() {
		defer close(done)
		f()
	}
	<-done
}

// Try runs f in the namespace and returns its error.
func (n *Namespace) Try(f func() error) error {
	var err error
	n.Do(func() { err = f() })
	return err
}

// Must runs f in the namespace and ends the test if it fails.
func (n *Namespace) Must(what string, f func() error) {
	n.T.Helper()
	if err := n.Try(f); err != nil {
		n.T.Fatalf("namespace %s: %s: %v", n.Name, what, err)
	}
}

// Sysctl returns a kernel setting, such as "net/ipv4/ip_forward".
func (n *Namespace) Sysctl(name string) string {
	n.T.Helper()
	var value []byte
	n.Must("read "+name, func() error {
		var err error
		value, err = os.ReadFile(filepath.Join("/proc/sys", name))
		return err
	})
	return strings.TrimSpace(string(value))
}

// SetSysctl changes a kernel setting.
func (n *Namespace) SetSysctl(name, value string) {
	n.T.Helper()
	n.Must("set "+name, func() error {
		return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
	})
}

// ReplaceFile makes the processes of the namespace see a file with another content.
func (n *Namespace) ReplaceFile(file, content string) {
	n.T.Helper()
	with := filepath.Join(n.T.TempDir(), filepath.Base(file))
	if err := os.WriteFile(with, []byte(content), 0o644); err != nil {
		n.T.Fatal(err)
	}
	n.Must("replace "+file, func() error { return unix.Mount(with, file, "", unix.MS_BIND, "") })
}

// Start starts a process in the namespace.
func (n *Namespace) Start(cmd *exec.Cmd) error { return n.Try(cmd.Start) }

// VMT runs the guest's tool in the namespace and returns its output. The error contains
// its standard error.
func (n *Namespace) VMT(stdin string, args ...string) (string, error) {
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(n.T.Context(), GuestFile("vmt"), args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &stderr
	if err := n.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("vmt %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(out.String()), nil
}

// background returns the guest's tool, to be started in the namespace. It ends with the
// test.
func (n *Namespace) background(args ...string) *exec.Cmd {
	n.T.Helper()
	cmd := exec.Command(GuestFile("vmt"), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	n.T.Cleanup(func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// Serve runs the services of `vmt serve` in the namespace until the test ends.
func (n *Namespace) Serve() {
	n.T.Helper()
	cmd := n.background("serve")
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.T.Fatal(err)
	}
	if err := n.Start(cmd); err != nil {
		n.T.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		n.T.Fatalf("namespace %s: vmt serve printed %q: %v", n.Name, line, err)
	}
}

// WaitHTTP waits until an HTTP server at an address answers the namespace, and returns
// the answer.
func (n *Namespace) WaitHTTP(address string) string {
	n.T.Helper()
	var body string
	Eventually(n.T, 20*time.Second, fmt.Sprintf("namespace %s to reach %s", n.Name, address), func() error {
		var err error
		body, err = n.HTTPGet(address)
		return err
	})
	return body
}

// Dial opens a TCP connection from the namespace.
func (n *Namespace) Dial(address string) (net.Conn, error) {
	var conn net.Conn
	err := n.Try(func() error {
		var err error
		conn, err = net.DialTimeout("tcp", address, 3*time.Second)
		return err
	})
	return conn, err
}

// HTTPGet requests / of an HTTP server from the namespace and returns the body.
func (n *Namespace) HTTPGet(address string) (string, error) {
	conn, err := n.Dial(address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	dialed := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	client := &http.Client{Transport: &http.Transport{DialContext: dialed, DisableKeepAlives: true}}
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(body)), err
}
