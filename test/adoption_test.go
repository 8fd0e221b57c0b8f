package test

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
)

const manyVMs = 50

// startMany returns a daemon with running VMs, vm-0 and so on, and their pids.
func startMany(t *testing.T, n int) (d *daemon, pids map[string]int) {
	t.Helper()
	d = startDaemon(t)
	d.call("POST", "/templates", map[string]any{"name": "small", "cpu_count": 1, "ram_amount": 96}).want(201)
	pids = map[string]int{}
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallelDaemons)
	for i := range n {
		id := fmt.Sprintf("vm-%d", i)
		d.create(id)
		pids[id] = 0
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			for _, action := range []string{"start", "pause"} { // a firmware that waits costs time
				if a, err := d.try("POST", "/vms/"+id+"/actions/"+action, nil, wait); err != nil || a.status != 200 {
					t.Errorf("%s of %s: %v, %d %s", action, id, err, a.status, a.body)
				}
			}
		})
	}
	wg.Wait()
	for id := range pids {
		pids[id] = d.pid(id)
	}
	if t.Failed() {
		t.FailNow()
	}
	return d, pids
}

// control launches the daemon and has an action done on each VM as soon as there
// is an answer. It returns how long that took, for the last and for the first,
// from the launch on.
func (d *daemon) control(action string, ids ...string) (last, first time.Duration) {
	d.t.Helper()
	begun := time.Now()
	d.launch()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			for {
				a, err := d.try("POST", "/vms/"+id+"/actions/"+action, nil, wait)
				took := time.Since(begun)
				if err != nil && took < 30*time.Second { // it does not listen yet
					<-time.After(2 * time.Millisecond)
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil || a.status != http.StatusOK {
					d.t.Errorf("%s of %s: %v, %d %s", action, id, err, a.status, a.body)
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
	d.kill()
	last, first := d.control("resume", ids...)
	fmt.Printf("adoption: %d of %d VMs controlled %d ms after the launch, the first after %d ms\n", len(ids), manyVMs, last.Milliseconds(), first.Milliseconds())
	d.kill()
	last, first = d.control("pause", ids...)
	fmt.Printf("adoption: %d of %d VMs controlled %d ms after the launch, the first after %d ms (again)\n", len(ids), manyVMs, last.Milliseconds(), first.Milliseconds())
	d.sane()
	for id, pid := range pids {
		if v, now := d.vm(id), d.pid(id); now != pid || v.State != "paused" || word(v.StateReason) != "requested" {
			t.Errorf("%s has process %d and is %s (%s); the process was %d", id, now, v.State, word(v.StateReason), pid)
		}
	}
}

// TestWhatHappenedWhileTheDaemonWasAway has one QEMU end, one hang and one
// guest's state change while nobody looks.
func TestWhatHappenedWhileTheDaemonWasAway(t *testing.T) {
	d, pids := startMany(t, 8)
	d.kill()
	for id, s := range map[string]syscall.Signal{"vm-0": syscall.SIGKILL, "vm-1": syscall.SIGSTOP} {
		if err := syscall.Kill(pids[id], s); err != nil {
			t.Fatal(err)
		}
	}
	last, _ := d.control("resume", "vm-2", "vm-3", "vm-4", "vm-5", "vm-6", "vm-7")
	fmt.Printf("adoption: beside a QEMU that hangs and one that is gone, the others controlled %d ms after the launch\n", last.Milliseconds())
	d.waitVM("vm-0", "error", "crashed", 0)
	if v := d.vm("vm-1"); v.State != "paused" {
		t.Errorf("a VM whose QEMU hangs is %s; it was paused", v.State)
	}
	if err := syscall.Kill(pids["vm-1"], syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.passes(2)
	d.do("vm-1", "resume")
	if pid := d.pid("vm-1"); pid != pids["vm-1"] {
		t.Errorf("it has process %d; it was %d", pid, pids["vm-1"])
	}
	d.do("vm-0", "start")
	d.sane()
}

// TestAGuestThatPowersOffWhileNobodyLooks kills the daemon right after it has
// asked the guest to power off.
func TestAGuestThatPowersOffWhileNobodyLooks(t *testing.T) {
	d := newDaemon(t, bootDisk("normal"))
	var err error
	if d.binary, err = failBinary(); err != nil {
		t.Fatal(err)
	}
	d.start()
	d.template()
	x := target{vm: "a"}
	running(d, &x)
	d.guest("a").says("VMT: ready")
	d.kill()
	d.diesAt("stop.pressed", func() (answer, error) { return d.try("POST", "/vms/a/actions/stop", nil, wait) })
	eventually(t, 60*time.Second, "the guest to power off", func() error {
		if status := d.runState("a"); status != "shutdown" {
			return fmt.Errorf("it is %s", status)
		}
		return nil
	})
	d.start()
	d.sane()
	if v := d.vm("a"); v.State != "stopped" || word(v.StateReason) != "requested" || v.DesiredState != "stopped" {
		t.Errorf("found: %+v", v)
	}
	ops := as[[]openapi.Operation](d.call("GET", "/operations?kind=vm.stop", nil).want(200))
	if len(ops) != 1 || ops[0].State != "succeeded" {
		t.Errorf("the stop's record: %+v", ops)
	}
}

// runState asks QEMU itself what the guest does, by the operator's monitor.
func (d *daemon) runState(id string) string {
	d.t.Helper()
	monitor, err := qmp.Dial(d.t.Context(), filepath.Join(d.runtime, id+".op-qmp"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer monitor.Close()
	var status struct {
		Status string `json:"status"`
	}
	if err := monitor.Execute(d.t.Context(), "query-status", nil, &status); err != nil {
		d.t.Fatal(err)
	}
	return status.Status
}
