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
	vmsRecorded   = 10_000

	passInterval = 500 * time.Millisecond
)

// benchObserver measures a daemon without requests that has 10,000 VMs, 50 of them running.
// Their guests are firmwares without a disk to boot.
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
			b.Fatalf("VM %s is %s, want running", id, v.State)
		}
	}
	cpu := passCPU(d, b)
	t.add(row{
		what:   "observer pass over 10,000 VMs, 50 running: CPU",
		value:  millis(cpu),
		target: "at most 15 ms",
		met:    cpu <= 15*time.Millisecond,
	})

	memory := func(what string) {
		mib := d.MemoryMiB("VmRSS")
		t.add(row{
			what:   "resident memory with 10,000 VMs, 50 running, " + what,
			value:  fmt.Sprintf("%d MiB (highest %d)", mib, d.MemoryMiB("VmHWM")),
			target: "at most 64 MiB",
			met:    mib <= 64,
		})
	}
	memory("without requests")
	dayOfUse(d, ids[:1000])
	memory("after reads of 1,000 VMs and lists of all")
}

// benchPaused measures a daemon without requests that has 10,000 VMs, 200 of them paused.
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
				for _, action := range []string{"start", "pause"} { // a running firmware uses CPU time
					a, err := d.Try("POST", "/vms/"+id+"/actions/"+action, nil, harness.Wait)
					if err != nil || a.Status != 200 {
						b.Errorf("%s VM %s: %v, %d %s", action, id, err, a.Status, a.Body)
					}
				}
			}
		})
	}
	for i := range guestsPaused {
		id := fmt.Sprintf("paused-%03d", i)
		// A pass does not look at the passt process of a NIC.
		d.CreateVMWith(id, map[string]any{"nics": []any{}})
		ids <- id
	}
	close(ids)
	wg.Wait()
	if b.Failed() {
		return
	}
	cpu := passCPU(d, b)
	t.add(row{
		what:   "observer pass over 10,000 VMs, 200 paused: CPU",
		value:  millis(cpu),
		target: "under 50 ms",
		met:    cpu < 50*time.Millisecond,
	})
}

// passCPU returns the CPU time of one pass of the observer.
func passCPU(d *harness.Daemon, b *testing.B) time.Duration {
	pid := d.PID()
	d.WaitNewPass() // so that the work after the starts is done
	first, used := lastPass(d), harness.CPUTime(b, pid)
	for b.Loop() {
		<-time.After(2 * time.Second)
	}
	used = harness.CPUTime(b, pid) - used
	return used / (lastPass(d).Sub(first).Round(passInterval) / passInterval)
}

// lastPass returns the time of the observer's last pass, which must have no issues.
func lastPass(d *harness.Daemon) time.Time {
	d.T.Helper()
	s := harness.Get[openapi.ObserverStatus](d, "/observer/status")
	if s.Status != openapi.ObserverStatusStatusOk || s.LastIssuesCount != 0 || s.LastRunAt == nil {
		d.T.Fatalf("the status of the observer is %+v, want ok without issues", s)
	}
	return s.LastRunAt.Time
}

// dayOfUse sends the requests of a day: lists, reads, pauses and resumes.
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
