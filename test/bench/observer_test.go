package bench

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

const (
	guestsRunning = 50
	guestsPaused  = 200
	vmsRecorded   = 1000

	passInterval = 500 * time.Millisecond
)

// benchObserver watches a daemon of 1,000 VMs, of which 50 run, that nobody
// calls. The guests find nothing to boot.
func benchObserver(b *testing.B, t *table) {
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL="+passInterval.String())
	ids := record(d, vmsRecorded-guestsRunning)
	d.Start()
	d.SkipContract()
	d.CreateTemplate()
	for i := range guestsRunning {
		id := fmt.Sprintf("running-%02d", i)
		d.CreateVM(id)
		if v := d.Action(id, "start"); v.State != openapi.VMStateRunning {
			b.Fatalf("%s is %s", id, v.State)
		}
	}
	cpu := passCPU(d, b)
	t.add("observer pass over 1,000 VMs, 50 running: CPU", millis(cpu), "", 0, "under 50 ms", cpu < 50*time.Millisecond)

	dayOfUse(d, ids)
	mib := d.MemoryMiB("VmRSS")
	t.add("resident memory of vmand with 1,000 VMs, 50 running", fmt.Sprintf("%d MiB (highest %d)", mib, d.MemoryMiB("VmHWM")), "", 0, "under 64 MiB", mib < 64)
}

// benchPaused watches a daemon of as many VMs, of which more have a process and
// none does anything.
func benchPaused(b *testing.B, t *table) {
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL="+passInterval.String())
	record(d, vmsRecorded-guestsPaused)
	d.Start()
	d.SkipContract()
	d.Call("POST", "/templates", map[string]any{"name": "small", "cpu_count": 1, "ram_amount": 16}).Want(201)
	ids := make(chan string)
	var wg sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		wg.Go(func() {
			for id := range ids {
				for _, action := range []string{"start", "pause"} { // before the next one is there: a firmware costs time
					if a, err := d.Try("POST", "/vms/"+id+"/actions/"+action, nil, harness.Wait); err != nil || a.Status != 200 {
						b.Errorf("%s of %s: %v, %d %s", action, id, err, a.Status, a.Body)
					}
				}
			}
		})
	}
	for i := range guestsPaused {
		id := fmt.Sprintf("paused-%03d", i)
		// A process beside each QEMU for its NIC is nothing a pass looks at.
		d.Call("POST", "/vms", map[string]any{"template_name": "small", "name": id, "nics": []any{}}).Want(201)
		ids <- id
	}
	close(ids)
	wg.Wait()
	if b.Failed() {
		return
	}
	cpu := passCPU(d, b)
	t.add("observer pass over 1,000 VMs, 200 paused: CPU", millis(cpu), "", 0, "under 50 ms", cpu < 50*time.Millisecond)
}

// passCPU returns the CPU time that one of the observer's passes costs.
func passCPU(d *harness.Daemon, b *testing.B) time.Duration {
	pid := d.PID()
	d.WaitNewPass() // what the starts left to do is done
	first, used := lastPass(d), harness.CPUTime(b, pid)
	for b.Loop() {
		<-time.After(2 * time.Second)
	}
	used = harness.CPUTime(b, pid) - used
	return used / (lastPass(d).Sub(first).Round(passInterval) / passInterval)
}

// lastPass returns when the observer's last pass began. It must have found
// nothing wrong.
func lastPass(d *harness.Daemon) time.Time {
	d.T.Helper()
	s := harness.Get[openapi.ObserverStatus](d, "/observer/status")
	if s.Status != openapi.ObserverStatusStatusOk || s.LastIssuesCount != 0 || s.LastRunAt == nil {
		d.T.Fatalf("the observer says %+v", s)
	}
	return s.LastRunAt.Time
}

// dayOfUse does what a day of use does: lists, looks, and a start and a stop.
func dayOfUse(d *harness.Daemon, ids []string) {
	d.T.Helper()
	for range 20 {
		d.Call("GET", "/vms", nil).Want(200)
		for _, id := range ids {
			d.Call("GET", "/vms/"+id, nil).Want(200)
		}
		d.Call("GET", "/vms?limit=100", nil).Want(200)
		d.Action("running-00", "pause")
		d.Action("running-00", "resume")
	}
}
