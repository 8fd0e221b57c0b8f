package crash

import (
	"context"
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
	"vmand/test/harness"
)

const (
	tortureDefault = 120 * time.Second
	// requestTimeout is longer than any request may take.
	requestTimeout = 90 * time.Second
)

// A torture is a daemon that is killed again and again, with clients that send random
// requests.
type torture struct {
	*harness.Daemon
	gate    sync.RWMutex // held for reading to change anything, for writing to check
	tenants []*tenant
	marks   map[string]*atomic.Int64 // by VM: how often its QEMU was disturbed
	over    chan struct{}            // closed at the end

	operations, refused      atomic.Int64
	daemonKills, daemonStops atomic.Int64
	qemuKills, qemuStops     atomic.Int64
	garbage, lost            atomic.Int64
	checks, violated         atomic.Int64
}

// TestTorture runs for VMAN_TEST_TORTURE seconds. The seed, which VMAN_TEST_SEED can set,
// determines the requests, but not their timing.
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
	fmt.Printf("torture: seed %d, %s: %d operations, %d refused, %d daemon kills, %d daemon stops, "+
		"%d QEMU kills, %d QEMU stops, %d times garbage, %d disks lost by QEMU, %d checks, %d violations\n",
		seed, length, x.operations.Load(), x.refused.Load(), x.daemonKills.Load(), x.daemonStops.Load(),
		x.qemuKills.Load(), x.qemuStops.Load(), x.garbage.Load(), x.lost.Load(), x.checks.Load(), x.violated.Load())
	if !t.Failed() {
		x.DeleteAll()
		x.AssertEmpty()
	}
}

func newTorture(t *testing.T, seed uint64) *torture {
	t.Helper()
	x := &torture{
		Daemon: harness.NewDaemon(t, "VMAN_OBSERVER_INTERVAL=500ms", "VMAN_NETWORK_MODE=bridge"),
		marks:  map[string]*atomic.Int64{},
		over:   make(chan struct{}),
	}
	t.Cleanup(x.keepLog)
	x.Host = harness.NewNamespace(t, "host")
	x.HTTP.Timeout = requestTimeout
	x.Start()
	x.CreateTemplate()
	clients := 2 * parallelDaemons
	if lanes() == 1 {
		clients = 1
	}
	for _, id := range sharedVMs {
		x.CreateVM(id)
		x.marks[id] = new(atomic.Int64)
	}
	for i := range clients {
		c := newTenant(x, i, rand.New(rand.NewPCG(seed, uint64(i))))
		x.tenants = append(x.tenants, c)
		x.marks[c.vm] = new(atomic.Int64)
	}
	return x
}

// keepLog saves the log of the daemons if the test has failed.
func (x *torture) keepLog() {
	if !x.T.Failed() {
		return
	}
	kept := harness.File("build", "torture.log")
	err := os.MkdirAll(filepath.Dir(kept), 0o755)
	if err == nil {
		err = os.WriteFile(kept, []byte(x.Log()), 0o600)
	}
	x.T.Logf("saved the log of vmand in %s: %v", kept, err)
}

// violation fails the test and counts the violation.
func (x *torture) violation(format string, args ...any) {
	x.violated.Add(1)
	x.T.Errorf("violation: "+format, args...)
}

// reign kills, stops and starts the daemon until the deadline, and checks after each start.
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

// check waits until everything is settled and reports violations. It must be called with
// gate held.
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
			x.violation("disks %s and %s were made by one request", id, other)
		}
		sizes[disk.Size] = id
		if !slices.ContainsFunc(x.tenants, func(c *tenant) bool { return c.expects(id, disk.Size) }) {
			x.violation("no client has requested disk %s (%g GiB)", id, disk.Size)
		}
	}
	for id := range c.VMs {
		if x.marks[id] == nil {
			x.violation("no client has requested VM %s", id)
		}
	}
}

// lasting returns the violations that two or three looks find, with two passes of the
// observer before each. A VM that its policy restarts during a look is no violation.
func (x *torture) lasting() map[string]bool {
	var wrong map[string]bool
	for range 3 {
		harness.Eventually(x.T, time.Minute, "all operations to end", func() error {
			if open := harness.Get[[]openapi.Operation](x.Daemon, "/operations?state=running"); len(open) > 0 {
				return fmt.Errorf("%+v", open)
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

// freeLost stops the VMs of disks that QEMU has unplugged without removing their nodes. This
// is a fault of QEMU when the guest is reset while the disk is busy. Such a disk stays
// detaching until its QEMU has ended.
func (x *torture) freeLost() {
	for id, disk := range x.Census().Disks {
		vmID := harness.Deref(disk.VMID)
		if disk.State == "detaching" && x.holder(vmID) != 0 && !x.plugged(vmID, id) {
			x.lost.Add(1)
			x.forceStop(vmID)
		}
	}
}

// unplug stops the VMs of NICs that the guest does not release. They end with their QEMU.
func (x *torture) unplug() {
	for id, v := range x.Census().VMs {
		detaching := func(n openapi.NIC) bool { return n.State == "detaching" }
		if x.holder(id) != 0 && slices.ContainsFunc(v.NICs, detaching) {
			x.forceStop(id)
		}
	}
}

// forceStop stops a VM, which may have stopped by itself.
func (x *torture) forceStop(id string) {
	x.marks[id].Add(1)
	a := x.Call("POST", "/vms/"+id+"/actions/stop", map[string]any{"force": true}, harness.Wait)
	if a.Status != 200 && a.Status != 409 {
		x.violation("%s answered %d %s", a.Request, a.Status, a.Body)
	}
}

// plugged reports whether QEMU has the device of a disk. It returns true if QEMU does not
// answer.
func (x *torture) plugged(vmID, diskID string) bool {
	monitor, err := x.Monitor(x.T.Context(), vmID)
	if err != nil {
		return true
	}
	defer monitor.Close()
	path := map[string]string{"path": "/machine/peripheral/disk-" + diskID}
	err = monitor.Execute(x.T.Context(), "qom-list", path, nil)
	return err == nil
}

// watch reports VMs with two QEMUs.
func (x *torture) watch() {
	for x.rest(100 * time.Millisecond) {
		for id := range x.marks {
			if pids := harness.QEMUProcesses(x.T, fmt.Sprintf("%s/%s.pid", x.RuntimeDir, id)); len(pids) > 1 {
				x.violation("VM %s has the QEMUs %v", id, pids)
			}
		}
	}
}

// rest waits. It returns false at once when the torture is over.
func (x *torture) rest(d time.Duration) bool {
	select {
	case <-x.over:
		return false
	case <-time.After(d):
		return true
	}
}

// meddle kills, stops and confuses QEMUs.
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

// signal sends a signal to the QEMU of a VM and reports whether it has. It changes the VM's
// mark before and after, so that states acknowledged meanwhile do not count.
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

// holder returns the process id of a VM's QEMU, 0 if it is not known.
func (x *torture) holder(id string) int {
	pid, err := x.TryVMPID(id)
	if err != nil {
		return 0
	}
	return pid
}

// babble writes garbage to the operator's monitor, closes the connection and reports whether
// it could write.
func (x *torture) babble(id string, r *rand.Rand) bool {
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", x.MonitorPath(id))
	if err != nil {
		return false
	}
	defer conn.Close()
	noise := make([]byte, r.IntN(1<<16))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	texts := [][]byte{
		noise,
		[]byte(strings.Repeat("{", 1<<12)),
		[]byte("{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"no-such-command\"}\n{\"exec"),
		[]byte("\xff\xff\"\n\n[[1,2,{}]]\n"),
	}
	if err := conn.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return false
	}
	_, err = conn.Write(texts[r.IntN(len(texts))])
	return err == nil
}
