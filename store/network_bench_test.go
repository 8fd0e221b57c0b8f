package store

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"vmand/vm"
)

func BenchmarkFreeIPAfter60000(b *testing.B) {
	s := crowded(b, 60_000)
	defer reportCPU(b)()
	for b.Loop() {
		ip, err := s.FreeIP(b.Context(), "lan", crowdedIP(0), netip.MustParseAddr("10.0.255.254"), nil)
		if err != nil || ip != crowdedIP(60_000) {
			b.Fatal(ip, err)
		}
	}
}

func BenchmarkLeaseByMAC(b *testing.B) {
	s := crowded(b, many)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	macs := make([]string, many)
	for i := range macs {
		macs[i] = crowdedVM(i).NICs[0].MAC
	}
	defer reportCPU(b)()
	for i := 0; b.Loop(); i++ {
		if _, err := s.LeaseByMAC(ctx, "lan", macs[i*7919%many]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVMs100OfANetwork reads a page of the VMs on a network that all VMs, or
// one in a hundred, are on.
func BenchmarkVMs100OfANetwork(b *testing.B) {
	s := crowded(b, many)
	makeNetwork(b, s, "few")
	for i := 0; i < many; i += 100 {
		v := crowdedVM(many + i)
		v.NICs[0].Network = "few"
		apply(b, s, vm.Change{NewVM: &v})
	}
	for _, name := range []string{"lan", "few"} {
		b.Run(name, func(b *testing.B) {
			defer reportCPU(b)()
			for b.Loop() {
				list, err := s.VMs(b.Context(), vm.VMFilter{Network: name}, vm.Page{Limit: 100})
				if err != nil || len(list) != 100 {
					b.Fatal(len(list), err)
				}
			}
		})
	}
}

// crowded returns a store of n VMs on the network lan, with consecutive addresses.
func crowded(t testing.TB, n int) *Store {
	t.Helper()
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	insert := func(from, to int) {
		must(t, s.write(context.Background(), func(tx *transaction) error {
			for i := from; i < to; i++ {
				if _, err := insertVM(context.Background(), tx, crowdedVM(i), at); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	insert(0, min(1, n)) // prepares the statements
	insert(1, n)
	return s
}

func crowdedVM(i int) vm.VM {
	v := makeVM(i)
	v.NICs = []vm.NIC{makeNIC(0, "lan", crowdedIP(i).String())}
	v.NICs[0].MAC = vm.MACOf(v.UUID, 0)
	return v
}

func crowdedIP(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", (i+1)/256, (i+1)%256))
}
