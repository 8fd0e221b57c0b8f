package vm

import (
	"crypto/sha256"
	"encoding/binary"
	"net"
	"reflect"
	"slices"
	"testing"

	"github.com/google/uuid"
)

// numberedUUID returns UUID n of a fixed sequence.
func numberedUUID(n int) string {
	var seed [8]byte
	binary.BigEndian.PutUint64(seed[:], uint64(n))
	sum := sha256.Sum256(seed[:])
	return uuid.UUID(sum[:16]).String()
}

// A guest keeps its MAC address across upgrades of the daemon only if MACOf never changes.
func TestMACOfNeverChanges(t *testing.T) {
	if got, want := MACOf("0b0e2c6e-4f0a-4a7e-9d6c-0d6d4c1f6a11", 0), "52:1c:dd:14:f2:ea"; got != want {
		t.Errorf("MACOf = %s; want %s", got, want)
	}
}

func TestMACsAreLocalUnicastAndDoNotCollide(t *testing.T) {
	const many = 100_000
	seen := make(map[string]int, many)
	for n := range many {
		mac, err := net.ParseMAC(MACOf(numberedUUID(n), 0))
		if err != nil || len(mac) != 6 {
			t.Fatalf("%s: %v", mac, err)
		}
		if mac[0]&0x01 != 0 {
			t.Fatalf("%s is a group address", mac)
		}
		if mac[0]&0x02 == 0 {
			t.Fatalf("%s is not locally administered", mac)
		}
		if other, taken := seen[mac.String()]; taken {
			t.Fatalf("UUIDs %d and %d have the same MAC %s", other, n, mac)
		}
		seen[mac.String()] = n
	}
}

func TestEachSlotHasItsOwnMAC(t *testing.T) {
	if a, b := MACOf(numberedUUID(1), 0), MACOf(numberedUUID(1), 1); a == b {
		t.Errorf("slots 0 and 1 share the MAC %s", a)
	}
}

func TestSettleNICs(t *testing.T) {
	recorded := []NIC{
		{Slot: 0, State: NICAttached},
		{Slot: 1, State: NICAttaching},
		{Slot: 2, State: NICDetaching},
	}
	attached := func(n NIC) NIC { n.State = NICAttached; return n }
	for _, c := range []struct {
		name   string
		seen   Observation
		have   []NIC
		unplug []int
	}{
		{"no process", Observation{}, recorded[:1], nil},
		{"no answer", Observation{PID: 7}, recorded, nil},
		{"QEMU has none", Observation{PID: 7, NICs: []int{}}, recorded[:1], nil},
		{
			"QEMU has all", Observation{PID: 7, NICs: []int{0, 1, 2}},
			[]NIC{recorded[0], attached(recorded[1]), recorded[2]}, []int{2},
		},
	} {
		have, unplug := SettleNICs(recorded, c.seen)
		if !reflect.DeepEqual(have, c.have) || !reflect.DeepEqual(unplug, c.unplug) {
			t.Errorf("%s: got %+v, %v; want %+v, %v", c.name, have, unplug, c.have, c.unplug)
		}
	}
}

func TestSlotsOfNICs(t *testing.T) {
	v := VM{
		ID:       "web-1",
		NICs:     []NIC{{Slot: 0}, {Slot: 2}},
		Forwards: []PortForward{{ID: "pf-a", Slot: 2}, {ID: "pf-b", Slot: 0}},
	}
	before := slices.Clone(v.NICs)
	if slot, err := v.FreeNICSlot(); err != nil || slot != 1 {
		t.Errorf("FreeNICSlot = %d, %v; want 1", slot, err)
	}
	for slot, want := range []int{0, 1, 1, 2} {
		if got := v.NICIndex(slot); got != want {
			t.Errorf("NICIndex(%d) = %d; want %d", slot, got, want)
		}
	}
	if _, err := v.NIC(1); err == nil || err.Error() != "NIC 1 of VM web-1 not found" {
		t.Errorf("NIC(1): %v", err)
	}
	shared := v.NICs
	v.RemoveNIC(2)
	if len(v.NICs) != 1 || len(v.Forwards) != 1 || v.Forwards[0].ID != "pf-b" || !reflect.DeepEqual(shared, before) {
		t.Errorf("after RemoveNIC(2): %+v, %+v; the old NICs are %+v", v.NICs, v.Forwards, shared)
	}
	v.NICs = make([]NIC, MaxNICs)
	for slot := range v.NICs {
		v.NICs[slot].Slot = slot
	}
	_, err := v.FreeNICSlot()
	if f, ok := err.(*Fault); !ok || f.Code != CodeLimitReached || f.Detail != "VM web-1 already has 8 NICs, the maximum" {
		t.Errorf("FreeNICSlot of a full VM: %v", err)
	}
}
