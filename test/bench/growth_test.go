package bench

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"vmand/test/harness"
)

// benchGrowth measures a daemon with 10,000 stopped VMs: its start, and pages of VMs with
// a label.
func benchGrowth(b *testing.B, t *table) {
	d, empty := benchDaemon(b, "VMAN_OBSERVER_INTERVAL=5s"), benchDaemon(b, "VMAN_OBSERVER_INTERVAL=5s")
	record(d, vmsRecorded)
	d.SkipContract()
	var starts, stops, emptyStarts, emptyStops []time.Duration
	for b.Loop() {
		start, stop := startAndStop(d)
		starts, stops = append(starts, start), append(stops, stop)
		start, stop = startAndStop(empty)
		emptyStarts, emptyStops = append(emptyStarts, start), append(emptyStops, stop)
	}
	t.atMost("start until /health, 10,000 VMs, against none", starts, emptyStarts, 1.5)
	t.atMost("stop, 10,000 VMs, against none", stops, emptyStops, 1.5)

	d.Start()
	d.WaitNewPass() // the first pass is whole
	first := labelPages(b, d)
	t.add(row{
		what:   "first page of 100 VMs with a label, of 10,000: median",
		value:  micros(first),
		target: "at most 2 ms",
		met:    first <= 2*time.Millisecond,
	})
	again := labelPages(b, d)
	t.add(row{
		what:   "the same page again",
		value:  micros(again),
		target: "at most 2 ms",
		met:    again <= 2*time.Millisecond,
	})
}

// startAndStop returns how long a daemon takes until it answers, and until it has ended.
func startAndStop(d *harness.Daemon) (start, stop time.Duration) {
	begin := time.Now()
	d.Start()
	start, begin = time.Since(begin), time.Now()
	d.Stop()
	return start, time.Since(begin)
}

// labelPages lists the first page of each value of the label "group" and returns the median
// of the times until the answer.
func labelPages(t testing.TB, d *harness.Daemon) time.Duration {
	t.Helper()
	var times []time.Duration
	for group := range groups {
		begin := time.Now()
		d.Call("GET", "/vms?limit=100&label=group="+strconv.Itoa(group), nil).Want(200)
		times = append(times, time.Since(begin))
	}
	return median(times)
}

// benchWriter measures reads of 10,000 VMs while one of them changes once a second. The
// reference is the same daemon without the changes.
func benchWriter(b *testing.B, t *table, d *harness.Daemon, address, token string, ids []string) {
	requests := make([][]byte, len(ids))
	for i := range ids {
		requests[i] = get("/vms/"+ids[i*7919%len(ids)], token)
	}
	quiet := side{load: newLoad(b, address, clients, requests), pid: d.PID()}
	written := side{load: newLoad(b, address, clients, requests), pid: d.PID()}
	quiet.load.run(turn) // warms up
	var ratios []float64
	for n := 0; b.Loop(); n++ {
		quiet.turn(b)
		// A turn takes half a second, so this is one change a second.
		d.Call("PATCH", "/vms/"+ids[n%len(ids)], map[string]any{"description": fmt.Sprint(n)}).Want(200)
		written.turn(b)
		ratios = append(ratios, written.rates[len(written.rates)-1]/quiet.rates[len(quiet.rates)-1])
	}
	ratio := median(ratios)
	t.add(row{
		what:      "GET /vms/{id} of 10,000, one change a second: requests",
		value:     fmt.Sprintf("%.0f/s", median(written.rates)),
		reference: fmt.Sprintf("%.0f/s", median(quiet.rates)),
		ratio:     ratio,
		target:    "at least 0.90 x",
		met:       ratio >= 0.9,
	})
}
