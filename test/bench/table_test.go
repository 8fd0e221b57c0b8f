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

// BenchmarkDaemon measures the daemon and a reference in turns, so that other load on the
// host affects both. At the end it prints a table. It does not fail if a target is missed.
func BenchmarkDaemon(b *testing.B) {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		b.Fatal(err)
	}
	averages := strings.Join(strings.Fields(string(load))[:3], " ")
	fmt.Printf("%d CPUs, %s, load average before %s\n", runtime.NumCPU(), runtime.Version(), averages)
	var t table
	for _, measure := range []struct {
		name string
		run  func(*testing.B, *table)
	}{
		{"Start", benchStart},
		{"HTTP", benchHTTP},
		{"Growth", benchGrowth},
		{"Client", benchClient},
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
			b.ReportMetric(0, "ns/op") // the time of a round means nothing
		})
	}
	t.print(os.Stdout)
}

// A table has one row for each measurement.
type table struct{ rows []row }

// A row is the result of a measurement. Fields other than what and value may be empty.
type row struct {
	what      string
	value     string
	reference string
	ratio     float64 // of value to reference
	target    string
	met       bool
}

func (t *table) add(r row) { t.rows = append(t.rows, r) }

// atMost adds a time and its reference, as the medians of rounds, and the median of the ratios
// of the rounds. The limit is the largest good ratio, 0 for none.
func (t *table) atMost(what string, value, ref []time.Duration, limit float64) {
	ratios := make([]float64, len(value))
	for i := range value {
		ratios[i] = float64(value[i]) / float64(ref[i])
	}
	ratio, target := median(ratios), ""
	if limit > 0 {
		target = fmt.Sprintf("at most %.2f x", limit)
	}
	t.add(row{
		what:      what,
		value:     millis(median(value)),
		reference: millis(median(ref)),
		ratio:     ratio,
		target:    target,
		met:       ratio <= limit,
	})
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

// benchDaemon returns a daemon that does not run, with its runtime directory in memory, as
// /run is.
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

// took returns the duration of f.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}
