package dhcp

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"vmand/vm"
)

func requests(codes ...dhcpv4.OptionCode) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptParameterRequestList(codes...))
}

func class(name string, types ...iana.Arch) dhcpv4.Modifier {
	return func(m *dhcpv4.DHCPv4) {
		m.UpdateOption(dhcpv4.OptClassIdentifier(name))
		if len(types) > 0 {
			m.UpdateOption(dhcpv4.OptClientArch(types...))
		}
	}
}

// offer4 returns the offer to a discover, as the server sends it.
func offer4(t *testing.T, nw vm.Network, with ...dhcpv4.Modifier) (r *dhcpv4.DHCPv4, incomplete []int) {
	t.Helper()
	m := message4(t, dhcpv4.MessageTypeDiscover, with...)
	r, _ = reply4(m, nw, testLease)
	incomplete = fit4(r, m, nw)
	r, err := dhcpv4.FromBytes(r.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return r, incomplete
}

func TestSearchListOfDHCP(t *testing.T) {
	nw := testNetwork
	nw.SearchDomains = []string{"apps.vm.internal", "corp.example"}
	r, _ := offer4(t, nw)
	const want = "\x02vm\x08internal\x00\x04apps\xc0\x00\x04corp\x07example\x00"
	if got := r.Options.Get(dhcpv4.OptionDNSDomainSearchList); string(got) != want {
		t.Errorf("the search list is %q, want %q", got, want)
	}
	if r.DomainName() != "vm.internal" {
		t.Errorf("the domain is %q", r.DomainName())
	}
}

func TestFreeOptionsOfDHCP(t *testing.T) {
	nw := testNetwork
	nw.DHCPOptions = []vm.DHCPOption{
		{Code: 42, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		{Code: 252, Text: "http://a/wpad.dat", Always: true},
		{Code: 150, Hex: "0a0b"},
	}
	for _, c := range []struct {
		with []dhcpv4.Modifier
		want string
	}{
		{nil, "[252]"},
		{[]dhcpv4.Modifier{requests(dhcpv4.OptionNTPServers, dhcpv4.OptionRouter)}, "[42 252]"},
		{[]dhcpv4.Modifier{requests(dhcpv4.GenericOptionCode(150), dhcpv4.OptionNTPServers)}, "[42 252 150]"},
	} {
		r, _ := offer4(t, nw, c.with...)
		got := []int{}
		for _, o := range nw.DHCPOptions {
			if value := r.Options.Get(dhcpv4.GenericOptionCode(o.Code)); value != nil {
				got = append(got, o.Code)
				if want, _ := o.Encode(); !bytes.Equal(value, want) {
					t.Errorf("option %d is %q, want %q", o.Code, value, want)
				}
			}
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("the options are %v, want %s", got, c.want)
		}
	}
}

// TestRepliesFitTheClient checks the longest replies: every client must get its address.
func TestRepliesFitTheClient(t *testing.T) {
	nw := testNetwork
	nw.MTU = 0
	nw.Domain = strings.Repeat("abcdefghi.", 10) + "vm.internal"
	nw.DNS = slices.Repeat([]netip.Addr{netip.MustParseAddr("9.9.9.9")}, 8)
	for i := range 8 {
		nw.SearchDomains = append(nw.SearchDomains, fmt.Sprintf("domain%d.a%d.x", i, i))
	}
	for i := range 32 {
		nw.DHCPOptions = append(nw.DHCPOptions, vm.DHCPOption{Code: 150 + i, Text: strings.Repeat("x", 14), Always: true})
	}
	nw.Bridge = nw.Name
	if err := nw.Check(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		accepts, mtu, limit int
		complete            bool
	}{
		{0, 0, 548, false},
		{0, 9000, 548, false},
		{100, 0, 548, false}, // less than the minimum of the RFC
		{700, 0, 672, false},
		{1500, 0, 1472, true},
		{65535, 0, 1472, true},
		{65535, 576, 548, false},
	} {
		nw.MTU = c.mtu
		var with []dhcpv4.Modifier
		if c.accepts > 0 {
			with = append(with, dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(uint16(c.accepts))))
		}
		r, incomplete := offer4(t, nw, with...)
		if size := len(r.ToBytes()); size > c.limit || (len(incomplete) == 0) != c.complete {
			t.Errorf("a client that accepts %d bytes with an MTU of %d gets %d bytes, without options %v; want at most %d",
				c.accepts, c.mtu, size, incomplete, c.limit)
		}
		if !r.YourIPAddr.Equal(testLease.IP.AsSlice()) || len(r.DNS()) != 8 || r.DomainName() != nw.Domain {
			t.Errorf("the options of the network are missing: %v", r.Summary())
		}
		if list := r.DomainSearch(); list != nil && !slices.Equal(list.Labels, nw.SearchList()[:len(list.Labels)]) {
			t.Errorf("the search list is %v, want the beginning of %v", list.Labels, nw.SearchList())
		}
	}
}

func TestBootFilesOfDHCP(t *testing.T) {
	server := netip.MustParseAddr("192.168.77.2")
	nw := testNetwork
	nw.PXE = &vm.PXE{
		BootFile: vm.BootFile{NextServer: server, Filename: "undionly.kpxe", HTTPBootURL: "http://192.168.77.2/any.efi"},
		Architectures: []vm.ArchitectureBoot{
			{Architecture: vm.BootUEFIx64, BootFile: vm.BootFile{Filename: "x64.efi", HTTPBootURL: "http://192.168.77.2/x64.efi"}},
		},
	}
	none := testNetwork
	script := testNetwork
	script.PXE = &vm.PXE{BootFile: vm.BootFile{Filename: "http://192.168.77.1/" + strings.Repeat("x", 120)}}
	const (
		pxeBIOS = "PXEClient:Arch:00000:UNDI:002001"
		pxeUEFI = "PXEClient:Arch:00007:UNDI:003000"
		http    = "HTTPClient:Arch:00016:UNDI:003001"
	)
	for name, c := range map[string]struct {
		nw                  vm.Network
		with                dhcpv4.Modifier
		file, server, class string
	}{
		"BIOS":                        {nw, class(pxeBIOS, iana.INTEL_X86PC), "undionly.kpxe", "192.168.77.2", ""},
		"UEFI by TFTP":                {nw, class(pxeUEFI, iana.EFI_BC), "x64.efi", "192.168.77.2", ""},
		"UEFI by TFTP, type 9":        {nw, class(pxeUEFI, iana.EFI_X86_64), "x64.efi", "192.168.77.2", ""},
		"UEFI by HTTP":                {nw, class(http, iana.EFI_X86_64_HTTP), "http://192.168.77.2/x64.efi", "0.0.0.0", "HTTPClient"},
		"UEFI of ARM by HTTP":         {nw, class(http, iana.EFI_ARM64_HTTP), "http://192.168.77.2/any.efi", "0.0.0.0", "HTTPClient"},
		"a client that requests it":   {nw, requests(dhcpv4.OptionBootfileName), "undionly.kpxe", "192.168.77.2", ""},
		"an ordinary client":          {nw, requests(dhcpv4.OptionRouter), "", "0.0.0.0", ""},
		"no network boot":             {none, class(pxeBIOS, iana.INTEL_X86PC), "", "0.0.0.0", ""},
		"HTTP without a URL for it":   {script, class(http, iana.EFI_X86_64_HTTP), "", "0.0.0.0", ""},
		"a URL longer than the field": {script, class(pxeBIOS, iana.INTEL_X86PC), script.PXE.Filename, "0.0.0.0", ""},
		"another class, no boot file": {nw, class("udhcp 1.36"), "", "0.0.0.0", ""},
	} {
		r, _ := offer4(t, c.nw, c.with)
		if got := r.BootFileNameOption(); got != c.file {
			t.Errorf("%s: the boot file is %q, want %q", name, got, c.file)
		}
		if want := c.file; len(want) <= 127 && r.BootFileName != want || len(want) > 127 && r.BootFileName != "" {
			t.Errorf("%s: the field of the boot file is %q", name, r.BootFileName)
		}
		if r.ServerIPAddr.String() != c.server || r.ClassIdentifier() != c.class {
			t.Errorf("%s: server %v, class %q; want %s, %q", name, r.ServerIPAddr, r.ClassIdentifier(), c.server, c.class)
		}
		if got := r.TFTPServerName(); c.server != "0.0.0.0" && got != c.server {
			t.Errorf("%s: option 66 is %q", name, got)
		}
	}
}

func TestChangedOptionsAreSentWithoutARestart(t *testing.T) {
	t.Parallel()
	b := newBench(t, testNetwork)
	b.exchange(t)
	before := <-b.acked
	nw := testNetwork
	nw.SearchDomains = []string{"corp.example"}
	nw.DHCPOptions = []vm.DHCPOption{{Code: 252, Text: "x", Always: true}}
	b.Update(nw)
	if got := b.Leases(); got[testLease.MAC] != before {
		t.Errorf("the leases after the change are %v, want %v", got, before)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l, err := b.client(t).Request(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.ACK.DomainSearch(); got == nil || !slices.Equal(got.Labels, []string{"vm.internal", "corp.example"}) {
		t.Errorf("the search list is %v", got)
	}
	if got := l.ACK.Options.Get(dhcpv4.GenericOptionCode(252)); string(got) != "x" {
		t.Errorf("option 252 is %q", got)
	}
}
