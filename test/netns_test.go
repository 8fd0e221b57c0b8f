package test

import (
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
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A namespace is a network of its own, with its own interfaces, firewall and
// /proc/sys/net, and a file tree in which /sys shows that network. It is one
// locked thread, and ends with the test.
type namespace struct {
	t     testing.TB
	name  string
	net   *os.File // the network, to move interfaces into
	tasks chan func()
}

// newNamespace returns an empty one. Its name is for messages only.
func newNamespace(t testing.TB, name string) *namespace {
	t.Helper()
	n := &namespace{t: t, name: name, tasks: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		// Never unlocked: the thread has another network than the rest and must end
		// with this goroutine.
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
		t.Fatalf("make the namespace %s: %v", name, err)
	}
	t.Cleanup(func() {
		n.net.Close()
		close(n.tasks)
	})
	n.linkUp("lo")
	return n
}

func (n *namespace) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	var err error
	n.net, err = os.Open("/proc/thread-self/ns/net")
	return err
}

// do runs f in the namespace: sockets that f opens itself, and not in another
// goroutine, are of it, and so are processes that f starts. f may end the test
// only by t.Error.
func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.tasks <- func() {
		defer close(done)
		f()
	}
	<-done
}

// try runs f in the namespace and returns its error.
func (n *namespace) try(f func() error) error {
	var err error
	n.do(func() { err = f() })
	return err
}

// must runs f in the namespace; it ends the test if that fails.
func (n *namespace) must(what string, f func() error) {
	n.t.Helper()
	if err := n.try(f); err != nil {
		n.t.Fatalf("%s: %s: %v", n.name, what, err)
	}
}

func (n *namespace) linkUp(name string) {
	n.t.Helper()
	n.must("bring up "+name, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
}

// address adds addresses with their prefix lengths to an interface.
func (n *namespace) address(name string, addresses ...string) {
	n.t.Helper()
	n.must("give "+name+" its addresses", func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, text := range addresses {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				return fmt.Errorf("%s: %w", text, err)
			}
		}
		return nil
	})
}

// route adds a route; an empty destination is the default one.
func (n *namespace) route(destination, gateway string) {
	n.t.Helper()
	n.must("add a route", func() error {
		r := netlink.Route{Gw: net.ParseIP(gateway)}
		if destination != "" {
			var err error
			if _, r.Dst, err = net.ParseCIDR(destination); err != nil {
				return err
			}
		}
		return netlink.RouteAdd(&r)
	})
}

// bridge makes a bridge, which is up.
func (n *namespace) bridge(name string) {
	n.t.Helper()
	n.must("make the bridge "+name, func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}})
	})
	n.linkUp(name)
}

// plug connects an interface of n to the bridge of another namespace.
func (n *namespace) plug(name string, to *namespace, bridge string) {
	n.t.Helper()
	to.must("plug in "+n.name, func() error {
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		port := "p-" + n.name
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: master.Attrs().Index, TxQLen: -1},
			PeerName: name, PeerNamespace: netlink.NsFd(n.net.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		link, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	n.linkUp(name)
}

// links returns the names of the interfaces whose name begins with a prefix.
func (n *namespace) links(prefix string) []string {
	n.t.Helper()
	var names []string
	n.must("list the interfaces", func() error {
		all, err := netlink.LinkList()
		for _, l := range all {
			if strings.HasPrefix(l.Attrs().Name, prefix) {
				names = append(names, l.Attrs().Name)
			}
		}
		return err
	})
	slices.Sort(names)
	return names
}

// sysctl returns a setting, such as "net/ipv4/ip_forward".
func (n *namespace) sysctl(name string) string {
	n.t.Helper()
	var value []byte
	n.must("read "+name, func() error {
		var err error
		value, err = os.ReadFile(filepath.Join("/proc/sys", name))
		return err
	})
	return strings.TrimSpace(string(value))
}

// write sets a setting.
func (n *namespace) write(name, value string) {
	n.t.Helper()
	n.must("set "+name, func() error { return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0) })
}

// replace shows a file with another content to the processes of the namespace.
func (n *namespace) replace(file, content string) {
	n.t.Helper()
	with := filepath.Join(n.t.TempDir(), filepath.Base(file))
	if err := os.WriteFile(with, []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
	n.must("replace "+file, func() error { return unix.Mount(with, file, "", unix.MS_BIND, "") })
}

// start starts a process in the namespace.
func (n *namespace) start(cmd *exec.Cmd) error { return n.try(cmd.Start) }

// vmt runs the guest's tool in the namespace to its end, and returns what it
// printed and its error, which has what it complained of.
func (n *namespace) vmt(stdin string, args ...string) (string, error) {
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(n.t.Context(), filepath.Join(guests, "vmt"), args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &complaint
	if err := n.start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, complaint.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// background starts the guest's tool in the namespace; it ends with the test.
// What it prints comes line by line.
func (n *namespace) background(args ...string) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command(filepath.Join(guests, "vmt"), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	n.t.Cleanup(func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// dial opens a TCP connection from the namespace.
func (n *namespace) dial(address string) (net.Conn, error) {
	var conn net.Conn
	err := n.try(func() error {
		var err error
		conn, err = net.DialTimeout("tcp", address, 3*time.Second)
		return err
	})
	return conn, err
}

// get asks an HTTP server, from the namespace, and returns the body.
func (n *namespace) get(address string) (string, error) {
	conn, err := n.dial(address)
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
