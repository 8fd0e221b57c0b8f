package bench

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const (
	listedVMs     = 1000
	versionLimit  = 30 * time.Millisecond
	listLimit     = 150 * time.Millisecond
	listMemoryMiB = 40
	kibInMiB      = 1024 // getrusage(2) counts memory in KiB
)

// benchClient measures the start of the client, and its list of 1,000 VMs. The reference of
// the list is curl with the same request.
func benchClient(b *testing.B, t *table) {
	d := benchDaemon(b, "VMAN_OBSERVER_INTERVAL=5s")
	record(d, listedVMs)
	d.Start()
	socket := filepath.Join(d.RuntimeDir, "vmand.sock")
	var version, list, jsonList, curl []time.Duration
	most := int64(0)
	client := func(args ...string) time.Duration {
		cmd := d.Command(append([]string{"vman"}, args...)...)
		cmd.Env = append(cmd.Env, "VMAN_SOCKET="+socket)
		wall := run(b, cmd)
		most = max(most, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
		return wall
	}
	for b.Loop() {
		version = append(version, client("--version"))
		list = append(list, client("ls"))
		jsonList = append(jsonList, client("ls", "-o", "json"))
		curl = append(curl, run(b, exec.Command("curl", "-sf", "--unix-socket", socket, "http://vmand/vms")))
	}
	t.add(row{
		what:   "vman --version",
		value:  millis(median(version)),
		target: "at most " + millis(versionLimit),
		met:    median(version) <= versionLimit,
	})
	t.add(row{
		what:      fmt.Sprintf("vman ls with %d VMs, against curl", listedVMs),
		value:     millis(median(list)),
		reference: millis(median(curl)),
		ratio:     float64(median(list)) / float64(median(curl)),
		target:    "at most " + millis(listLimit),
		met:       median(list) <= listLimit,
	})
	t.atMost("the same with -o json", jsonList, curl, 0)
	t.add(row{
		what:   "memory of vman ls",
		value:  fmt.Sprintf("%d MiB", most/kibInMiB),
		target: fmt.Sprintf("at most %d MiB", listMemoryMiB),
		met:    most/kibInMiB <= listMemoryMiB,
	})
}

// run runs a program and returns how long it took.
func run(b *testing.B, cmd *exec.Cmd) time.Duration {
	b.Helper()
	return took(func() {
		if err := cmd.Run(); err != nil {
			b.Fatalf("%s: %v", cmd, err)
		}
	})
}
