package network

import (
	"testing"

	"vmand/vm"
)

// TestAPassWithOldRecordsLetsNobodyPassAgain has a pass whose records are from
// before the VM was disconnected.
func TestAPassWithOldRecordsLetsNobodyPassAgain(t *testing.T) {
	n := newHost(t)
	nw := natNetwork()
	up(t, n, nw)
	v := guest("web", nw, 10)
	tap := connect(t, n, v, nw)
	old := vm.Wanted{Networks: []vm.Network{nw}, VMs: []vm.VM{v}}
	reconcile(t, n, old, true)
	tap.Close() // with QEMU
	if err := n.Disconnect(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	reconcile(t, n, old, true)
	if taps := n.firewall.taps(vmOwner(v.ID)); len(taps) != 0 {
		t.Errorf("the VM that is gone may send again through %v", taps)
	}
	reconcile(t, n, vm.Wanted{Networks: old.Networks}, true)
	if _, known := n.vmRevisions[v.ID]; known {
		t.Error("a VM that is gone is remembered for ever")
	}
	connect(t, n, v, nw) // it is started again
	reconcile(t, n, old, true)
	if taps := n.firewall.taps(vmOwner(v.ID)); len(taps) != 1 {
		t.Errorf("the VM that was started again may send through %v", taps)
	}
}
