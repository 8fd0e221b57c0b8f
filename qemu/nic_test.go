package qemu

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/test/need"
	"vmand/vm"
)

// nics returns the slots of the NICs that Observe reports for a VM.
func (h *testHost) nics(id string) []int {
	h.t.Helper()
	o := h.Observe(h.t.Context(), id)
	if o.NICs == nil || o.Plugged == nil {
		h.t.Fatalf("the plugged NICs of VM %s are unknown: %+v", id, o)
	}
	return o.NICs
}

// human runs a command of a VM's human monitor.
func (h *testHost) human(id, command string) string {
	h.t.Helper()
	s, err := h.live(id)
	must(h.t, err)
	said, err := s.human(h.t.Context(), command)
	must(h.t, err)
	return said
}

// streamPort returns a port and the other end of its stream.
func streamPort(t *testing.T, slot int) (p vm.Port, far *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	p = testPort(slot, vm.PortStream)
	p.Files = []*os.File{os.NewFile(uintptr(fds[0]), "near")}
	far = os.NewFile(uintptr(fds[1]), "far")
	t.Cleanup(func() { far.Close(); vm.ClosePorts([]vm.Port{p}) })
	return p, far
}

// mustEnd fails the test if a process still has the other end of a stream open.
func mustEnd(t *testing.T, far *os.File) {
	t.Helper()
	must(t, far.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := io.Copy(io.Discard, far); err != nil {
		t.Errorf("a process still has the port open: %v", err)
	}
}

// mustBeRead fails the test if no process reads the other end of a stream.
func mustBeRead(t *testing.T, far *os.File) {
	t.Helper()
	if _, err := far.Write([]byte{0, 0, 0, 1, 'x'}); err != nil { // a frame of one byte
		t.Fatalf("no process has the port open: %v", err)
	}
	raw, err := far.SyscallConn()
	must(t, err)
	await(t, "a frame is read", func() bool {
		left := -1
		must(t, raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }))
		must(t, err)
		return left == 0
	})
}

func TestNICIsPluggedAndUnplugged(t *testing.T) {
	h := newHost(t)
	h.start("web", guestEjects)
	for range 2 {
		p, far := streamPort(t, 1)
		p.LinkDown, p.MTU = true, 9000
		must(t, h.AttachNIC(t.Context(), "web", p))
		vm.ClosePorts([]vm.Port{p})
		mustBeRead(t, far)
		must(t, h.AttachNIC(t.Context(), "web", testPortAgain(t, 1))) // there is nothing to do
		if got := h.nics("web"); !slices.Equal(got, []int{0, 1}) {
			t.Fatalf("NICs: %v", got)
		}
		for range 2 { // the second time there is nothing to do
			must(t, h.DetachNIC(t.Context(), "web", 1))
		}
		mustEnd(t, far)
		if got := h.nics("web"); !slices.Equal(got, []int{0}) {
			t.Fatalf("NICs: %v", got)
		}
	}
	must(t, h.DetachNIC(t.Context(), "web", 0)) // of the start
	if got := h.human("web", "info network"); got != "" || len(h.nics("web")) != 0 {
		t.Errorf("the netdevs that are left: %s", got)
	}
}

// testPortAgain returns a port for a slot that has a NIC already.
func testPortAgain(t *testing.T, slot int) vm.Port {
	p, _ := streamPort(t, slot)
	return p
}

func TestAVMHasRoomForAllItsNICs(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	var all []int
	for slot := range vm.MaxNICs {
		p, _ := streamPort(t, slot)
		if slot%2 == 1 {
			p.Model = vm.NICE1000e
		}
		must(t, h.AttachNIC(t.Context(), "web", p))
		all = append(all, slot)
	}
	if got := h.nics("web"); !slices.Equal(got, all) {
		t.Errorf("NICs: %v", got)
	}
	must(t, h.Reset(t.Context(), "web"))
	await(t, "the firmware finds all NICs", func() bool {
		return strings.Count(h.human("web", "info pci"), "Ethernet controller") == vm.MaxNICs
	})
}

func TestUncooperativeGuestKeepsItsNICUntilAReset(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	p, far := streamPort(t, 1)
	must(t, h.AttachNIC(t.Context(), "web", p))
	vm.ClosePorts([]vm.Port{p})
	begin := time.Now()
	err := h.DetachNIC(t.Context(), "web", 1)
	if took := time.Since(begin); codeOf(err) != vm.CodeUnavailable || took < nicTimeout || took > 2*nicTimeout {
		t.Errorf("got %v after %v", err, took)
	}
	must(t, h.Pause(t.Context(), "web"))
	begin = time.Now()
	err = h.DetachNIC(t.Context(), "web", 1)
	took := time.Since(begin)
	if !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), "paused") || took > nicTimeout/2 {
		t.Errorf("paused: %v after %v", err, took)
	}
	mustBeRead(t, far)
	if got := h.nics("web"); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("NICs: %v", got)
	}
	must(t, h.Reset(t.Context(), "web"))
	await(t, "the NIC is gone", func() bool { return slices.Equal(h.nics("web"), []int{0}) })
	must(t, h.DetachNIC(t.Context(), "web", 1)) // removes the host's half
	mustEnd(t, far)
}

func TestANICIsNotChangedBeforeTheGuestRuns(t *testing.T) {
	h := newHost(t)
	h.launch(h.create("web", guestEjects), "") // as Start does, without the last step
	h.awaitStatus("web", vm.StatusPrelaunch)
	mustFail(t, h.DetachNIC(t.Context(), "web", 0), vm.CodeUnavailable)
	mustFail(t, h.AttachNIC(t.Context(), "web", userPort(1)), vm.CodeUnavailable)
	if got := h.nics("web"); !slices.Equal(got, []int{0}) {
		t.Errorf("NICs: %v", got)
	}
	must(t, h.Resume(t.Context(), "web"))
	must(t, h.DetachNIC(t.Context(), "web", 0))
}

func TestANICOfAVMThatDoesNotRunIsNotPlugged(t *testing.T) {
	h := newHost(t)
	mustFail(t, h.AttachNIC(t.Context(), "web", userPort(1)), vm.CodeState)
	mustFail(t, h.SetLink(t.Context(), "web", 1, true), vm.CodeState)
	mustFail(t, h.SetForwards(t.Context(), "web", 1, nil, nil), vm.CodeState)
	must(t, h.DetachNIC(t.Context(), "web", 1))
}

func TestRefusedNICLeavesNothing(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	before := h.human("web", "info network")
	for name, change := range map[string]func(*vm.Port){
		"the card":        func(p *vm.Port) { p.MAC = "no address" },
		"the host's half": func(p *vm.Port) { p.Kind = vm.PortTap },
	} {
		p, far := streamPort(t, 1)
		change(&p)
		if err := h.AttachNIC(t.Context(), "web", p); codeOf(err) != vm.CodeOperationFailed {
			t.Errorf("%s: %v", name, err)
		}
		vm.ClosePorts([]vm.Port{p})
		mustEnd(t, far)
		if got := h.human("web", "info network"); got != before {
			t.Errorf("%s: the netdevs that are left: %s", name, got)
		}
	}
	must(t, h.AttachNIC(t.Context(), "web", userPort(1)))
	mustFail(t, h.AttachNIC(t.Context(), "web", testPort(2, vm.PortTap)), vm.CodeInvalid)
}

func TestAnInterruptedPlugOfANICIsFinishedByTheNext(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	s, err := h.live("web")
	must(t, err)
	p, far := streamPort(t, 1)
	host, _, err := nicPair(p, passedAs(p))
	must(t, err)
	must(t, s.passFiles(t.Context(), p))
	must(t, s.passFiles(t.Context(), p)) // as an interrupted attempt before
	must(t, s.execute(t.Context(), queryTimeout, "netdev_add", host, nil))
	vm.ClosePorts([]vm.Port{p})
	mustBeRead(t, far)
	must(t, h.AttachNIC(t.Context(), "web", userPort(1)))
	mustEnd(t, far)
	connected := strings.Contains(h.human("web", "info network"), "net-1: index=0,type=user")
	if got := h.nics("web"); !slices.Equal(got, []int{0, 1}) || !connected {
		t.Errorf("NICs: %v, %s", got, h.human("web", "info network"))
	}
}

// netns is an empty network namespace.
type netns struct{ file *os.File }

func newNetns(t *testing.T) netns {
	t.Helper()
	need.Namespaces(t)
	var ns netns
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			ns.file, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	err := <-made
	need.Privilege(t, err)
	must(t, err)
	t.Cleanup(func() { ns.file.Close() })
	return ns
}

// do runs f in the namespace.
func (ns netns) do(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	must(t, <-done)
}

// tapPort creates a tap and returns the port of a NIC on it.
func (ns netns) tapPort(t *testing.T, slot int, name string) vm.Port {
	t.Helper()
	p := testPort(slot, vm.PortTap)
	ns.do(t, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		p.Files = []*os.File{os.NewFile(uintptr(fd), "tap")}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	return p
}

// has reports whether the namespace has an interface.
func (ns netns) has(t *testing.T, name string) bool {
	found := false
	ns.do(t, func() error {
		_, err := net.InterfaceByName(name)
		found = err == nil
		return nil
	})
	return found
}

func TestTapStaysOpenUntilTheNICIsUnplugged(t *testing.T) {
	h, ns := newHost(t), newNetns(t)
	s := h.create("web", guestEjects)
	s.Ports = []vm.Port{ns.tapPort(t, 0, "first")}
	h.startSpec(s)
	vm.ClosePorts(s.Ports)
	p := ns.tapPort(t, 1, "second")
	must(t, h.AttachNIC(t.Context(), "web", p))
	vm.ClosePorts([]vm.Port{p})
	for slot, name := range []string{"first", "second"} {
		if !ns.has(t, name) {
			t.Fatalf("tap %s does not exist: %s", name, h.human("web", "info network"))
		}
		must(t, h.DetachNIC(t.Context(), "web", slot))
		if ns.has(t, name) {
			t.Errorf("tap %s still exists", name)
		}
	}
}

// linkUp reports the link state that the e1000e of a VM shows its guest: bit 1 of the
// register STATUS at 8 (Intel 82574, section 10.2.2.2).
func (h *testHost) linkUp(id string) bool {
	h.t.Helper()
	bar := regexp.MustCompile(`(?s)device 8086:10d3.*?BAR0: 32 bit memory at (0x[0-9a-f]+) \[`)
	var found []string
	await(h.t, "the firmware sets up the card", func() bool {
		found = bar.FindStringSubmatch(h.human(id, "info pci"))
		return found != nil && found[1] != "0xffffffff"
	})
	base, err := strconv.ParseUint(found[1], 0, 64)
	must(h.t, err)
	_, value, _ := strings.Cut(h.human(id, "xp /1wx 0x"+strconv.FormatUint(base+8, 16)), ": ")
	status, err := strconv.ParseUint(value, 0, 32)
	must(h.t, err)
	return status&2 != 0
}

func TestTheGuestSeesItsLink(t *testing.T) {
	h := newHost(t)
	s := h.create("web", guestDeaf)
	s.Ports[0].Model, s.Ports[0].LinkDown = vm.NICE1000e, true
	h.startSpec(s)
	if h.linkUp("web") {
		t.Error("the link is up at the start")
	}
	for _, up := range []bool{true, true, false, false, true} {
		must(t, h.SetLink(t.Context(), "web", 0, up))
		// A card takes half a second to negotiate the link.
		await(t, "the guest sees the new state of the link", func() bool { return h.linkUp("web") == up })
	}
	must(t, h.SetLink(t.Context(), "web", 0, false))
	must(t, h.Reset(t.Context(), "web"))
	if h.linkUp("web") {
		t.Error("the link is up after a reset")
	}
	mustFail(t, h.SetLink(t.Context(), "web", 3, true), vm.CodeState)
}

func TestADetachOfANICSucceedsIfQEMUDies(t *testing.T) {
	h := newHost(t)
	h.start("web", guestDeaf)
	h.suspend("web") // so that it dies with the command in progress
	detached := make(chan error, 1)
	go func() { detached <- h.DetachNIC(context.WithoutCancel(t.Context()), "web", 0) }()
	must(t, h.kill("web"))
	must(t, <-detached)
}
