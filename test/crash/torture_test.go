package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/openapi"
	"vmand/qemu/qmp"
	"vmand/test/harness"
)

const (
	tortureClients = 8
	tortureDefault = 120 * time.Second
	// requestPatience is more than any request may take.
	requestPatience = 90 * time.Second
)

// A torture is a daemon with clients that do what they like, its own ends and
// those of its QEMUs, and what the clients were told.
type torture struct {
	*harness.Daemon
	gate    sync.RWMutex // held by whoever touches anything; the check holds it alone
	tenants []*tenant
	marks   map[string]*atomic.Int64 // by VM: how often its QEMU was meddled with
	over    chan struct{}

	operations, refused, daemonKills, daemonStops, qemuKills, qemuStops, garbage, lost, checks, violated atomic.Int64
}

// TestTorture runs for VMAN_TEST_TORTURE seconds. The seed, of VMAN_TEST_SEED or
// by chance, gives the same requests, but not the same moments.
func TestTorture(t *testing.T) {
	length, seed := tortureDefault, rand.Uint64()
	if s := os.Getenv("VMAN_TEST_TORTURE"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		length = time.Duration(n) * time.Second
	}
	if s := os.Getenv("VMAN_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	x := newTorture(t, seed)
	var wg sync.WaitGroup
	for _, c := range x.tenants {
		wg.Go(c.run)
	}
	wg.Go(func() { x.meddle(rand.New(rand.NewPCG(seed, 100))) })
	wg.Go(x.watch)
	x.reign(rand.New(rand.NewPCG(seed, 101)), time.Now().Add(length))
	close(x.over)
	wg.Wait()
	x.gate.Lock()
	x.check()
	x.gate.Unlock()
	fmt.Printf("torture: seed %d, %s: %d operations, %d refused, %d daemon kills, %d daemon stops, %d QEMU kills, %d QEMU stops, %d times garbage, %d disks lost by QEMU, %d checks, %d violations\n",
		seed, length, x.operations.Load(), x.refused.Load(), x.daemonKills.Load(), x.daemonStops.Load(), x.qemuKills.Load(), x.qemuStops.Load(),
		x.garbage.Load(), x.lost.Load(), x.checks.Load(), x.violated.Load())
	if !t.Failed() {
		x.DeleteAll()
		x.AssertEmpty()
	}
}

func newTorture(t *testing.T, seed uint64) *torture {
	t.Helper()
	x := &torture{Daemon: harness.NewDaemon(t, "VMAN_OBSERVER_INTERVAL=500ms", "VMAN_NETWORK_MODE=bridge"), marks: map[string]*atomic.Int64{}, over: make(chan struct{})}
	t.Cleanup(x.keepLog)
	x.Host = harness.NewNamespace(t, "host")
	x.HTTP.Timeout = requestPatience
	x.Start()
	x.CreateTemplate()
	for _, id := range sharedVMs {
		x.CreateVM(id)
		x.marks[id] = new(atomic.Int64)
	}
	for i := range tortureClients {
		c := newTenant(x, i, rand.New(rand.NewPCG(seed, uint64(i))))
		x.tenants = append(x.tenants, c)
		x.marks[c.vm] = new(atomic.Int64)
	}
	return x
}

// keepLog puts all that the daemons said where it can be read when something was
// not as it must be.
func (x *torture) keepLog() {
	if !x.T.Failed() {
		return
	}
	kept := harness.File("build", "torture.log")
	err := os.MkdirAll(filepath.Dir(kept), 0o755)
	if err == nil {
		err = os.WriteFile(kept, []byte(x.Log()), 0o600)
	}
	x.T.Logf("the log of vmand is in %s (%v)", kept, err)
}

// violation notes that something is so that must never be.
func (x *torture) violation(format string, args ...any) {
	x.violated.Add(1)
	x.T.Errorf("violation: "+format, args...)
}

// reign ends and starts the daemon until the deadline, and has everything
// checked after each time.
func (x *torture) reign(r *rand.Rand, deadline time.Time) {
	for time.Now().Before(deadline) {
		<-time.After(time.Duration(500+r.IntN(3500)) * time.Millisecond)
		end := r.IntN(10)
		switch {
		case end < 7:
			x.Kill()
			x.daemonKills.Add(1)
		case end < 8:
			x.Stop()
			x.daemonStops.Add(1)
		}
		x.gate.Lock()
		if end < 8 {
			x.Start()
		}
		x.check()
		x.gate.Unlock()
	}
}

// check lets everything come to rest and compares it with what it must be. The
// caller holds the gate.
func (x *torture) check() {
	for id := range x.marks {
		x.signal(id, unix.SIGCONT)
	}
	x.checks.Add(1)
	for v := range x.lasting() {
		x.violation("%s", v)
	}
	c := x.Census()
	for _, tenant := range x.tenants {
		tenant.compare(c)
	}
	sizes := map[float64]string{}
	for id, disk := range c.Disks {
		if other := sizes[disk.Size]; other != "" {
			x.violation("the disks %s and %s come from one request", id, other)
		}
		sizes[disk.Size] = id
		if !slices.ContainsFunc(x.tenants, func(c *tenant) bool { return c.expects(id, disk.Size) }) {
			x.violation("disk %s (%g GiB) was asked for by nobody", id, disk.Size)
		}
	}
	for id := range c.VMs {
		if x.marks[id] == nil {
			x.violation("VM %s was asked for by nobody", id)
		}
	}
}

// lasting returns what is wrong after two passes and still is after two more. A
// VM that is restarted by its policy in the middle of a look is not.
func (x *torture) lasting() map[string]bool {
	var wrong map[string]bool
	for range 3 {
		harness.Eventually(x.T, time.Minute, "the operations to end", func() error {
			if a := x.Call("GET", "/operations?state=running", nil).Want(200); strings.TrimSpace(string(a.Body)) != "[]" {
				return errors.New(string(a.Body))
			}
			return nil
		})
		x.freeLost()
		x.unplug()
		x.WaitPasses(2)
		still := map[string]bool{}
		for _, v := range x.Violations() {
			if wrong == nil || wrong[v] {
				still[v] = true
			}
		}
		if wrong = still; len(wrong) == 0 {
			break
		}
	}
	return wrong
}

// freeLost stops the VMs of disks that QEMU has taken from the guest and has not
// let go of: it forgets to, when the guest was reset while the disk was busy.
// Such a disk is detaching until its QEMU has ended, and then free.
func (x *torture) freeLost() {
	for id, disk := range x.Census().Disks {
		vmID := harness.Deref(disk.VMID)
		if disk.State != "detaching" || x.holder(vmID) == 0 || x.plugged(vmID, id) {
			continue
		}
		x.lost.Add(1)
		x.marks[vmID].Add(1)
		if a := x.Call("POST", "/vms/"+vmID+"/actions/stop", map[string]any{"force": true}, harness.Wait); a.Status != 200 && a.Status != 409 {
			x.violation("%s answered %d %s", a.Request, a.Status, a.Body)
		}
	}
}

// unplug stops the VMs of NICs that no guest lets go of: those go with their QEMU.
func (x *torture) unplug() {
	for id, v := range x.Census().VMs {
		if x.holder(id) == 0 || !slices.ContainsFunc(v.NICs, func(n openapi.NIC) bool { return n.State == "detaching" }) {
			continue
		}
		x.marks[id].Add(1)
		if a := x.Call("POST", "/vms/"+id+"/actions/stop", map[string]any{"force": true}, harness.Wait); a.Status != 200 && a.Status != 409 {
			x.violation("%s answered %d %s", a.Request, a.Status, a.Body)
		}
	}
}

// plugged asks QEMU whether it has the device of a disk.
func (x *torture) plugged(vmID, diskID string) bool {
	monitor, err := qmp.Dial(x.T.Context(), filepath.Join(x.RuntimeDir, vmID+".op-qmp"))
	if err != nil {
		return true
	}
	defer monitor.Close()
	err = monitor.Execute(x.T.Context(), "qom-list", map[string]string{"path": "/machine/peripheral/disk-" + diskID}, nil)
	return err == nil
}

// watch looks all the time for a VM that has two QEMUs.
func (x *torture) watch() {
	for x.rest(100 * time.Millisecond) {
		for id := range x.marks {
			if pids := harness.QEMUProcesses(x.T, fmt.Sprintf("%s/%s.pid", x.RuntimeDir, id)); len(pids) > 1 {
				x.violation("VM %s has the QEMUs %v", id, pids)
			}
		}
	}
}

// rest waits and reports false once the torture is over.
func (x *torture) rest(d time.Duration) bool {
	select {
	case <-x.over:
		return false
	case <-time.After(d):
		return true
	}
}

// meddle does to QEMUs what they do not expect.
func (x *torture) meddle(r *rand.Rand) {
	ids := slices.Clone(sharedVMs)
	for _, c := range x.tenants {
		ids = append(ids, c.vm)
	}
	for x.rest(time.Duration(r.IntN(500)) * time.Millisecond) {
		id := ids[r.IntN(len(ids))]
		x.gate.RLock()
		switch r.IntN(4) {
		case 0:
			if x.signal(id, unix.SIGKILL) {
				x.qemuKills.Add(1)
			}
		case 1:
			if x.signal(id, unix.SIGSTOP) {
				x.qemuStops.Add(1)
				time.AfterFunc(time.Duration(r.IntN(8000))*time.Millisecond, func() { x.signal(id, unix.SIGCONT) })
			}
		default:
			if x.babble(id, r) {
				x.garbage.Add(1)
			}
		}
		x.gate.RUnlock()
	}
}

// signal signals the VM's QEMU, if it has one, and notes it before and after:
// what was said of the VM's state meanwhile means nothing.
func (x *torture) signal(id string, s unix.Signal) bool {
	if s != unix.SIGCONT {
		x.marks[id].Add(1)
		defer x.marks[id].Add(1)
	}
	pid := x.holder(id)
	if pid == 0 {
		return false
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return x.holder(id) == pid && unix.PidfdSendSignal(fd, s, nil, 0) == nil
}

// holder is pid for goroutines of the test, which may not end it.
func (x *torture) holder(id string) int {
	f, err := os.Open(filepath.Join(x.RuntimeDir, id+".pid"))
	if err != nil {
		return 0
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return 0
	}
	return int(lock.Pid)
}

// babble writes what is no QMP to the operator's monitor and hangs up.
func (x *torture) babble(id string, r *rand.Rand) bool {
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(x.RuntimeDir, id+".op-qmp"))
	if err != nil {
		return false
	}
	defer conn.Close()
	noise := make([]byte, r.IntN(1<<16))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	texts := [][]byte{noise, []byte(strings.Repeat("{", 1<<12)), []byte("{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"no-such-command\"}\n{\"exec"),
		[]byte("\xff\xff\"\n\n[[1,2,{}]]\n")}
	if err := conn.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return false
	}
	_, err = conn.Write(texts[r.IntN(len(texts))])
	return err == nil
}
