package vm

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func number(n int64) *int64 { return &n }

func TestDHCPOptionEncode(t *testing.T) {
	for _, c := range []struct {
		option DHCPOption
		want   string
	}{
		{DHCPOption{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}}, "\x0a\x00\x00\x01\x0a\x00\x00\x02"},
		{DHCPOption{Text: "http://a/wpad.dat"}, "http://a/wpad.dat"},
		{DHCPOption{Hex: "00fFa0"}, "\x00\xff\xa0"},
		{DHCPOption{UInt8: number(0)}, "\x00"},
		{DHCPOption{UInt8: number(255)}, "\xff"},
		{DHCPOption{UInt16: number(258)}, "\x01\x02"},
		{DHCPOption{UInt32: number(4294967295)}, "\xff\xff\xff\xff"},
	} {
		if got, err := c.option.Encode(); err != nil || string(got) != c.want {
			t.Errorf("%+v: got %q, %v; want %q", c.option, got, err, c.want)
		}
	}
}

func TestDHCPOptionsCheck(t *testing.T) {
	many := func(n, size int) (list []DHCPOption) {
		for i := range n {
			list = append(list, DHCPOption{Code: 150 + i, Text: strings.Repeat("x", size)})
		}
		return list
	}
	one := func(o DHCPOption) []DHCPOption { return []DHCPOption{o} }
	four := netip.MustParseAddr("10.0.0.1")
	type row struct {
		options []DHCPOption
		want    string
	}
	rows := map[string]row{
		"the maximum":      {many(32, 14), ""},
		"too many":         {many(33, 1), "/dhcp_options: must have at most 32"},
		"too large":        {many(32, 15), "/dhcp_options: the options take 544 bytes"},
		"a value too long": {one(DHCPOption{Code: 150, Text: strings.Repeat("ü", 128)}), "/dhcp_options/0: option 150: the value takes 256"},
		"NTP":              {one(DHCPOption{Code: 42, Addresses: []netip.Addr{four}}), ""},
		"code 0":           {one(DHCPOption{Text: "x"}), "/dhcp_options/0/code: must be 1"},
		"code 255":         {one(DHCPOption{Code: 255, Text: "x"}), "/dhcp_options/0/code: must be 1"},
		"twice":            {append(many(2, 1), DHCPOption{Code: 151, Text: "y"}), "/dhcp_options/2/code: option 151 is in the list twice"},
		"no value":         {one(DHCPOption{Code: 150}), "/dhcp_options/0: option 150: must have exactly one"},
		"two values":       {one(DHCPOption{Code: 150, Text: "x", UInt8: number(0)}), "/dhcp_options/0: option 150: must have exactly one"},
		"IPv6":             {one(DHCPOption{Code: 150, Addresses: []netip.Addr{netip.IPv6Unspecified()}}), "/dhcp_options/0: option 150: :: is not"},
		"odd hex":          {one(DHCPOption{Code: 150, Hex: "abc"}), "/dhcp_options/0: option 150: hex must"},
		"text of lines":    {one(DHCPOption{Code: 150, Text: "a\nb"}), "/dhcp_options/0: option 150: text must"},
		"a large number":   {one(DHCPOption{Code: 150, UInt16: number(65536)}), "/dhcp_options/0: option 150: uint16 must be 0 to 65535"},
	}
	for _, code := range []int{1, 3, 6, 12, 15, 26, 50, 51, 53, 54, 61, 66, 67, 82, 119, 121} {
		rows[fmt.Sprintf("code %d", code)] = row{one(DHCPOption{Code: code, Text: "x"}), fmt.Sprintf("/dhcp_options/0/code: vmand sets option %d itself", code)}
	}
	for name, c := range rows {
		n := natNetwork()
		n.DHCPOptions = c.options
		checkFault(t, name, n, c.want)
	}
	n := natNetwork()
	n.NTP, n.DHCPOptions = []netip.Addr{four}, one(DHCPOption{Code: 42, Addresses: []netip.Addr{four}})
	checkFault(t, "NTP twice", n, "/dhcp_options/0/code: vmand sets option 42 itself: it has the servers of ntp")
}

func TestPXECheck(t *testing.T) {
	server := netip.MustParseAddr("10.0.0.1")
	file := BootFile{NextServer: server, Filename: "pxelinux.0"}
	of := func(list ...ArchitectureBoot) *PXE { return &PXE{file, list} }
	for name, c := range map[string]struct {
		pxe  *PXE
		want string
	}{
		"none":                 {nil, ""},
		"TFTP":                 {of(), ""},
		"a URL for iPXE":       {&PXE{BootFile: BootFile{Filename: "http://10.0.0.1/boot.ipxe"}}, ""},
		"HTTP boot":            {&PXE{BootFile: BootFile{HTTPBootURL: "https://[fd00::1]:8443/a.efi"}}, ""},
		"architectures":        {of(ArchitectureBoot{BootUEFIx64, BootFile{Filename: "grubx64.efi"}}, ArchitectureBoot{BootBIOS, BootFile{}}), ""},
		"only an architecture": {&PXE{Architectures: []ArchitectureBoot{{BootUEFIx64, file}}}, ""},
		"nothing":              {&PXE{}, "/pxe: must have"},
		"only a server":        {&PXE{BootFile: BootFile{NextServer: server}}, "/pxe: must have"},
		"no server":            {&PXE{BootFile: BootFile{Filename: "pxelinux.0"}}, "/pxe/next_server: must be the address"},
		"no server for one": {&PXE{BootFile: BootFile{HTTPBootURL: "http://a/b"},
			Architectures: []ArchitectureBoot{{BootBIOS, BootFile{Filename: "a"}}}}, "/pxe/next_server: must be the address"},
		"an IPv6 server":       {&PXE{BootFile: BootFile{NextServer: netip.IPv6Unspecified(), Filename: "a"}}, "/pxe/next_server: "},
		"a filename too long":  {&PXE{BootFile: BootFile{NextServer: server, Filename: strings.Repeat("a", 256)}}, "/pxe/filename: "},
		"a filename of spaces": {&PXE{BootFile: BootFile{NextServer: server, Filename: "a b"}}, "/pxe/filename: "},
		"no URL":               {&PXE{BootFile: BootFile{HTTPBootURL: "boot.efi"}}, "/pxe/http_boot_url: "},
		"another scheme":       {&PXE{BootFile: BootFile{HTTPBootURL: "tftp://10.0.0.1/boot.efi"}}, "/pxe/http_boot_url: "},
		"no architecture":      {of(ArchitectureBoot{"mips", BootFile{}}), "/pxe/architectures/0/architecture: "},
		"twice":                {of(ArchitectureBoot{BootBIOS, file}, ArchitectureBoot{BootBIOS, file}), "/pxe/architectures/1/architecture: bios is in the list twice"},
		"a bad one":            {of(ArchitectureBoot{BootBIOS, BootFile{Filename: "ü"}}), "/pxe/architectures/0/filename: "},
	} {
		n := natNetwork()
		n.PXE = c.pxe
		checkFault(t, name, n, c.want)
	}
}

func TestPXEFor(t *testing.T) {
	first, second := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	p := &PXE{BootFile{first, "pxelinux.0", "http://a/any.efi"}, []ArchitectureBoot{
		{BootUEFIx64, BootFile{Filename: "x64.efi", HTTPBootURL: "http://a/x64.efi"}},
		{BootUEFIARM64, BootFile{NextServer: second}},
	}}
	for _, c := range []struct {
		types []uint16
		want  BootFile
	}{
		{nil, p.BootFile},
		{[]uint16{0}, p.BootFile},
		{[]uint16{7}, BootFile{first, "x64.efi", "http://a/x64.efi"}},
		{[]uint16{9}, BootFile{first, "x64.efi", "http://a/x64.efi"}},
		{[]uint16{16}, BootFile{first, "x64.efi", "http://a/x64.efi"}},
		{[]uint16{99, 7}, BootFile{first, "x64.efi", "http://a/x64.efi"}},
		{[]uint16{11}, BootFile{second, "pxelinux.0", "http://a/any.efi"}},
	} {
		if got := p.For(c.types...); got != c.want {
			t.Errorf("types %v: got %+v, want %+v", c.types, got, c.want)
		}
	}
	if got := (*PXE)(nil).For(0); got != (BootFile{}) {
		t.Errorf("without network boot: got %+v", got)
	}
}

func TestNamesNeedAManagedNetwork(t *testing.T) {
	for field, set := range map[string]func(*Network){
		"/search_domains": func(n *Network) { n.SearchDomains = []string{"a"} },
		"/dhcp_options":   func(n *Network) { n.DHCPOptions = []DHCPOption{{Code: 150, Text: "x"}} },
		"/pxe":            func(n *Network) { n.PXE = &PXE{} },
		"/dns_records":    func(n *Network) { n.DNSRecords = []DNSRecord{{"a", RecordA, "10.0.0.1", 0}} },
		"/dns_forwarders": func(n *Network) { n.DNSForwarders = []DNSForwarder{{Domain: "a"}} },
	} {
		for _, mode := range []NetworkMode{NetworkUser, NetworkBridge} {
			n := Network{Name: "lan", Mode: mode}
			set(&n)
			checkFault(t, field+" "+string(mode), n, field+": is not supported by networks of mode "+string(mode))
		}
	}
}
