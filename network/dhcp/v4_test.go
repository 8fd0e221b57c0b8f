package dhcp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"vmand/network/guard"
	"vmand/network/guard/linktest"
	"vmand/vm"
)

var (
	testNetwork = vm.Network{
		Name: "net0", Mode: vm.NetworkNAT, Bridge: linktest.HostInterface,
		Subnet: netip.MustParsePrefix("192.168.77.0/24"), Gateway: netip.MustParseAddr("192.168.77.1"),
		IPv6: netip.MustParsePrefix("fd00:77::/64"), Domain: "vm.internal", MTU: 1400,
	}
	testLease = vm.Lease{
		Network: "net0", VMID: "web", MAC: linktest.GuestMAC.String(), Hostname: "web",
		IP: netip.MustParseAddr("192.168.77.9"), IPv6: netip.MustParseAddr("fd00:77::9"),
	}
)

func message4(t testing.TB, kind dhcpv4.MessageType, with ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	all := append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(linktest.GuestMAC), dhcpv4.WithMessageType(kind)}, with...)
	m, err := dhcpv4.New(all...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func asks(ip string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(ip)))
}
func has(ip string) dhcpv4.Modifier { return dhcpv4.WithClientIP(net.ParseIP(ip)) }
func to(ip string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(ip)))
}

func TestAClientGetsTheRecordedAddressOrNone(t *testing.T) {
	const ours, other, gateway, all = "192.168.77.9", "192.168.77.10", "192.168.77.1", "255.255.255.255"
	const (
		none     = dhcpv4.MessageTypeNone
		discover = dhcpv4.MessageTypeDiscover
		offer    = dhcpv4.MessageTypeOffer
		request  = dhcpv4.MessageTypeRequest
		inform   = dhcpv4.MessageTypeInform
		decline  = dhcpv4.MessageTypeDecline
		release  = dhcpv4.MessageTypeRelease
		ack      = dhcpv4.MessageTypeAck
		nak      = dhcpv4.MessageTypeNak
	)
	for name, c := range map[string]struct {
		request *dhcpv4.DHCPv4
		reply   dhcpv4.MessageType
		outcome outcome
		to      string
	}{
		"discover":                          {message4(t, discover), offer, unchanged, all},
		"discover with a requested address": {message4(t, discover, asks(other)), offer, unchanged, all},
		"discover from another address":     {message4(t, discover, has(other)), offer, unchanged, all},
		"select":                            {message4(t, request, asks(ours), to(gateway)), ack, confirmed, all},
		"select another address":            {message4(t, request, asks(other), to(gateway)), nak, unchanged, all},
		"select from another address":       {message4(t, request, asks(ours), has(other)), nak, unchanged, all},
		"select another server":             {message4(t, request, asks(ours), to(other)), none, unchanged, ""},
		"reboot":                            {message4(t, request, asks(ours)), ack, confirmed, all},
		"reboot with another address":       {message4(t, request, asks(other)), nak, unchanged, all},
		"renew":                             {message4(t, request, has(ours)), ack, confirmed, ours},
		"renew another address":             {message4(t, request, has(other)), nak, unchanged, all},
		"request nothing":                   {message4(t, request), none, unchanged, ""},
		"inform":                            {message4(t, inform, has(ours)), ack, unchanged, ours},
		"inform with another address":       {message4(t, inform, has(other)), none, unchanged, ""},
		"decline":                           {message4(t, decline, asks(ours), to(gateway)), none, declined, ""},
		"decline another address":           {message4(t, decline, asks(other), to(gateway)), none, unchanged, ""},
		"release":                           {message4(t, release, has(ours), to(gateway)), none, released, ""},
		"release another address":           {message4(t, release, has(other), to(gateway)), none, unchanged, ""},
		"an offer, which only servers send": {message4(t, offer), none, unchanged, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, outcome := reply4(c.request, testNetwork, testLease)
			if outcome != c.outcome {
				t.Errorf("outcome %v, want %v", outcome, c.outcome)
			}
			if r == nil {
				if c.reply != none {
					t.Fatalf("no reply, want %v", c.reply)
				}
				return
			}
			if r.MessageType() != c.reply {
				t.Fatalf("reply %v, want %v", r.MessageType(), c.reply)
			}
			if r.TransactionID != c.request.TransactionID || !bytes.Equal(r.ClientHWAddr, c.request.ClientHWAddr) {
				t.Error("the reply is to another request")
			}
			if got := destination4(r).Addr().String(); got != c.to {
				t.Errorf("sent to %s, want %s", got, c.to)
			}
			gives := c.reply == offer || c.outcome == confirmed
			if got := r.YourIPAddr.Equal(net.ParseIP(ours)); got != gives {
				t.Errorf("gives the address %v, want %v: %v", got, gives, r)
			}
			if got := r.IPAddressLeaseTime(0) == 24*time.Hour; got != gives {
				t.Errorf("gives a lease time %v, want %v", got, gives)
			}
		})
	}
}

func TestOptionsFollowTheRecordOfTheNetwork(t *testing.T) {
	nw := testNetwork
	nw.NTP = []netip.Addr{netip.MustParseAddr("192.168.77.3"), netip.MustParseAddr("fd00::3")}
	nw.Routes = []vm.Route{
		{Destination: netip.MustParsePrefix("10.8.0.0/16"), Gateway: netip.MustParseAddr("192.168.77.2")},
	}
	ack := func(nw vm.Network) *dhcpv4.DHCPv4 {
		identifier := dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte("clone")))
		m := message4(t, dhcpv4.MessageTypeRequest, asks("192.168.77.9"), identifier)
		r, _ := reply4(m, nw, testLease)
		parsed, err := dhcpv4.FromBytes(r.ToBytes())
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	options := func(r *dhcpv4.DHCPv4) map[string]string {
		m := map[string]string{"router": "", "routes": "", "ntp": ""}
		for k, o := range map[string]dhcpv4.OptionCode{
			"mask":   dhcpv4.OptionSubnetMask,
			"router": dhcpv4.OptionRouter,
			"dns":    dhcpv4.OptionDomainNameServer,
			"domain": dhcpv4.OptionDomainName,
			"search": dhcpv4.OptionDNSDomainSearchList,
			"mtu":    dhcpv4.OptionInterfaceMTU,
			"routes": dhcpv4.OptionClasslessStaticRoute,
			"ntp":    dhcpv4.OptionNTPServers,
			"host":   dhcpv4.OptionHostName,
			"server": dhcpv4.OptionServerIdentifier,
			"t1":     dhcpv4.OptionRenewTimeValue,
			"t2":     dhcpv4.OptionRebindingTimeValue,
			"client": dhcpv4.OptionClientIdentifier,
		} {
			m[k] = string(r.GetOneOption(o))
		}
		return m
	}
	want := map[string]string{
		"mask":   "\xff\xff\xff\x00",
		"router": "\xc0\xa8\x4d\x01",
		"dns":    "\xc0\xa8\x4d\x01",
		"domain": "vm.internal",
		"search": "\x02vm\x08internal\x00",
		"mtu":    "\x05\x78",
		"ntp":    "\xc0\xa8\x4d\x03",
		"host":   "web",
		"server": "\xc0\xa8\x4d\x01",
		"t1":     "\x00\x00\xa8\xc0",
		"t2":     "\x00\x01\x27\x50",
		"client": "clone",
		// 10.8.0.0/16 through .2, and 0.0.0.0/0 through the gateway
		"routes": "\x10\x0a\x08\xc0\xa8\x4d\x02" + "\x00\xc0\xa8\x4d\x01",
	}
	compare := func(network string, got map[string]string) {
		t.Helper()
		for k := range want {
			if got[k] != want[k] {
				t.Errorf("%s: option %s is %q, want %q", network, k, got[k], want[k])
			}
		}
	}
	compare("nat", options(ack(nw)))

	nw.Mode = vm.NetworkIsolated
	want["router"], want["routes"] = "", "\x10\x0a\x08\xc0\xa8\x4d\x02"
	compare("isolated", options(ack(nw)))

	nw.Routes, nw.DNS = nil, []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::fe")}
	want["routes"], want["dns"] = "", "\x09\x09\x09\x09"
	compare("isolated, with recorded DNS servers", options(ack(nw)))
}

func TestRequestsFromOutsideTheLinkAreIgnored(t *testing.T) {
	if !acceptable4(message4(t, dhcpv4.MessageTypeDiscover)) {
		t.Fatal("a good request is not acceptable")
	}
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for name, spoil := range map[string]func(*dhcpv4.DHCPv4){
		"a reply":             func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply },
		"through a relay":     func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.IPv4(10, 0, 0, 1) },
		"of another hardware": func(m *dhcpv4.DHCPv4) { m.HWType = 32 },
		"a short address":     func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = m.ClientHWAddr[:5] },
		"a long address":      func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = make([]byte, 16) },
		"a group's address":   func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = broadcast },
		"no address":          func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = make([]byte, 6) },
		"BOOTP":               func(m *dhcpv4.DHCPv4) { m.DeleteOption(dhcpv4.OptionDHCPMessageType) },
	} {
		m := message4(t, dhcpv4.MessageTypeDiscover)
		spoil(m)
		if acceptable4(m) {
			t.Errorf("%s is acceptable", name)
		}
	}
}

// packet4 returns an IPv4 packet with a message, without addresses and checksums.
func packet4(m *dhcpv4.DHCPv4) []byte {
	payload := m.ToBytes()
	b := make([]byte, 28, 28+len(payload))
	b[0], b[9] = 0x45, 17
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(payload)))
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	return append(b, payload...)
}

func FuzzDHCPv4(f *testing.F) {
	for _, kind := range []dhcpv4.MessageType{
		dhcpv4.MessageTypeDiscover,
		dhcpv4.MessageTypeRequest,
		dhcpv4.MessageTypeInform,
		dhcpv4.MessageTypeRelease,
	} {
		f.Add(packet4(message4(f, kind, asks("192.168.77.9"))))
		f.Add(packet4(message4(f, kind, has("192.168.77.9"), to("192.168.77.1"))))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		u, ok := guard.ParseUDP4(packet)
		if !ok {
			return
		}
		m, err := dhcpv4.FromBytes(u.Payload)
		if err != nil || !acceptable4(m) {
			return
		}
		r, outcome := reply4(m, testNetwork, testLease)
		if r == nil {
			if outcome == confirmed {
				t.Fatal("confirmed without a reply")
			}
			return
		}
		parsed, err := dhcpv4.FromBytes(r.ToBytes())
		if err != nil {
			t.Fatalf("the reply cannot be parsed: %v", err)
		}
		if y := parsed.YourIPAddr; !y.IsUnspecified() && !y.Equal(testLease.IP.AsSlice()) {
			t.Fatalf("gives the address %v", y)
		}
		if a := destination4(parsed).Addr(); a != testLease.IP && a.String() != "255.255.255.255" {
			t.Fatalf("sent to %v", a)
		}
	})
}
