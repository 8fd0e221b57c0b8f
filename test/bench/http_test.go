package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmand/store"
	"vmand/test/harness"
	"vmand/vm"
)

const (
	clients  = 16
	turn     = 500 * time.Millisecond // of each server in a round
	listTurn = 100                    // lists of each server in a round
	groups   = 20                     // values of the label "group" of recorded VMs
)

// record adds n stopped VMs to the database and the directories of a daemon that does not
// run.
func record(d *harness.Daemon, n int) (ids []string) {
	d.T.Helper()
	if err := os.MkdirAll(filepath.Join(d.StateDir, "vms"), 0o711); err != nil {
		d.T.Fatal(err)
	}
	image := filepath.Join(d.T.TempDir(), "root.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", image, "10G").CombinedOutput(); err != nil {
		d.T.Fatalf("qemu-img: %v\n%s", err, out)
	}
	ctx := d.T.Context()
	s, err := store.Open(ctx, store.Options{Path: filepath.Join(d.StateDir, "vman.db")})
	if err != nil {
		d.T.Fatal(err)
	}
	defer s.Close()
	size := vm.Template{Name: "recorded", CPUCount: 2, RAMMiB: 2048}
	if _, err := s.Apply(ctx, vm.Change{NewTemplate: &size}); err != nil {
		d.T.Fatal(err)
	}
	for i := range n {
		id := fmt.Sprintf("recorded-%05d", i)
		if err := recordOne(ctx, s, id, size, i%groups); err != nil {
			d.T.Fatal(err)
		}
		dir := filepath.Join(d.StateDir, "vms", id)
		if err := os.Mkdir(dir, 0o711); err != nil {
			d.T.Fatal(err)
		}
		if err := os.Link(image, filepath.Join(dir, "root.qcow2")); err != nil {
			d.T.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

func recordOne(ctx context.Context, s *store.Store, id string, size vm.Template, group int) error {
	at := time.Now().Add(-time.Hour)
	_, err := s.Apply(ctx, vm.Change{NewVM: &vm.VM{
		ID:        id,
		UUID:      uuid.NewString(),
		Template:  size,
		State:     vm.Stopped,
		Reason:    vm.ReasonRequested,
		Desired:   vm.DesiredStopped,
		Root:      vm.DiskFile{SizeMiB: 10 << 10},
		Machine:   "pc-q35-7.2",
		Accel:     vm.TCG,
		Labels:    map[string]string{"group": strconv.Itoa(group)},
		CreatedAt: at,
		StartedAt: at.Add(time.Minute),
	}})
	return err
}

// freeAddress returns a TCP address on which no process listens.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// benchHTTP sends requests to a daemon with 10,000 VMs and the default configuration.
func benchHTTP(b *testing.B, t *table) {
	address := freeAddress(b)
	d := benchDaemon(b, "VMAN_LISTEN="+address, "VMAN_OBSERVER_INTERVAL=5s")
	ids := record(d, 10_000)
	d.Start()
	d.SkipContract()
	token, program := d.AdminToken(), buildReference(b)
	b.Run("Get", func(b *testing.B) { benchGet(b, t, d, address, token, program, ids) })
	b.Run("GetWhileWriting", func(b *testing.B) { benchWriter(b, t, d, address, token, ids) })
	b.Run("List", func(b *testing.B) { benchList(b, t, d, address, token, program) })
}

// A side is one of the two servers that are measured in turns.
type side struct {
	load      *load
	pid       int
	rates     []float64       // requests per second, by round
	cpu       []time.Duration // of the server per request, by round
	latencies []time.Duration
}

func (s *side) turn(t testing.TB) {
	t.Helper()
	used, start := harness.CPUTime(t, s.pid), time.Now()
	latencies := s.load.run(turn)
	n := len(latencies)
	s.rates = append(s.rates, float64(n)/time.Since(start).Seconds())
	s.cpu = append(s.cpu, (harness.CPUTime(t, s.pid)-used)/time.Duration(n))
	s.latencies = append(s.latencies, latencies...)
}

func (s *side) percentile(p int) time.Duration {
	slices.Sort(s.latencies)
	return s.latencies[len(s.latencies)*p/100]
}

func benchGet(b *testing.B, t *table, d *harness.Daemon, address, token, program string, ids []string) {
	body := d.Call("GET", "/vms/"+ids[0], nil).Want(200).Body
	bare := startReference(b, program, "echo", body)
	requests := make([][]byte, len(ids))
	for i := range ids {
		requests[i] = get("/vms/"+ids[i*7919%len(ids)], token)
	}
	ours := side{load: newLoad(b, address, clients, requests), pid: d.PID()}
	theirs := side{load: newLoad(b, bare.line(), clients, requests), pid: bare.cmd.Process.Pid}
	ours.load.run(turn) // warms up
	theirs.load.run(turn)
	var ratios []float64
	for b.Loop() {
		ours.turn(b)
		theirs.turn(b)
		ratios = append(ratios, ours.rates[len(ours.rates)-1]/theirs.rates[len(theirs.rates)-1])
	}
	b.ReportMetric(0, "ns/op")
	perSecond := func(rates []float64) string { return fmt.Sprintf("%.0f/s", median(rates)) }
	ratio, p99 := median(ratios), ours.percentile(99)
	t.add(row{
		what:      "GET /vms/{id} of 10,000: requests",
		value:     perSecond(ours.rates),
		reference: perSecond(theirs.rates),
		ratio:     ratio,
		target:    "at least 0.50 x",
		met:       ratio >= 0.5,
	})
	t.add(row{
		what:      "GET /vms/{id} of 10,000: p99",
		value:     millis(p99),
		reference: millis(theirs.percentile(99)),
		target:    "under 10 ms",
		met:       p99 < 10*time.Millisecond,
	})
	cpu, bareCPU := median(ours.cpu), median(theirs.cpu)
	t.add(row{
		what:      "GET /vms/{id} of 10,000: CPU of the server",
		value:     micros(cpu),
		reference: micros(bareCPU),
		ratio:     float64(cpu) / float64(bareCPU),
	})
}

func benchList(b *testing.B, t *table, d *harness.Daemon, address, token, program string) {
	const path = "/vms?limit=100"
	encode := startReference(b, program, "encode", d.Call("GET", path, nil).Want(200).Body)
	lists := newLoad(b, address, 1, [][]byte{get(path, token)})
	pid := d.PID()
	turns := func(n int) (ours, theirs time.Duration) {
		used := harness.CPUTime(b, pid)
		for range n {
			if err := lists.ask(lists.clients[0]); err != nil {
				b.Fatal(err)
			}
		}
		ours = harness.CPUTime(b, pid) - used
		fmt.Fprintln(encode.in, n)
		theirs, err := time.ParseDuration(encode.line() + "ns")
		if err != nil {
			b.Fatal(err)
		}
		return ours, theirs
	}
	turns(listTurn) // warms up
	var ours, theirs time.Duration
	n := 0
	for b.Loop() {
		value, ref := turns(listTurn)
		ours, theirs, n = ours+value, theirs+ref, n+listTurn
	}
	b.ReportMetric(0, "ns/op")
	ratio := float64(ours) / float64(theirs)
	t.add(row{
		what:      "GET /vms?limit=100 of 10,000: CPU of the server",
		value:     micros(ours / time.Duration(n)),
		reference: micros(theirs / time.Duration(n)),
		ratio:     ratio,
		target:    "at most 3.00 x",
		met:       ratio <= 3,
	})
}
