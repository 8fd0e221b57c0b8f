package dhcp

import (
	"net"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"vmand/vm"
)

func message6(t testing.TB, kind dhcpv6.MessageType, with ...dhcpv6.Modifier) *dhcpv6.Message {
	t.Helper()
	m, err := dhcpv6.NewMessage()
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = kind
	m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDUUID{UUID: [16]byte{1}}))
	for _, w := range with {
		w(m)
	}
	return m
}

func asks6(ips ...string) dhcpv6.Modifier {
	var addresses []dhcpv6.OptIAAddress
	for _, ip := range ips {
		addresses = append(addresses, dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(ip)})
	}
	return dhcpv6.WithIANA(addresses...)
}

func TestADHCPv6ClientGetsTheRecordedAddressOrNone(t *testing.T) {
	us := dhcpv6.WithServerID(serverDUID(testNetwork))
	another := testNetwork
	another.Name = "other"
	them := dhcpv6.WithServerID(serverDUID(another))
	anonymous := func(d dhcpv6.DHCPv6) { d.(*dhcpv6.Message).Options.Del(dhcpv6.OptionClientID) }
	const ours, other = "fd00:77::9", "fd00:77::10"
	none := dhcpv6.MessageTypeNone
	for name, c := range map[string]struct {
		request *dhcpv6.Message
		reply   dhcpv6.MessageType
		what    outcome
		address bool
		status  iana.StatusCode
	}{
		"solicit":                     {message6(t, dhcpv6.MessageTypeSolicit, asks6()), dhcpv6.MessageTypeAdvertise, nothing, true, 0},
		"solicit in a hurry":          {message6(t, dhcpv6.MessageTypeSolicit, asks6(), dhcpv6.WithRapidCommit), dhcpv6.MessageTypeReply, confirmed, true, 0},
		"solicit a server":            {message6(t, dhcpv6.MessageTypeSolicit, asks6(), us), none, nothing, false, 0},
		"solicit without a name":      {message6(t, dhcpv6.MessageTypeSolicit, asks6(), anonymous), none, nothing, false, 0},
		"request":                     {message6(t, dhcpv6.MessageTypeRequest, asks6(ours), us), dhcpv6.MessageTypeReply, confirmed, true, 0},
		"request another address":     {message6(t, dhcpv6.MessageTypeRequest, asks6(other), us), dhcpv6.MessageTypeReply, confirmed, true, 0},
		"request of another server":   {message6(t, dhcpv6.MessageTypeRequest, asks6(ours), them), none, nothing, false, 0},
		"request of no server":        {message6(t, dhcpv6.MessageTypeRequest, asks6(ours)), none, nothing, false, 0},
		"renew":                       {message6(t, dhcpv6.MessageTypeRenew, asks6(ours), us), dhcpv6.MessageTypeReply, confirmed, true, 0},
		"rebind":                      {message6(t, dhcpv6.MessageTypeRebind, asks6(ours)), dhcpv6.MessageTypeReply, confirmed, true, 0},
		"confirm":                     {message6(t, dhcpv6.MessageTypeConfirm, asks6(ours)), dhcpv6.MessageTypeReply, nothing, false, iana.StatusSuccess},
		"confirm another address":     {message6(t, dhcpv6.MessageTypeConfirm, asks6(ours, other)), dhcpv6.MessageTypeReply, nothing, false, iana.StatusNotOnLink},
		"confirm nothing":             {message6(t, dhcpv6.MessageTypeConfirm, asks6()), none, nothing, false, 0},
		"release":                     {message6(t, dhcpv6.MessageTypeRelease, asks6(ours), us), dhcpv6.MessageTypeReply, released, false, iana.StatusSuccess},
		"decline":                     {message6(t, dhcpv6.MessageTypeDecline, asks6(ours), us), dhcpv6.MessageTypeReply, declined, false, iana.StatusSuccess},
		"information":                 {message6(t, dhcpv6.MessageTypeInformationRequest, anonymous), dhcpv6.MessageTypeReply, nothing, false, 0},
		"what only servers send":      {message6(t, dhcpv6.MessageTypeReply, asks6(), us), none, nothing, false, 0},
		"reconfigure, not supported":  {message6(t, dhcpv6.MessageTypeReconfigure, us), none, nothing, false, 0},
		"information from the others": {message6(t, dhcpv6.MessageTypeInformationRequest, them), none, nothing, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r, what := reply6(c.request, testNetwork, testLease)
			if what != c.what {
				t.Errorf("outcome %v, want %v", what, c.what)
			}
			if r == nil {
				if c.reply != none {
					t.Fatalf("silence, want %v", c.reply)
				}
				return
			}
			r, err := dhcpv6.MessageFromBytes(r.ToBytes())
			if err != nil {
				t.Fatal(err)
			}
			if r.MessageType != c.reply || r.TransactionID != c.request.TransactionID {
				t.Fatalf("answer %v, want %v", r, c.reply)
			}
			if got := given(r) == ours; got != c.address {
				t.Errorf("gives the address %v, want %v: %v", got, c.address, r.Summary())
			}
			if s := r.Options.Status(); s != nil && s.StatusCode != c.status {
				t.Errorf("status %v, want %v", s, c.status)
			} else if s == nil && c.status != 0 {
				t.Errorf("no status, want %v", c.status)
			}
		})
	}
}

// given returns the address that a message gives, the first.
func given(m *dhcpv6.Message) string {
	for _, ia := range m.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			if a.ValidLifetime > 0 {
				return a.IPv6Addr.String()
			}
		}
	}
	return ""
}

func TestDHCPv6TellsServersAndDomainAndTakesBackWhatIsNotTheClients(t *testing.T) {
	us := dhcpv6.WithServerID(serverDUID(testNetwork))
	r, _ := reply6(message6(t, dhcpv6.MessageTypeRenew, asks6("fd00:77::9", "fd00:77::10"), us), testNetwork, testLease)
	if dns := r.Options.DNS(); len(dns) != 1 || dns[0].String() != "fd00:77::1" {
		t.Errorf("DNS servers %v", dns)
	}
	if l := r.Options.DomainSearchList(); l == nil || len(l.Labels) != 1 || l.Labels[0] != "vm.internal" {
		t.Errorf("search list %v", l)
	}
	addresses := r.Options.OneIANA().Options.Addresses()
	if len(addresses) != 2 || addresses[1].IPv6Addr.String() != "fd00:77::10" || addresses[1].ValidLifetime != 0 {
		t.Errorf("addresses %v", addresses)
	}
	without := vm.Lease{MAC: testLease.MAC, IP: testLease.IP}
	r, what := reply6(message6(t, dhcpv6.MessageTypeRequest, asks6(), us), testNetwork, without)
	if s := r.Options.OneIANA().Options.Status(); what != nothing || s == nil || s.StatusCode != iana.StatusNoAddrsAvail {
		t.Errorf("without a recorded address: %v", r.Summary())
	}
}

func FuzzDHCPv6(f *testing.F) {
	us := dhcpv6.WithServerID(serverDUID(testNetwork))
	header := make([]byte, headerIPv6+headerUDP)
	header[0], header[ipv6NextHeader] = 0x60, 17
	for _, m := range []*dhcpv6.Message{
		message6(f, dhcpv6.MessageTypeSolicit, asks6(), dhcpv6.WithRapidCommit),
		message6(f, dhcpv6.MessageTypeRequest, asks6("fd00:77::9"), us, dhcpv6.WithIAPD([4]byte{1})),
		message6(f, dhcpv6.MessageTypeConfirm, asks6("fd00:77::9")),
		message6(f, dhcpv6.MessageTypeInformationRequest),
	} {
		b := m.ToBytes()
		packet := append(append([]byte(nil), header...), b...)
		packet[headerIPv6+udpLength], packet[headerIPv6+udpLength+1] = byte((len(b)+headerUDP)>>8), byte(len(b)+headerUDP)
		f.Add(packet)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		payload, _, ok := payload6(packet)
		if !ok {
			return
		}
		m, err := dhcpv6.MessageFromBytes(payload)
		if err != nil {
			return
		}
		r, what := reply6(m, testNetwork, testLease)
		if r == nil {
			return
		}
		parsed, err := dhcpv6.MessageFromBytes(r.ToBytes())
		if err != nil {
			t.Fatalf("the answer cannot be read: %v", err)
		}
		if a := given(parsed); (what == confirmed && a == "") || (a != "" && a != "fd00:77::9") {
			t.Fatalf("outcome %v, gives %q", what, a)
		}
	})
}
