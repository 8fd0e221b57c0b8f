package qemu

import (
	"io"
	"slices"
	"testing"
	"time"

	"vmand/vm"
)

// echoes types single bytes, each after the previous one has come back, and reports
// the time that took.
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

// BenchmarkConsoleEcho measures the time that vmand adds to an echo: the other end
// answers at once.
func BenchmarkConsoleEcho(b *testing.B) {
	f := newFakeSerial(b, tempDir(b))
	h, _ := f.connect(usualLimits)
	go io.Copy(f.log, f.line) // ends with f
	c, err := h.join(vm.ConsoleOptions{Write: true})
	must(b, err)
	defer c.Close()
	echoes(b, c)
}

// BenchmarkGuestConsoleEcho measures an echo by a real guest, which polls for input.
func BenchmarkGuestConsoleEcho(b *testing.B) {
	h := newHost(b)
	h.start("web", guestEchoes)
	c, err := h.Console(b.Context(), "web", vm.ConsoleOptions{Write: true})
	must(b, err)
	defer c.Close()
	// The BIOS may consume the input before the guest runs.
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
