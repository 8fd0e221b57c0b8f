package vm

import (
	"crypto/sha256"
	"encoding/binary"
	"net"
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
