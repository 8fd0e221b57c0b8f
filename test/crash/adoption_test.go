package crash

import (
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

const manyVMs = 50

// startMany returns a daemon with n paused VMs, vm-0 and so on, and the process ids of
// their QEMUs.
func startMany(t *testing.T, n int) (d *harness.Daemon, pids map[string]int) {
	t.Helper()
	d = harness.StartDaemon(t)
	d.Call("POST", "/templates", map[string]any{"name": "small", "cpu_count": 1, "ram_amount": 96}).Want(201)
	pids = map[string]int{}
	var wg sync.WaitGroup
	slots := make(chan struct{}, lanes())
	for i := range n {
		id := fmt.Sprintf("vm-%d", i)
		d.CreateVM(id)
		pids[id] = 0
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			for _, action := range []string{"start", "pause"} { // the firmware of a running VM uses CPU time
				a, err := d.Try("POST", "/vms/"+id+"/actions/"+action, nil, harness.Wait)
				if err != nil || a.Status != 200 {
					t.Errorf("%s VM %s: %v, %d %s", action, id, err, a.Status, a.Body)
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

// controlAll launches the daemon and runs an action on each VM as soon as the daemon
// answers. It returns the times from the launch until the first and the last action has
// ended.
func controlAll(d *harness.Daemon, action string, ids ...string) (first, last time.Duration) {
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
				if err != nil && took < 30*time.Second { // the daemon does not listen yet
					<-time.After(2 * time.Millisecond)
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil || a.Status != http.StatusOK {
					d.T.Errorf("%s VM %s: %v, %d %s", action, id, err, a.Status, a.Body)
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
	return first, last
}

func TestFiftyVMsAreControllableAfterAKill(t *testing.T) {
	d, pids := startMany(t, manyVMs)
	var ids []string
	for id := range pids {
		ids = append(ids, id)
	}
	d.Kill()
	first, last := controlAll(d, "resume", ids...)
	fmt.Printf("adoption: %d VMs controlled %d ms after the launch, the first after %d ms\n",
		len(ids), last.Milliseconds(), first.Milliseconds())
	d.Kill()
	first, last = controlAll(d, "pause", ids...)
	fmt.Printf("adoption: %d VMs controlled %d ms after the second launch, the first after %d ms\n",
		len(ids), last.Milliseconds(), first.Milliseconds())
	assertConsistent(d)
	for id, pid := range pids {
		v, reason, now := d.VM(id), harness.Deref(d.VM(id).StateReason), d.VMPID(id)
		if now != pid || v.State != "paused" || reason != "requested" {
			t.Errorf("VM %s is %s (%s) with process %d, want paused with process %d", id, v.State, reason, now, pid)
		}
	}
}

// TestChangesDuringADowntimeAreRecorded kills one QEMU and stops another while no daemon
// runs.
func TestChangesDuringADowntimeAreRecorded(t *testing.T) {
	d, pids := startMany(t, 8)
	d.Kill()
	for id, s := range map[string]syscall.Signal{"vm-0": syscall.SIGKILL, "vm-1": syscall.SIGSTOP} {
		if err := syscall.Kill(pids[id], s); err != nil {
			t.Fatal(err)
		}
	}
	_, last := controlAll(d, "resume", "vm-2", "vm-3", "vm-4", "vm-5", "vm-6", "vm-7")
	fmt.Printf("adoption: beside a hung and a killed QEMU, the other VMs controlled %d ms after the launch\n",
		last.Milliseconds())
	d.WaitVM("vm-0", "error", "crashed", 0)
	if v := d.VM("vm-1"); v.State != "paused" {
		t.Errorf("VM vm-1 with a hanging QEMU is %s, want paused as before", v.State)
	}
	if err := syscall.Kill(pids["vm-1"], syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.WaitPasses(2)
	d.Action("vm-1", "resume")
	if pid := d.VMPID("vm-1"); pid != pids["vm-1"] {
		t.Errorf("VM vm-1 has process %d, want %d", pid, pids["vm-1"])
	}
	d.Action("vm-0", "start")
	assertConsistent(d)
}

// TestGuestPowerOffWithoutADaemon kills the daemon after it has asked the guest to
// power off.
func TestGuestPowerOffWithoutADaemon(t *testing.T) {
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
	dieAt(d, "stop.pressed", func() (harness.Answer, error) {
		return d.Try("POST", "/vms/a/actions/stop", nil, harness.Wait)
	})
	harness.Eventually(t, 60*time.Second, "the guest to power off", func() error {
		if status := runState(d, "a"); status != "shutdown" {
			return fmt.Errorf("its status is %s", status)
		}
		return nil
	})
	d.Start()
	assertConsistent(d)
	v := d.VM("a")
	if v.State != "stopped" || harness.Deref(v.StateReason) != "requested" || v.DesiredState != "stopped" {
		t.Errorf("VM a is %+v, want stopped on request", v)
	}
	ops := harness.Get[[]openapi.Operation](d, "/operations?kind=vm.stop")
	if len(ops) != 1 || ops[0].State != "succeeded" {
		t.Errorf("the operations are %+v, want one that succeeded", ops)
	}
}

// runState returns the run state that QEMU reports.
func runState(d *harness.Daemon, id string) string {
	d.T.Helper()
	monitor, err := d.Monitor(d.T.Context(), id)
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
