package crash

import (
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/qemu/qmp"
	"vmand/test/harness"
)

const manyVMs = 50

// startMany returns a daemon with running VMs, vm-0 and so on, and their pids.
func startMany(t *testing.T, n int) (d *harness.Daemon, pids map[string]int) {
	t.Helper()
	d = harness.StartDaemon(t)
	d.Call("POST", "/templates", map[string]any{"name": "small", "cpu_count": 1, "ram_amount": 96}).Want(201)
	pids = map[string]int{}
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallelDaemons)
	for i := range n {
		id := fmt.Sprintf("vm-%d", i)
		d.CreateVM(id)
		pids[id] = 0
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			for _, action := range []string{"start", "pause"} { // a firmware that waits costs time
				if a, err := d.Try("POST", "/vms/"+id+"/actions/"+action, nil, harness.Wait); err != nil || a.Status != 200 {
					t.Errorf("%s of %s: %v, %d %s", action, id, err, a.Status, a.Body)
				}
			}
		})
	}
	wg.Wait()
	for id := range pids {
		pids[id] = d.VMPID(id)
	}
	if t.Failed() {
		t.FailNow()
	}
	return d, pids
}

// controlAll launches the daemon and has an action done on each VM as soon as there
// is an answer. It returns how long that took, for the last and for the first,
// from the launch on.
func controlAll(d *harness.Daemon, action string, ids ...string) (last, first time.Duration) {
	d.T.Helper()
	begun := time.Now()
	d.Launch()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			for {
				a, err := d.Try("POST", "/vms/"+id+"/actions/"+action, nil, harness.Wait)
				took := time.Since(begun)
				if err != nil && took < 30*time.Second { // it does not listen yet
					<-time.After(2 * time.Millisecond)
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil || a.Status != http.StatusOK {
					d.T.Errorf("%s of %s: %v, %d %s", action, id, err, a.Status, a.Body)
				}
				last = max(last, took)
				if first == 0 || took < first {
					first = took
				}
				return
			}
		})
	}
	wg.Wait()
	return last, first
}

func TestFiftyVMsAreControllableAfterAKill(t *testing.T) {
	d, pids := startMany(t, manyVMs)
	var ids []string
	for id := range pids {
		ids = append(ids, id)
	}
	d.Kill()
	last, first := controlAll(d, "resume", ids...)
	fmt.Printf("adoption: %d of %d VMs controlled %d ms after the launch, the first after %d ms\n", len(ids), manyVMs, last.Milliseconds(), first.Milliseconds())
	d.Kill()
	last, first = controlAll(d, "pause", ids...)
	fmt.Printf("adoption: %d of %d VMs controlled %d ms after the launch, the first after %d ms (again)\n", len(ids), manyVMs, last.Milliseconds(), first.Milliseconds())
	assertConsistent(d)
	for id, pid := range pids {
		if v, now := d.VM(id), d.VMPID(id); now != pid || v.State != "paused" || harness.Deref(v.StateReason) != "requested" {
			t.Errorf("%s has process %d and is %s (%s); the process was %d", id, now, v.State, harness.Deref(v.StateReason), pid)
		}
	}
}

// TestWhatHappenedWhileTheDaemonWasAway has one QEMU end, one hang and one
// guest's state change while nobody looks.
func TestWhatHappenedWhileTheDaemonWasAway(t *testing.T) {
	d, pids := startMany(t, 8)
	d.Kill()
	for id, s := range map[string]syscall.Signal{"vm-0": syscall.SIGKILL, "vm-1": syscall.SIGSTOP} {
		if err := syscall.Kill(pids[id], s); err != nil {
			t.Fatal(err)
		}
	}
	last, _ := controlAll(d, "resume", "vm-2", "vm-3", "vm-4", "vm-5", "vm-6", "vm-7")
	fmt.Printf("adoption: beside a QEMU that hangs and one that is gone, the others controlled %d ms after the launch\n", last.Milliseconds())
	d.WaitVM("vm-0", "error", "crashed", 0)
	if v := d.VM("vm-1"); v.State != "paused" {
		t.Errorf("a VM whose QEMU hangs is %s; it was paused", v.State)
	}
	if err := syscall.Kill(pids["vm-1"], syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.WaitPasses(2)
	d.Action("vm-1", "resume")
	if pid := d.VMPID("vm-1"); pid != pids["vm-1"] {
		t.Errorf("it has process %d; it was %d", pid, pids["vm-1"])
	}
	d.Action("vm-0", "start")
	assertConsistent(d)
}

// TestAGuestThatPowersOffWhileNobodyLooks kills the daemon right after it has
// asked the guest to power off.
func TestAGuestThatPowersOffWhileNobodyLooks(t *testing.T) {
	d := harness.NewDaemon(t, harness.BootDisk("normal"))
	var err error
	if d.Binary, err = failBinary(); err != nil {
		t.Fatal(err)
	}
	d.Start()
	d.CreateTemplate()
	x := target{vm: "a"}
	running(d, &x)
	d.Serial("a").Expect("VMT: ready")
	d.Kill()
	dieAt(d, "stop.pressed", func() (harness.Answer, error) { return d.Try("POST", "/vms/a/actions/stop", nil, harness.Wait) })
	harness.Eventually(t, 60*time.Second, "the guest to power off", func() error {
		if status := runState(d, "a"); status != "shutdown" {
			return fmt.Errorf("it is %s", status)
		}
		return nil
	})
	d.Start()
	assertConsistent(d)
	if v := d.VM("a"); v.State != "stopped" || harness.Deref(v.StateReason) != "requested" || v.DesiredState != "stopped" {
		t.Errorf("found: %+v", v)
	}
	ops := harness.As[[]openapi.Operation](d.Call("GET", "/operations?kind=vm.stop", nil).Want(200))
	if len(ops) != 1 || ops[0].State != "succeeded" {
		t.Errorf("the stop's record: %+v", ops)
	}
}

// runState asks QEMU itself what the guest does, by the operator's monitor.
func runState(d *harness.Daemon, id string) string {
	d.T.Helper()
	monitor, err := qmp.Dial(d.T.Context(), filepath.Join(d.RuntimeDir, id+".op-qmp"))
	if err != nil {
		d.T.Fatal(err)
	}
	defer monitor.Close()
	var status struct {
		Status string `json:"status"`
	}
	if err := monitor.Execute(d.T.Context(), "query-status", nil, &status); err != nil {
		d.T.Fatal(err)
	}
	return status.Status
}
