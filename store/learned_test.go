package store

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"vmand/vm"
)

func TestLearnedFactsAreRecordedOnce(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(0)
	v.Boot, v.Learned = vm.Boot{TCP: at}, []vm.LearnedAddress{{IP: netip.MustParseAddr("10.0.0.9")}}
	apply(t, s, vm.Change{NewVM: &v})
	if got := s.mustVM(t, v.ID); got.Boot != (vm.Boot{}) || got.Learned != nil {
		t.Errorf("a new VM has %+v and %+v; want nothing learned", got.Boot, got.Learned)
	}
	second := func(n int) time.Time { return at.Add(time.Duration(n) * time.Second) }
	some := []vm.LearnedAddress{{Slot: 1, IP: netip.MustParseAddr("10.0.0.9"), Source: vm.SourceNeighbour, At: second(9)},
		{IP: netip.MustParseAddr("fd00::9"), Source: vm.SourceNeighbour, At: second(8)}}
	for _, tt := range []struct {
		name    string
		learned vm.Learned
		boot    vm.Boot
		known   []vm.LearnedAddress
		changes bool
	}{
		{"nothing", vm.Learned{}, vm.Boot{}, nil, false},
		{"no addresses where there are none", vm.Learned{Reset: true, Addresses: &[]vm.LearnedAddress{}}, vm.Boot{},
			nil, false},
		{"two times", vm.Learned{Boot: vm.Boot{Spawned: second(1), DHCP: second(4)}},
			vm.Boot{Spawned: second(1), DHCP: second(4)}, nil, true},
		{"a later time", vm.Learned{Boot: vm.Boot{DHCP: second(5)}}, vm.Boot{Spawned: second(1), DHCP: second(4)},
			nil, false},
		{"the others", vm.Learned{Boot: vm.Boot{Monitor: second(2), Serial: second(3), DHCP: second(5),
			Agent: second(6), TCP: second(5), CloudInit: second(7), CloudInitFailed: second(8)}},
			vm.Boot{Spawned: second(1), Monitor: second(2), Serial: second(3), DHCP: second(4), Agent: second(6),
				TCP: second(5), CloudInit: second(7), CloudInitFailed: second(8)}, nil, true},
		{"a new run with addresses", vm.Learned{Reset: true, Boot: vm.Boot{Spawned: second(6)}, Addresses: &some},
			vm.Boot{Spawned: second(6)}, some, true},
		{"the same addresses", vm.Learned{Addresses: &some}, vm.Boot{Spawned: second(6)}, some, false},
		{"one address less", vm.Learned{Addresses: &[]vm.LearnedAddress{some[0]}}, vm.Boot{Spawned: second(6)},
			some[:1], true},
		{"no addresses", vm.Learned{Addresses: &[]vm.LearnedAddress{}}, vm.Boot{Spawned: second(6)}, nil, true},
		{"both again", vm.Learned{Boot: vm.Boot{DHCP: second(7)}, Addresses: &some},
			vm.Boot{Spawned: second(6), DHCP: second(7)}, some, true},
		{"a new run of which nothing is known", vm.Learned{Reset: true}, vm.Boot{}, nil, true},
	} {
		before := s.mustVM(t, v.ID)
		tt.learned.VMID = v.ID
		apply(t, s, vm.Change{Learned: []vm.Learned{{VMID: "gone", Boot: vm.Boot{TCP: at}}, tt.learned}})
		if _, _, kept := s.cache.get(v.ID); kept == tt.changes {
			t.Errorf("%s: the VM is still cached: %t; want %t", tt.name, kept, !tt.changes)
		}
		got := s.mustVM(t, v.ID)
		want := before
		want.Boot, want.Learned = tt.boot, tt.known
		if tt.changes {
			want.Revision, want.UpdatedAt = before.Revision+1, got.UpdatedAt
		}
		if !reflect.DeepEqual(got, want) || got.UpdatedAt.Before(before.UpdatedAt) {
			t.Errorf("%s: read %+v; want %+v", tt.name, got, want)
		}
	}
}

func TestAnUpdateKeepsLearnedFacts(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(0)
	apply(t, s, vm.Change{NewVM: &v})
	known := []vm.LearnedAddress{{IP: netip.MustParseAddr("10.0.0.9"), Source: vm.SourceNeighbour, At: at}}
	apply(t, s, vm.Change{Learned: []vm.Learned{{VMID: v.ID, Boot: vm.Boot{TCP: at}, Addresses: &known}}})
	v.Boot, v.Learned, v.Description = vm.Boot{Serial: at}, nil, "changed"
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
	if got := s.mustVM(t, v.ID); got.Description != "changed" || got.Boot != (vm.Boot{TCP: at}) ||
		!reflect.DeepEqual(got.Learned, known) {
		t.Errorf("read %+v; want the learned facts kept", got)
	}
	for name, l := range map[string]vm.LearnedAddress{
		"an invalid slot":   {Slot: vm.MaxNICs, IP: known[0].IP, Source: vm.SourceNeighbour},
		"an unknown source": {IP: known[0].IP, Source: "rumour"},
	} {
		if err := s.applyErr(t.Context(), vm.Change{Learned: []vm.Learned{{VMID: v.ID,
			Addresses: &[]vm.LearnedAddress{l}}}}); err == nil {
			t.Errorf("%s is recorded", name)
		}
	}
	if got := s.mustVM(t, v.ID); !reflect.DeepEqual(got.Learned, known) {
		t.Errorf("read %+v; want the facts learned before", got.Learned)
	}
}
