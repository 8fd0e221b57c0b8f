package store

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmand/vm"
)

// many is the number of VMs in the benchmarks.
const many = 10_000

// seeded returns a store of n running VMs with a NIC each.
func seeded(t testing.TB, n int) *Store {
	t.Helper()
	s := crowded(t, n)
	_, err := s.writer.Exec(`UPDATE vms SET boot = ?`, boot{Spawned: at, Monitor: at, Serial: at, DHCP: at, TCP: at})
	must(t, err)
	return s
}

// reportCPU makes b report the CPU time of all threads per round, which can be
// compared on a busy machine.
func reportCPU(b *testing.B) func() {
	used := func() int64 {
		var u syscall.Rusage
		must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
		return u.Utime.Nano() + u.Stime.Nano()
	}
	start := used()
	b.ReportAllocs()
	return func() { b.ReportMetric(float64(used()-start)/float64(b.N), "cpu-ns/op") }
}

func BenchmarkVMByID(b *testing.B) {
	s := seeded(b, many)
	ctx, cancel := context.WithCancel(context.Background()) // like a request's
	defer cancel()
	defer reportCPU(b)()
	for i := 0; b.Loop(); i++ {
		if _, err := s.VM(ctx, fmt.Sprintf("vm-%06d", i*7919%many)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVMs100(b *testing.B) {
	s := seeded(b, many)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer reportCPU(b)()
	for i := 0; b.Loop(); i++ {
		list, err := s.VMs(ctx, vm.VMFilter{}, vm.Page{After: int64(i * 7919 % (many - 100)), Limit: 100})
		if err != nil || len(list) != 100 {
			b.Fatal(len(list), err)
		}
	}
}

// BenchmarkVMs100JSON measures what encoding/json alone costs for such a page, for
// comparison.
func BenchmarkVMs100JSON(b *testing.B) {
	type template struct {
		Name      string `json:"name"`
		CPUCount  int    `json:"cpu_count"`
		RAMAmount int    `json:"ram_amount"`
	}
	type object struct {
		ID           string     `json:"id"`
		UUID         string     `json:"uuid"`
		Template     template   `json:"vm_template"`
		State        string     `json:"state"`
		Reason       string     `json:"state_reason"`
		ReasonDetail *string    `json:"state_reason_detail"`
		Desired      string     `json:"desired_state"`
		LocalIP      *string    `json:"local_ip"`
		RootSize     float64    `json:"root_disk_size"`
		Machine      *string    `json:"machine"`
		Accel        *string    `json:"accel"`
		CreatedAt    time.Time  `json:"created_at"`
		UpdatedAt    time.Time  `json:"updated_at"`
		StartedAt    *time.Time `json:"started_at"`
	}
	list, localIP := make([]object, 100), "10.0.0.17"
	for i := range list {
		v := makeVM(i)
		list[i] = object{ID: v.ID, UUID: v.UUID, Template: template{v.Template.Name, 2, 2048}, State: string(v.State),
			Reason: string(v.Reason), Desired: string(v.Desired), LocalIP: &localIP, RootSize: 10, Machine: &v.Machine,
			Accel: (*string)(&v.Accel), CreatedAt: at, UpdatedAt: at, StartedAt: &at}
	}
	defer reportCPU(b)()
	for b.Loop() {
		if _, err := json.Marshal(list); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	s := seeded(b, many)
	v := crowdedVM(1)
	op := vm.Operation{ID: "op", Kind: vm.VMStart, Resource: vm.VMResource(v.ID), State: vm.OpRunning}
	defer reportCPU(b)()
	for b.Loop() {
		if err := s.applyErr(b.Context(), vm.Change{Operation: &op, VM: &vm.VMUpdate{From: vm.Running, VM: v}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApplyEvents is BenchmarkApply with the events of the change.
func BenchmarkApplyEvents(b *testing.B) {
	s := seeded(b, many)
	v := crowdedVM(1)
	op := vm.Operation{ID: "op", Kind: vm.VMStart, Resource: vm.VMResource(v.ID), State: vm.OpRunning}
	events := []vm.Event{
		vm.NewEvent("vm.state", vm.VMResource(v.ID), map[string]any{"from": vm.Starting, "to": vm.Running, "reason": v.Reason}),
		vm.NewEvent("operation.ended", vm.OperationResource("op"), map[string]any{"kind": op.Kind, "resource": op.Resource, "state": op.State}),
	}
	defer reportCPU(b)()
	for b.Loop() {
		if err := s.applyErr(b.Context(), vm.Change{Operation: &op, VM: &vm.VMUpdate{From: vm.Running, VM: v}, Events: events}); err != nil {
			b.Fatal(err)
		}
	}
}

// manyEvents returns a store of n events, a second apart.
func manyEvents(b *testing.B, n int) *Store {
	b.Helper()
	s := open(b)
	events := make([]vm.Event, n)
	for i := range events {
		events[i] = vm.NewEvent(vm.EventTypes[i%len(vm.EventTypes)], vm.VMResource(fmt.Sprint("vm-", i%many)), map[string]any{"state": vm.Running})
		events[i].At = at.Add(time.Duration(i) * time.Second)
	}
	apply(b, s, vm.Change{Events: events})
	return s
}

func BenchmarkEvents100OfATopic(b *testing.B) {
	s := manyEvents(b, 100_000)
	defer reportCPU(b)()
	for i := 0; b.Loop(); i++ {
		list, err := s.Events(b.Context(), vm.EventFilter{Type: "template."}, vm.Page{After: int64(i * 7919 % 90_000), Limit: 100})
		if err != nil || len(list) != 100 {
			b.Fatal(len(list), err)
		}
	}
}

// BenchmarkPruneNoEvents measures a call that finds nothing to delete.
func BenchmarkPruneNoEvents(b *testing.B) {
	s := manyEvents(b, 100_000)
	defer reportCPU(b)()
	for b.Loop() {
		if n, err := s.PruneEvents(b.Context(), at, 100_000); n != 0 || err != nil {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkVMs100OfALabel reads pages of VMs with a label that all VMs have, that
// every tenth has, and that only the last 100 have.
func BenchmarkVMs100OfALabel(b *testing.B) {
	s := seeded(b, many)
	_, err := s.writer.Exec(`
		UPDATE vms SET labels = json_object('app', 'shop', 'tier', iif(seq % 10, 'db', 'web'), 'last', iif(seq > 9900, 'yes', 'no'));
		INSERT INTO vm_labels SELECT seq, j.key, j.value FROM vms, json_each(labels) AS j`)
	must(b, err)
	for _, f := range []vm.VMFilter{
		{Label: "app", LabelValue: "shop"},
		{Label: "tier", LabelValue: "web"},
		{Label: "last", LabelValue: "yes"},
	} {
		b.Run(f.Label, func(b *testing.B) {
			defer reportCPU(b)()
			for b.Loop() {
				list, err := s.VMs(b.Context(), f, vm.Page{Limit: 100})
				if err != nil || len(list) != 100 {
					b.Fatal(len(list), err)
				}
			}
		})
	}
}

// BenchmarkVMSummaries reads all VMs in brief and, for comparison, whole.
func BenchmarkVMSummaries(b *testing.B) {
	s := seeded(b, many)
	b.Run("brief", func(b *testing.B) {
		defer reportCPU(b)()
		for b.Loop() {
			list, err := s.VMSummaries(b.Context(), vm.VMFilter{}, vm.Page{})
			if err != nil || len(list) != many {
				b.Fatal(len(list), err)
			}
		}
	})
	b.Run("whole", func(b *testing.B) {
		defer reportCPU(b)()
		for b.Loop() {
			list, err := s.VMs(b.Context(), vm.VMFilter{}, vm.Page{})
			if err != nil || len(list) != many {
				b.Fatal(len(list), err)
			}
		}
	})
}

// BenchmarkActiveVMs reads the 50 running VMs among many.
func BenchmarkActiveVMs(b *testing.B) {
	s := seeded(b, many)
	_, err := s.writer.Exec(`UPDATE vms SET state = 'stopped' WHERE seq % 200`)
	must(b, err)
	defer reportCPU(b)()
	for b.Loop() {
		list, err := s.VMs(b.Context(), vm.VMFilter{Active: true}, vm.Page{})
		if err != nil || len(list) != 50 {
			b.Fatal(len(list), err)
		}
	}
}

// besideAWriter changes one of many VMs each second until the benchmark ends.
func besideAWriter(b *testing.B, s *Store) {
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-tick.C:
				v := crowdedVM(i * 7919 % many)
				apply(b, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
			}
		}
	})
	b.Cleanup(func() {
		close(stop)
		writer.Wait()
	})
}

// BenchmarkVMByIDBesideAWriter reads VMs while one of them changes each second.
// Measure it for at least -benchtime 10s.
func BenchmarkVMByIDBesideAWriter(b *testing.B) {
	s := seeded(b, many)
	ctx, cancel := context.WithCancel(context.Background()) // like a request's
	defer cancel()
	for i := range many { // fill the cache
		_, err := s.VM(ctx, crowdedVM(i).ID)
		must(b, err)
	}
	besideAWriter(b, s)
	defer reportCPU(b)()
	for i := 0; b.Loop(); i++ {
		if _, err := s.VM(ctx, fmt.Sprintf("vm-%06d", i*7919%many)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVMs100BesideAWriter is the same for pages of 100 VMs.
func BenchmarkVMs100BesideAWriter(b *testing.B) {
	s := seeded(b, many)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range many { // fill the cache
		_, err := s.VM(ctx, crowdedVM(i).ID)
		must(b, err)
	}
	besideAWriter(b, s)
	defer reportCPU(b)()
	for i := 0; b.Loop(); i++ {
		list, err := s.VMs(ctx, vm.VMFilter{}, vm.Page{After: int64(i * 7919 % (many - 100)), Limit: 100})
		if err != nil || len(list) != 100 {
			b.Fatal(len(list), err)
		}
	}
}

// BenchmarkIncrementalPass reads the data for an observer of many VMs, of which 50 run,
// when one VM has changed since its last pass.
func BenchmarkIncrementalPass(b *testing.B) {
	s := seeded(b, many)
	_, err := s.writer.Exec(`UPDATE vms SET state = 'stopped' WHERE seq % 200`)
	must(b, err)
	start, err := s.Changes(b.Context(), 0)
	must(b, err)
	v := crowdedVM(1)
	apply(b, s, vm.Change{VM: &vm.VMUpdate{From: vm.Stopped, VM: v}})
	defer reportCPU(b)()
	for b.Loop() {
		changes, err := s.Changes(b.Context(), start.Mark)
		if err != nil || len(changes.VMs) != 1 {
			b.Fatal(changes, err)
		}
		if _, err := s.VM(b.Context(), changes.VMs[0]); err != nil {
			b.Fatal(err)
		}
		active, err := s.VMs(b.Context(), vm.VMFilter{Active: true}, vm.Page{Limit: shortList})
		if err != nil || len(active) != 51 {
			b.Fatal(len(active), err)
		}
		open, err := s.Operations(b.Context(), vm.OperationFilter{Open: true}, vm.Page{})
		if err != nil || len(open) != 0 {
			b.Fatal(len(open), err)
		}
	}
}
