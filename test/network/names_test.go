package network

import (
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"vmand/openapi"
	"vmand/test/harness"
)

// bootProgram is a boot sector that prints a line on the serial port and stops.
const bootProgram = "\xfa\xfc\x31\xc0\x8e\xd8\xbe\x17\x7c\xba\xf8\x03" + // mov si, the text; mov dx, COM1
	"\xac\x84\xc0\x74\x03\xee\xeb\xf8" + // out dx, each byte
	"\xf4\xeb\xfd" + // hlt
	"booted from the network\r\n\x00"

// TestNetworkBoot boots a guest by iPXE over HTTP from a server of the host, and then, after a
// change of the boot device, from its root disk.
func TestNetworkBoot(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	// iPXE tries IPv6 too before it loads a file, for 13 s if no router answers (measured).
	d.CreateNetwork("boot", "nat", "192.168.101.0/24", map[string]any{"ipv6_subnet": "fd00:101::/64"})
	files := serveFiles(t, l.Host, "192.168.101.1:8080", map[string][]byte{
		"/boot.ipxe":  []byte("#!ipxe\nchain http://192.168.101.1:8080/program?guest=${net0/ip}\n"),
		"/program":    []byte(bootProgram),
		"/other.ipxe": []byte("#!ipxe\nimgfetch http://192.168.101.1:8080/program?guest=other\nexit\n"),
	})
	pxe := func(filename string) {
		t.Helper()
		d.Call("PATCH", "/networks/boot", map[string]any{
			"pxe": map[string]any{"filename": "http://192.168.101.1:8080" + filename},
		}).Want(200)
	}
	pxe("/boot.ipxe")
	v := d.CreateVMWith("a", map[string]any{"boot_device": "network", "nics": harness.OnNetworks("boot")["nics"]})
	if v.BootDevice != openapi.BootDeviceNetwork {
		t.Fatalf("the boot device is %q, want network", v.BootDevice)
	}
	d.Action("a", "start")
	d.Serial("a").Expect("booted from the network")
	if n := files.count("/program?guest=" + *v.LocalIP); n != 1 {
		t.Errorf("the guest has requested the program %d times, want once", n)
	}
	// The network is tried first, and the root disk after it.
	pxe("/other.ipxe")
	d.ForceStop("a")
	d.StartAll("a")
	if n := files.count("/program?guest=other"); n != 1 {
		t.Errorf("the guest has requested the other script's file %d times, want once", n)
	}
	d.Call("PATCH", "/vms/a", map[string]any{"boot_device": "disk"}).Want(200)
	d.ForceStop("a")
	d.StartAll("a")
	if n := files.count("/other.ipxe"); n != 1 {
		t.Errorf("the guest has requested other.ipxe %d times, want no request of the last start", n)
	}
}

// TestNetworkNames checks what a guest gets of search domains, DHCP options, DNS records and
// forwarders, before and after changes and a restart of the daemon.
func TestNetworkNames(t *testing.T) {
	l := harness.NewLab(t)
	corp := serveZone(t, l.Other, harness.OtherAddress+":5353", "10.1.1.1")
	d := l.StartDaemon(t)
	edit := func(body map[string]any) {
		t.Helper()
		d.Call("PATCH", "/networks/vman0", body).Want(200)
	}
	record := func(name, kind, value string) map[string]any {
		return map[string]any{"name": name, "type": kind, "value": value}
	}
	edit(map[string]any{
		"search_domains": []string{"apps.vman0.internal", "corp.test"},
		"dhcp_options":   []any{map[string]any{"code": 42, "addresses": []string{"192.168.100.99"}}},
		"dns_records": []any{
			record("db", "A", "192.168.100.50"), record("*.apps", "A", "192.168.100.60"), record("b", "A", "192.168.100.70"),
			record("www", "CNAME", "a"), record("mirror", "CNAME", "www.example."), record("hidden.example.", "TXT", "ours"),
		},
		"dns_forwarders": []any{map[string]any{"domain": "corp.test", "servers": []string{harness.OtherAddress + ":5353"}}},
	})
	v := d.CreateVM("a")
	d.CreateVM("b") // a record hides its name
	a := d.StartAll("a")[0]

	l.Run(d, "the guest has the search domains and the option", func(t *testing.T) {
		const want = "search vman0.internal apps.vman0.internal corp.test\nnameserver 192.168.100.1"
		if got := a.Run("cat /etc/resolv.conf"); got != want {
			t.Errorf("resolv.conf in the guest is %q, want %q", got, want)
		}
		if got := d.Serial("a").Expect(harness.DHCPLine.String()); got[8] != "192.168.100.99" {
			t.Errorf("DHCP option 42 in the guest is %q", got[8])
		}
	})
	l.Run(d, "the guest resolves the names", func(t *testing.T) {
		for name, want := range map[string]string{
			"db": "192.168.100.50", "b.vman0.internal": "192.168.100.70", "www.vman0.internal": *v.LocalIP,
			"x.apps.vman0.internal": "192.168.100.60", "host.corp.test": "10.1.1.1",
			"mirror.vman0.internal": harness.OutsideAddress,
		} {
			if got := a.Run("nslookup -type=a %s", name); !strings.Contains(got, want) {
				t.Errorf("%s in the guest: %q, want %s", name, got, want)
			}
		}
		a.RunFailing("nslookup nobody.vman0.internal")
	})
	names := func(t *testing.T) {
		t.Helper()
		for _, c := range []struct {
			name string
			kind uint16
			want string // the end of the last answer
		}{
			{"db.vman0.internal", dns.TypeA, "192.168.100.50"},
			{"b.vman0.internal", dns.TypeA, "192.168.100.70"},
			{"a.vman0.internal", dns.TypeA, *v.LocalIP},
			{"hidden.example", dns.TypeTXT, `"ours"`},
			{"other.example", dns.TypeTXT, `"` + harness.HostAddress + `"`},
			{"host.corp.test", dns.TypeA, "10.1.1.1"},
		} {
			got, _, err := l.Host.QueryDNS("192.168.100.1", c.name, c.kind)
			if err != nil || len(got) != 1 || !strings.HasSuffix(got[0], c.want) {
				t.Errorf("%s resolves to %q, %v, want %s", c.name, got, err, c.want)
			}
		}
	}
	l.Run(d, "the host resolves the names", names)
	acked := d.Network("vman0").Leases[0].AckedAt
	l.Run(d, "a change takes effect at once and keeps the leases", func(t *testing.T) {
		edit(map[string]any{"dns_records": []any{record("db", "A", "192.168.100.51")}, "dns_forwarders": []any{}})
		for name, want := range map[string]string{"db.vman0.internal": "[192.168.100.51]", "host.corp.test": "[]", "hidden.example": "[]",
			"b.vman0.internal": "[192.168.100.3]"} {
			kind := dns.TypeA
			if name == "hidden.example" {
				kind = dns.TypePTR
			}
			if got, _, err := l.Host.QueryDNS("192.168.100.1", name, kind); err != nil || fmt.Sprint(got) != want {
				t.Errorf("%s resolves to %v, %v, want %s", name, got, err, want)
			}
		}
		n := d.Network("vman0")
		if now := n.Leases[0].AckedAt; now == nil || !now.Equal(acked.Time) {
			t.Errorf("the lease was acknowledged at %v and then at %v", acked, now)
		}
		if !slices.Equal(n.SearchDomains, []string{"apps.vman0.internal", "corp.test"}) || len(n.DNSRecords) != 1 {
			t.Errorf("the network is %+v", n)
		}
	})
	l.Run(d, "a guest learns a change with its next lease", func(t *testing.T) {
		edit(map[string]any{"search_domains": []string{"corp.test", "vman0.internal"}})
		a.Run("kill -USR1 $(cat /run/nic/eth0/pid)") // udhcpc renews
		harness.Eventually(t, 20*time.Second, "the guest to have the new search list", func() error {
			if got := a.Run("head -n 1 /etc/resolv.conf"); got != "search corp.test vman0.internal" {
				return fmt.Errorf("resolv.conf has %q", got)
			}
			return nil
		})
	})
	l.Run(d, "a restart of the daemon keeps everything", func(t *testing.T) {
		edit(map[string]any{
			"dns_records": []any{
				record("db", "A", "192.168.100.50"), record("b", "A", "192.168.100.70"), record("hidden.example.", "TXT", "ours"),
			},
			"dns_forwarders": []any{map[string]any{"domain": "corp.test", "servers": []string{harness.OtherAddress + ":5353"}}},
		})
		before := d.Network("vman0")
		d.Stop()
		d.Start()
		after := d.Network("vman0")
		if !reflect.DeepEqual(before.DNSRecords, after.DNSRecords) ||
			!reflect.DeepEqual(before.DNSForwarders, after.DNSForwarders) ||
			!reflect.DeepEqual(before.SearchDomains, after.SearchDomains) ||
			!reflect.DeepEqual(before.DHCPOptions, after.DHCPOptions) {
			t.Errorf("before the restart %+v, after it %+v", before, after)
		}
		names(t)
	})
	if n := corp.Load(); n == 0 {
		t.Error("the server of the forwarder got no query")
	}
}

// serveZone runs a DNS server that answers every A query for *.corp.test with an address. It
// returns the number of its queries.
func serveZone(t *testing.T, n *harness.Namespace, listen, address string) *atomic.Int64 {
	t.Helper()
	queries := new(atomic.Int64)
	var packets net.PacketConn
	n.Must("listen on "+listen, func() (err error) {
		packets, err = net.ListenPacket("udp", listen)
		return err
	})
	s := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		queries.Add(1)
		m := new(dns.Msg).SetReply(q)
		if name := q.Question[0].Name; !strings.HasSuffix(name, ".corp.test.") {
			m.Rcode = dns.RcodeNameError
		} else if q.Question[0].Qtype == dns.TypeA {
			head := dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}
			m.Answer = []dns.RR{&dns.A{Hdr: head, A: net.ParseIP(address)}}
		}
		_ = w.WriteMsg(m)
	})}
	go s.ActivateAndServe()
	t.Cleanup(func() { packets.Close() })
	return queries
}
