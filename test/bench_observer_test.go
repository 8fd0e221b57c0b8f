package test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
)

const (
	guestsRunning = 50
	vmsRecorded   = 1000
)

// benchObserver watches a daemon of 1,000 VMs, of which 50 run, that nobody
// calls. The guests find nothing to boot.
func benchObserver(b *testing.B, t *table) {
	const interval = 500 * time.Millisecond
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL="+interval.String())
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
	pid := d.cmd.Process.Pid
	d.pass() // what the starts left to do is done
	first, used := d.lastPass(), cpuTime(b, pid)
	for b.Loop() {
		<-time.After(2 * time.Second)
	}
	used = cpuTime(b, pid) - used
	passes := d.lastPass().Sub(first).Round(interval) / interval
	cpu := used / passes
	t.add("observer pass over 1,000 VMs, 50 running: CPU", millis(cpu), "", 0, "under 50 ms", cpu < 50*time.Millisecond)

	d.use(ids)
	mib := d.resident("VmRSS")
	t.add("resident memory of vmand with 1,000 VMs, 50 running", fmt.Sprintf("%d MiB (highest %d)", mib, d.resident("VmHWM")), "", 0, "under 64 MiB", mib < 64)
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
