package store

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"vmand/vm"
)

// seeded returns a store of n VMs.
func seeded(b testing.TB, n int) *Store {
	b.Helper()
	s := open(b)
	makeTemplate(b, s, "small")
	tx, err := s.writer.Beginx()
	must(b, err)
	for i := range n {
		must(b, insertVM(context.Background(), tx, makeVM(i), at))
	}
	must(b, tx.Commit())
	return s
}

const many = 10_000

func BenchmarkVMByID(b *testing.B) {
	s := seeded(b, many)
	ctx, cancel := context.WithCancel(context.Background()) // as a request's
	defer cancel()
	for name, c := range map[string]context.Context{"cancel": ctx, "background": context.Background()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := s.VM(c, fmt.Sprintf("vm-%06d", i*7919%many)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVMs100(b *testing.B) {
	s := seeded(b, many)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := 0; b.Loop(); i++ {
		list, err := s.VMs(ctx, vm.VMFilter{}, vm.Page{After: int64(i * 7919 % (many - 100)), Limit: 100})
		if err != nil || len(list) != 100 {
			b.Fatal(len(list), err)
		}
	}
	b.ReportAllocs()
}

// BenchmarkVMs100JSON is what encoding/json alone costs for such a page.
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
		Reason       *string    `json:"state_reason"`
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
	list := make([]object, 100)
	for i := range list {
		v := makeVM(i)
		reason := string(v.Reason)
		accel := string(v.Accel)
		list[i] = object{ID: v.ID, UUID: v.UUID, Template: template{v.Template.Name, 2, 2048}, State: string(v.State), Reason: &reason,
			Desired: string(v.Desired), LocalIP: &v.LocalIP, RootSize: 10, Machine: &v.Machine, Accel: &accel, CreatedAt: at, UpdatedAt: at, StartedAt: &at}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := json.Marshal(list); err != nil {
			b.Fatal(err)
		}
	}
}
