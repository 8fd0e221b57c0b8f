package dhcp

import (
	"net"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"vmand/network/guard"
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
	const (
		none        = dhcpv6.MessageTypeNone
		solicit     = dhcpv6.MessageTypeSolicit
		advertise   = dhcpv6.MessageTypeAdvertise
		request     = dhcpv6.MessageTypeRequest
		renew       = dhcpv6.MessageTypeRenew
		rebind      = dhcpv6.MessageTypeRebind
		confirm     = dhcpv6.MessageTypeConfirm
		release     = dhcpv6.MessageTypeRelease
		decline     = dhcpv6.MessageTypeDecline
		information = dhcpv6.MessageTypeInformationRequest
		reconfigure = dhcpv6.MessageTypeReconfigure
		reply       = dhcpv6.MessageTypeReply
	)
	const success, notOnLink = iana.StatusSuccess, iana.StatusNotOnLink
	rapid := dhcpv6.WithRapidCommit
	for name, c := range map[string]struct {
		request *dhcpv6.Message
		reply   dhcpv6.MessageType
		outcome outcome
		address bool
		status  iana.StatusCode
	}{
		"solicit":                             {message6(t, solicit, asks6()), advertise, unchanged, true, 0},
		"solicit with rapid commit":           {message6(t, solicit, asks6(), rapid), reply, confirmed, true, 0},
		"solicit to a server":                 {message6(t, solicit, asks6(), us), none, unchanged, false, 0},
		"solicit without an identifier":       {message6(t, solicit, asks6(), anonymous), none, unchanged, false, 0},
		"request":                             {message6(t, request, asks6(ours), us), reply, confirmed, true, 0},
		"request another address":             {message6(t, request, asks6(other), us), reply, confirmed, true, 0},
		"request to another server":           {message6(t, request, asks6(ours), them), none, unchanged, false, 0},
		"request to no server":                {message6(t, request, asks6(ours)), none, unchanged, false, 0},
		"renew":                               {message6(t, renew, asks6(ours), us), reply, confirmed, true, 0},
		"rebind":                              {message6(t, rebind, asks6(ours)), reply, confirmed, true, 0},
		"confirm":                             {message6(t, confirm, asks6(ours)), reply, unchanged, false, success},
		"confirm another address":             {message6(t, confirm, asks6(ours, other)), reply, unchanged, false, notOnLink},
		"confirm nothing":                     {message6(t, confirm, asks6()), none, unchanged, false, 0},
		"release":                             {message6(t, release, asks6(ours), us), reply, released, false, success},
		"decline":                             {message6(t, decline, asks6(ours), us), reply, declined, false, success},
		"decline another address":             {message6(t, decline, asks6(other), us), reply, unchanged, false, success},
		"information":                         {message6(t, information, anonymous), reply, unchanged, false, 0},
		"information from another server":     {message6(t, information, them), none, unchanged, false, 0},
		"a reply, which only servers send":    {message6(t, reply, asks6(), us), none, unchanged, false, 0},
		"reconfigure, which is not supported": {message6(t, reconfigure, us), none, unchanged, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r, outcome := reply6(c.request, testNetwork, testLease)
			if outcome != c.outcome {
				t.Errorf("outcome %v, want %v", outcome, c.outcome)
			}
			if r == nil {
				if c.reply != none {
					t.Fatalf("no reply, want %v", c.reply)
				}
				return
			}
			r, err := dhcpv6.MessageFromBytes(r.ToBytes())
			if err != nil {
				t.Fatal(err)
			}
			if r.MessageType != c.reply || r.TransactionID != c.request.TransactionID {
				t.Fatalf("reply %v, want %v", r, c.reply)
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

// given returns the first address that a message gives, or "" if there is none.
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

func TestADHCPv6ReplyConfiguresTheClientAndRevokesOtherAddresses(t *testing.T) {
	us := dhcpv6.WithServerID(serverDUID(testNetwork))
	renew := message6(t, dhcpv6.MessageTypeRenew, asks6("fd00:77::9", "fd00:77::10"), us)
	r, _ := reply6(renew, testNetwork, testLease)
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
	r, outcome := reply6(message6(t, dhcpv6.MessageTypeRequest, asks6(), us), testNetwork, without)
	status := r.Options.OneIANA().Options.Status()
	if outcome != unchanged || status == nil || status.StatusCode != iana.StatusNoAddrsAvail {
		t.Errorf("without a recorded address: %v", r.Summary())
	}
}

func FuzzDHCPv6(f *testing.F) {
	us := dhcpv6.WithServerID(serverDUID(testNetwork))
	header := make([]byte, 48)
	header[0], header[6] = 0x60, 17
	for _, m := range []*dhcpv6.Message{
		message6(f, dhcpv6.MessageTypeSolicit, asks6(), dhcpv6.WithRapidCommit),
		message6(f, dhcpv6.MessageTypeRequest, asks6("fd00:77::9"), us, dhcpv6.WithIAPD([4]byte{1})),
		message6(f, dhcpv6.MessageTypeConfirm, asks6("fd00:77::9")),
		message6(f, dhcpv6.MessageTypeInformationRequest),
	} {
		b := m.ToBytes()
		packet := append(append([]byte(nil), header...), b...)
		length := len(b) + 8
		packet[44], packet[45] = byte(length>>8), byte(length)
		f.Add(packet)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		u, ok := guard.ParseUDP6(packet)
		if !ok {
			return
		}
		m, err := dhcpv6.MessageFromBytes(u.Payload)
		if err != nil {
			return
		}
		r, outcome := reply6(m, testNetwork, testLease)
		if r == nil {
			return
		}
		parsed, err := dhcpv6.MessageFromBytes(r.ToBytes())
		if err != nil {
			t.Fatalf("the reply cannot be parsed: %v", err)
		}
		if a := given(parsed); (outcome == confirmed && a == "") || (a != "" && a != "fd00:77::9") {
			t.Fatalf("outcome %v, gives %q", outcome, a)
		}
	})
}
