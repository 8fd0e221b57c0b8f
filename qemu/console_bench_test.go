package qemu

import (
	"io"
	"slices"
	"testing"
	"time"

	"vmand/vm"
)

// echoes types single bytes, each when the one before has come back, and reports
// how long that took.
func echoes(b *testing.B, c io.ReadWriter) {
	b.Helper()
	var took []time.Duration
	p := make([]byte, 1)
	for b.Loop() {
		begin := time.Now()
		_, err := c.Write([]byte("x"))
		must(b, err)
		_, err = io.ReadFull(c, p)
		must(b, err)
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	at := func(part float64) float64 { return float64(took[int(float64(len(took)-1)*part)].Microseconds()) }
	b.ReportMetric(at(0.5), "p50-µs")
	b.ReportMetric(at(0.99), "p99-µs")
}

// BenchmarkConsoleEcho is what vmand adds to the time that an echo takes: the
// other end answers at once.
func BenchmarkConsoleEcho(b *testing.B) {
	f := newFakeSerial(b, tempDir(b))
	h, _ := f.connect(usualLimits)
	go io.Copy(f.log, f.line) // ends with f
	c, err := h.join(vm.ConsoleOptions{Write: true})
	must(b, err)
	defer c.Close()
	echoes(b, c)
}

// BenchmarkGuestConsoleEcho has a real guest, which looks for what is typed all
// the time.
func BenchmarkGuestConsoleEcho(b *testing.B) {
	h := newHost(b)
	h.start("web", guestEchoes)
	c, err := h.Console(b.Context(), "web", vm.ConsoleOptions{Write: true})
	must(b, err)
	defer c.Close()
	// The BIOS may eat what comes before the guest runs.
	await(b, "the guest runs", func() bool {
		_, err := io.WriteString(c, "\n")
		must(b, err)
		return h.serialLog("web") != ""
	})
	_, err = io.WriteString(c, "!")
	must(b, err)
	for p := make([]byte, 1); p[0] != '!'; {
		_, err := io.ReadFull(c, p)
		must(b, err)
	}
	echoes(b, c)
}
