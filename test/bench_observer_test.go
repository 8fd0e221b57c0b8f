package test

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vmand/openapi"
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
	d.start()
	d.unchecked()
	d.template()
	for i := range guestsRunning {
		id := fmt.Sprintf("running-%02d", i)
		d.create(id)
		if v := d.do(id, "start"); v.State != openapi.VMStateRunning {
			b.Fatalf("%s is %s", id, v.State)
		}
	}
	cpu := d.passCPU(b)
	t.add("observer pass over 1,000 VMs, 50 running: CPU", millis(cpu), "", 0, "under 50 ms", cpu < 50*time.Millisecond)

	d.use(ids)
	mib := d.resident("VmRSS")
	t.add("resident memory of vmand with 1,000 VMs, 50 running", fmt.Sprintf("%d MiB (highest %d)", mib, d.resident("VmHWM")), "", 0, "under 64 MiB", mib < 64)
}

// benchPaused watches a daemon of as many VMs, of which more have a process and
// none does anything.
func benchPaused(b *testing.B, t *table) {
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL="+passInterval.String())
	record(d, vmsRecorded-guestsPaused)
	d.start()
	d.unchecked()
	d.call("POST", "/templates", map[string]any{"name": "small", "cpu_count": 1, "ram_amount": 16}).want(201)
	ids := make(chan string)
	var wg sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		wg.Go(func() {
			for id := range ids {
				for _, action := range []string{"start", "pause"} { // before the next one is there: a firmware costs time
					if a, err := d.try("POST", "/vms/"+id+"/actions/"+action, nil, wait); err != nil || a.status != 200 {
						b.Errorf("%s of %s: %v, %d %s", action, id, err, a.status, a.body)
					}
				}
			}
		})
	}
	for i := range guestsPaused {
		id := fmt.Sprintf("paused-%03d", i)
		// A process beside each QEMU for its NIC is nothing a pass looks at.
		d.call("POST", "/vms", map[string]any{"template_name": "small", "name": id, "nics": []any{}}).want(201)
		ids <- id
	}
	close(ids)
	wg.Wait()
	if b.Failed() {
		return
	}
	cpu := d.passCPU(b)
	t.add("observer pass over 1,000 VMs, 200 paused: CPU", millis(cpu), "", 0, "under 50 ms", cpu < 50*time.Millisecond)
}

// passCPU returns the CPU time that one of the observer's passes costs.
func (d *daemon) passCPU(b *testing.B) time.Duration {
	pid := d.cmd.Process.Pid
	d.pass() // what the starts left to do is done
	first, used := d.lastPass(), cpuTime(b, pid)
	for b.Loop() {
		<-time.After(2 * time.Second)
	}
	used = cpuTime(b, pid) - used
	return used / (d.lastPass().Sub(first).Round(passInterval) / passInterval)
}

// lastPass returns when the observer's last pass began. It must have found
// nothing wrong.
func (d *daemon) lastPass() time.Time {
	d.t.Helper()
	s := as[openapi.ObserverStatus](d.call("GET", "/observer/status", nil).want(200))
	if s.Status != openapi.ObserverStatusStatusOk || s.LastIssuesCount != 0 || s.LastRunAt == nil {
		d.t.Fatalf("the observer says %+v", s)
	}
	return s.LastRunAt.Time
}

// use does what a day of use does: lists, looks, and a start and a stop.
func (d *daemon) use(ids []string) {
	d.t.Helper()
	for range 20 {
		d.call("GET", "/vms", nil).want(200)
		for _, id := range ids {
			d.call("GET", "/vms/"+id, nil).want(200)
		}
		d.call("GET", "/vms?limit=100", nil).want(200)
		d.do("running-00", "pause")
		d.do("running-00", "resume")
	}
}

// resident returns a line of the daemon's status that is a size, in MiB.
func (d *daemon) resident(line string) int {
	d.t.Helper()
	kib, err := strconv.Atoi(strings.TrimSuffix(statusOf(d.t, d.cmd.Process.Pid, line), " kB"))
	if err != nil {
		d.t.Fatal(err)
	}
	return kib >> 10
}
