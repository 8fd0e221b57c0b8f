package network

import (
	"crypto/sha256"
	"encoding/binary"
	"net"
	"testing"

	"github.com/google/uuid"

	"vmand/vm"
)

// testUUID returns the n-th of a fixed sequence of UUIDs.
func testUUID(n int) string {
	var seed [8]byte
	binary.BigEndian.PutUint64(seed[:], uint64(n))
	sum := sha256.Sum256(seed[:])
	return uuid.UUID(sum[:16]).String()
}

func TestConnectGivesOneUserModeNICInSlotZero(t *testing.T) {
	v := vm.VM{ID: "web-1", UUID: testUUID(1)}
	nics, err := NewUserMode().Connect(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if len(nics) != 1 || nics[0].Slot != 0 || nics[0].Mode != vm.NICUser {
		t.Fatalf("Connect = %+v, want one NIC of mode user in slot 0", nics)
	}
	mac, err := net.ParseMAC(nics[0].MAC)
	if err != nil || len(mac) != 6 {
		t.Fatalf("MAC %q: %v, want six octets", nics[0].MAC, err)
	}
}

func TestAVMKeepsItsMACWhateverItIsCalled(t *testing.T) {
	n := NewUserMode()
	first, err := n.Connect(t.Context(), vm.VM{ID: "web-1", UUID: testUUID(7)})
	if err != nil {
		t.Fatal(err)
	}
	later, err := NewUserMode().Connect(t.Context(), vm.VM{ID: "web-2", UUID: testUUID(7), State: vm.Errored})
	if err != nil {
		t.Fatal(err)
	}
	if first[0].MAC != later[0].MAC {
		t.Errorf("MAC was %s and is %s for the same UUID", first[0].MAC, later[0].MAC)
	}
	// A guest keeps its address over upgrades of the daemon only while the
	// derivation never changes.
	if want := "52:1c:dd:14:f2:ea"; macOf("0b0e2c6e-4f0a-4a7e-9d6c-0d6d4c1f6a11", 0).String() != want {
		t.Errorf("macOf = %s, want %s as ever", macOf("0b0e2c6e-4f0a-4a7e-9d6c-0d6d4c1f6a11", 0), want)
	}
}

func TestMACsAreLocalUnicastAndDoNotCollide(t *testing.T) {
	const many = 100_000
	seen := make(map[string]int, many)
	for n := range many {
		mac := macOf(testUUID(n), 0)
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
	if a, b := macOf(testUUID(1), 0), macOf(testUUID(1), 1); a.String() == b.String() {
		t.Errorf("slots 0 and 1 share the MAC %s", a)
	}
}

func TestAVMWithoutUUIDIsRefused(t *testing.T) {
	if nics, err := NewUserMode().Connect(t.Context(), vm.VM{ID: "web-1"}); err == nil {
		t.Errorf("Connect = %+v, want an error", nics)
	}
}

func TestDisconnectSucceedsWhenThereIsNothing(t *testing.T) {
	if err := NewUserMode().Disconnect(t.Context(), "never-connected"); err != nil {
		t.Error(err)
	}
}
