package bench

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"vmand/test/harness"
)

// BenchmarkDaemon measures the real daemon, each time together with the best
// that could be had: the two take turns, so what else the machine does meets
// both. At its end it prints one table. It fails only if something does not
// work; to miss a target is for the reader to see.
func BenchmarkDaemon(b *testing.B) {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("%d CPUs, %s, load average before %s\n", runtime.NumCPU(), runtime.Version(), strings.Join(strings.Fields(string(load))[:3], " "))
	var t table
	for _, measure := range []struct {
		name string
		run  func(*testing.B, *table)
	}{
		{"Start", benchStart},
		{"HTTP", benchHTTP},
		{"Observer", benchObserver},
		{"Paused", benchPaused},
		{"CreateDisk", benchCreateDisk},
		{"Clone", benchClone},
		{"Import", benchImport},
		{"UploadMemory", benchUploadMemory},
		{"HotPlug", benchHotPlug},
		{"NetworkStart", benchNetworkStart},
		{"DHCP", benchDHCP},
		{"Throughput", benchThroughput},
	} {
		b.Run(measure.name, func(b *testing.B) {
			measure.run(b, &t)
			b.ReportMetric(0, "ns/op") // of a round: that says nothing
		})
	}
	t.print(os.Stdout)
}

// A table has one row per measure.
type table struct{ rows []row }

type row struct {
	what             string
	value, reference string
	ratio            float64 // 0 for none
	target           string  // empty for none
	met              bool
}

// add adds a measure that is to be met or missed; ref and target may be empty.
func (t *table) add(what, value, ref string, ratio float64, target string, met bool) {
	t.rows = append(t.rows, row{what, value, ref, ratio, target, met})
}

// atMost adds a time against its reference, both medians of rounds in which
// they took turns, and their ratio, which is the median of the rounds' ratios.
// A limit of 0 is none.
func (t *table) atMost(what string, value, ref []time.Duration, limit float64) {
	ratios := make([]float64, len(value))
	for i := range value {
		ratios[i] = float64(value[i]) / float64(ref[i])
	}
	ratio, target := median(ratios), ""
	if limit > 0 {
		target = fmt.Sprintf("at most %.2f x", limit)
	}
	t.add(what, millis(median(value)), millis(median(ref)), ratio, target, ratio <= limit)
}

func (t *table) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\nmeasure\tvmand\treference\tratio\ttarget\t")
	for _, r := range t.rows {
		ratio, verdict := "", ""
		if r.ratio > 0 {
			ratio = fmt.Sprintf("%.2f x", r.ratio)
		}
		if r.target != "" {
			verdict = "missed"
			if r.met {
				verdict = "met"
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", r.what, r.value, r.reference, ratio, r.target, verdict)
	}
	tw.Flush()
	fmt.Fprintln(w)
}

func median[T ~int64 | ~float64](values []T) T {
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func millis(d time.Duration) string {
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 2, 64) + " ms"
}

func micros(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) + " us" }

// benchDaemon returns a daemon that is not started, with its runtime directory
// in memory: so is /run, where vmand has it by default.
func benchDaemon(b *testing.B, env ...string) *harness.Daemon {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "vmand")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		b.Fatal(err)
	}
	d := harness.NewDaemon(b, env...)
	d.RuntimeDir = filepath.Join(dir, "r")
	d.Env = append(d.Env, "VMAN_RUNTIME_DIR="+d.RuntimeDir)
	return d
}

// took returns how long f takes.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}
