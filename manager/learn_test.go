package manager_test

import (
	"net/netip"
	"testing"
	"time"

	"vmand/vm"
)

// TestAddressesOfTheAgentPrecedeThoseOfTheHost uses a VM on a bridge of the host. vmand does
// not assign the addresses on such a network.
func TestAddressesOfTheAgentPrecedeThoseOfTheHost(t *testing.T) {
	w := newWorld(t)
	must(t)(w.Networks.Create(t.Context(), vm.Network{Name: "lan", Mode: vm.NetworkBridge, Bridge: "br0"}))
	must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "a", Template: "small", NICs: &[]vm.NewNIC{{Network: "lan"}}}))
	w.do("a", vm.OpStart)
	mac := w.vm("a").NICs[0].MAC
	silent := vm.Agent{State: vm.AgentSilent}
	w.driver.SetAgent("a", silent)
	pass := func() {
		t.Helper()
		must(t)(w.Networks.Reconcile(t.Context(), []vm.VM{w.vm("a")}, true))
	}
	want := func(ip string, source vm.AddressSource) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
			v := w.vm("a")
			if got, from := v.LocalIP(); from == source && (ip == "" || got == addr(ip)) {
				return
			} else if time.Now().After(deadline) {
				t.Fatalf("the address is %s (%s); want %s (%s)", got, from, ip, source)
			}
		}
	}
	pass()
	want("", "")
	seen := vm.LearnedAddress{Slot: 0, IP: addr("10.0.0.9"), Source: vm.SourceNeighbour, At: time.Now()}
	w.network.SetLearned("a", seen)
	pass()
	want("10.0.0.9", vm.SourceNeighbour)

	w.driver.SetInterfaces(vm.GuestInterface{Name: "eth0", MAC: mac, Addresses: []netip.Prefix{
		prefix("fe80::1/64"), prefix("2001:db8::7/64"), prefix("169.254.1.1/16"), prefix("10.0.0.7/24"), prefix("10.0.0.8/24")}})
	w.driver.SetAgent("a", vm.Agent{State: vm.AgentConnected})
	pass()
	want("10.0.0.7", vm.SourceAgent)
	revision := w.vm("a").Revision
	pass() // the observation of the host is unchanged
	want("10.0.0.7", vm.SourceAgent)
	if now := w.vm("a").Revision; now != revision {
		t.Errorf("the revision went from %d to %d without a new observation", revision, now)
	}
	w.driver.SetAgent("a", silent)
	pass()
	want("10.0.0.9", vm.SourceNeighbour)
	w.do("a", vm.OpRestart) // the address after a restart is unknown
	want("", "")
}
