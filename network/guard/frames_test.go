package guard

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// packet4 returns an IPv4 packet with a UDP datagram from 192.0.2.1, without checksums.
func packet4(payload string) []byte {
	b := make([]byte, headerIPv4+headerUDP, headerIPv4+headerUDP+len(payload))
	b[0], b[ipv4Protocol] = 0x45, 17
	copy(b[ipv4Source:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
	binary.BigEndian.PutUint16(b[ipv4TotalLength:], uint16(len(b)+len(payload)))
	binary.BigEndian.PutUint16(b[headerIPv4:], 4000)
	binary.BigEndian.PutUint16(b[headerIPv4+udpLength:], uint16(headerUDP+len(payload)))
	return append(b, payload...)
}

func TestIncompletePacketsAreIgnored(t *testing.T) {
	good := packet4("hello")
	u, ok := ParseUDP4(good)
	if want := netip.MustParseAddrPort("192.0.2.1:4000"); !ok || string(u.Payload) != "hello" || u.From != want {
		t.Fatal("a good packet is ignored")
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"cut":                 func(b []byte) []byte { return b[:len(b)-1] },
		"cut in the header":   func(b []byte) []byte { return b[:headerIPv4-1] },
		"of another version":  func(b []byte) []byte { b[0] = 0x65; return b },
		"of another protocol": func(b []byte) []byte { b[ipv4Protocol] = 6; return b },
		"a short header":      func(b []byte) []byte { b[0] = 0x44; return b },
		"a long header": func(b []byte) []byte {
			b[0], b[ipv4TotalLength], b[ipv4TotalLength+1] = 0x4f, 0, 59
			return b
		},
		"a fragment":         func(b []byte) []byte { b[ipv4FragmentOffset+1] = 1; return b },
		"a first fragment":   func(b []byte) []byte { b[ipv4FragmentOffset] = 0x20; return b },
		"a short UDP length": func(b []byte) []byte { b[headerIPv4+udpLength], b[headerIPv4+udpLength+1] = 0, 7; return b },
		"a long UDP length":  func(b []byte) []byte { b[headerIPv4+udpLength] = 0xff; return b },
	} {
		if _, ok := ParseUDP4(spoil(bytes.Clone(good))); ok {
			t.Errorf("%s: accepted", name)
		}
	}
}
