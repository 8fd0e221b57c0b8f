package server

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"vmand/openapi"
	"vmand/vm"
)

func TestANetworkIsCreatedChangedAndDeleted(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	r := a.want(t, 201, "POST", "/networks",
		`{"name":"lab","mode":"nat","subnet":"10.10.0.0/22","gateway":"10.10.0.9","ipv6_subnet":"fd00:10::/64",
		"dns":["9.9.9.9","10.10.0.9"],"ntp":["10.10.0.9"],
		"routes":[{"destination":"10.20.0.0/16","gateway":"10.10.0.3"}],"domain":"lab.example",
		"mtu":1400,"isolate_vms":true}`)
	n := into[openapi.Network](t, r)
	if n.Name != "lab" || n.Mode != "nat" || *n.Bridge != "lab" || *n.Subnet != "10.10.0.0/22" ||
		*n.Gateway != "10.10.0.9" || *n.IPv6Subnet != "fd00:10::/64" ||
		fmt.Sprint(n.DNS) != "[9.9.9.9 10.10.0.9]" || fmt.Sprint(n.NTP) != "[10.10.0.9]" ||
		fmt.Sprint(n.Routes) != "[{10.20.0.0/16 10.10.0.3}]" ||
		*n.Domain != "lab.example" || n.MTU != 1400 || n.VLANID != nil || !n.IsolateVMs || n.Restrict ||
		n.CreatedAt.IsZero() {
		t.Errorf("created %s", r.body)
	}
	if r.Header.Get("Location") != "/networks/lab" {
		t.Errorf("Location %q", r.Header.Get("Location"))
	}
	old := r.Header.Get("ETag")
	r = a.want(t, 200, "PATCH", "/networks/lab",
		`{"ipv6_subnet":"","dns":[],"ntp":["10.10.0.4"],"routes":[],"domain":"lab2.example",
		"mtu":1500,"isolate_vms":false}`, "If-Match", old)
	n = into[openapi.Network](t, r)
	if n.IPv6Subnet != nil || len(n.DNS) != 0 || fmt.Sprint(n.NTP) != "[10.10.0.4]" || len(n.Routes) != 0 ||
		*n.Domain != "lab2.example" || n.MTU != 1500 ||
		n.IsolateVMs || *n.Subnet != "10.10.0.0/22" || *n.Gateway != "10.10.0.9" {
		t.Errorf("changed %s", r.body)
	}
	n = into[openapi.Network](t,
		a.want(t, 200, "PATCH", "/networks/lab",
			`{"subnet":"10.11.0.0/24","gateway":"10.11.0.2","ipv6_subnet":"fd00:11::/64"}`))
	if *n.Subnet != "10.11.0.0/24" || *n.Gateway != "10.11.0.2" || *n.IPv6Subnet != "fd00:11::/64" {
		t.Errorf("moved %+v", n)
	}
	a.want(t, 412, "PATCH", "/networks/lab", `{"mtu":1400}`, "If-Match", old)
	a.want(t, 412, "DELETE", "/networks/lab", "", "If-Match", old)
	a.want(t, 400, "DELETE", "/networks/lab", "", "If-Match", "1-1")
	a.want(t, 400, "PATCH", "/networks/lab", `{"mtu":1400}`, "If-Match", "1-1")
	// The entity tag of a GET, which covers observed state, is accepted by If-Match.
	a.want(t, 204, "DELETE", "/networks/lab", "", "If-Match",
		a.want(t, 200, "GET", "/networks/lab", "").Header.Get("ETag"))
	for _, method := range []string{"GET", "DELETE"} {
		a.want(t, 404, method, "/networks/lab", "")
	}
	a.want(t, 404, "PATCH", "/networks/lab", `{"mtu":1400}`)
	kinds := ""
	for _, o := range into[[]openapi.Operation](t,
		a.want(t, 200, "GET", "/operations?resource=networks/lab&state=succeeded", "")) {
		kinds += string(o.Kind) + " "
	}
	if kinds != "network.create network.update network.update network.delete " {
		t.Errorf("operations %s", kinds)
	}
	events := into[[]openapi.Event](t, a.want(t, 200, "GET", "/events?resource=networks/lab&type=network.", ""))
	if len(events) < 3 || events[0].Type != "network.created" || events[len(events)-1].Type != "network.deleted" {
		t.Errorf("events %+v", events)
	}
}

// TestNamesOfANetwork checks search domains, DHCP options, network boot, DNS records and
// forwarders from the request to the answers.
func TestNamesOfANetwork(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const all = `"search_domains":["corp.example"],` +
		`"dhcp_options":[{"code":42,"addresses":["10.0.0.1","10.0.0.2"]},{"code":252,"text":"http://a/wpad.dat","always":true},` +
		`{"code":43,"hex":"0aFF"},{"code":23,"uint8":0},{"code":22,"uint16":576},{"code":24,"uint32":4294967295}],` +
		`"pxe":{"filename":"pxelinux.0","next_server":"10.0.0.3","http_boot_url":"http://10.0.0.3/a.efi",` +
		`"architectures":[{"architecture":"uefi-x64","filename":"x64.efi"}]},` +
		`"dns_records":[{"name":"db","type":"A","value":"10.0.0.4"},{"name":"www","type":"CNAME","value":"db","ttl":0}],` +
		`"dns_forwarders":[{"domain":"corp.example","servers":["10.0.0.5","10.0.0.6:5353","fd00::1","[fd00::1]:5353"]}]`
	type names struct {
		SearchDomains []string               `json:"search_domains"`
		DHCPOptions   []openapi.DHCPOption   `json:"dhcp_options"`
		PXE           *openapi.PXE           `json:"pxe"`
		DNSRecords    []openapi.DNSRecord    `json:"dns_records"`
		DNSForwarders []openapi.DNSForwarder `json:"dns_forwarders"`
	}
	want := names{}
	if err := json.Unmarshal([]byte("{"+all+"}"), &want); err != nil {
		t.Fatal(err)
	}
	ttl, always, not := 30, true, false
	want.DNSRecords[0].TTL = &ttl
	for i := range want.DHCPOptions {
		want.DHCPOptions[i].Always = &not
	}
	want.DHCPOptions[1].Always = &always
	same := func(what string, r reply, want names) {
		t.Helper()
		got := into[names](t, r)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s, want %+v", what, r.body, want)
		}
	}
	same("created", a.want(t, 201, "POST", "/networks", `{"name":"lab","mode":"nat",`+all+`}`), want)
	same("read", a.want(t, 200, "GET", "/networks/lab", ""), want)
	// Other settings stay, and a list replaces the whole list.
	want.DNSRecords = want.DNSRecords[:1]
	same("changed", a.want(t, 200, "PATCH", "/networks/lab",
		`{"dns_records":[{"name":"db","type":"A","value":"10.0.0.4"}]}`), want)
	none := names{[]string{}, []openapi.DHCPOption{}, nil, []openapi.DNSRecord{}, []openapi.DNSForwarder{}}
	same("removed", a.want(t, 200, "PATCH", "/networks/lab",
		`{"search_domains":[],"dhcp_options":[],"pxe":{},"dns_records":[],"dns_forwarders":[]}`), none)
	same("read", a.want(t, 200, "GET", "/networks/lab", ""), none)
	same("created without", a.want(t, 201, "POST", "/networks", `{"name":"lab2","mode":"isolated"}`), none)
	a.want(t, 400, "POST", "/networks", `{"name":"alone","mode":"user","search_domains":["a"]}`)
	a.want(t, 400, "POST", "/networks", `{"name":"lan","mode":"bridge","bridge":"br0","dns_records":[{"name":"a.","type":"A","value":"10.0.0.1"}]}`)

	for body, fault := range map[string]string{
		`{"search_domains":["lab.internal","lab.internal"]}`:                          "/search_domains/1: lab.internal is in the list twice",
		`{"dhcp_options":[{"code":42}]}`:                                              "/dhcp_options/0: option 42: must have exactly one of",
		`{"dhcp_options":[{"code":82,"text":"a"}]}`:                                   "/dhcp_options/0/code: vmand sets option 82 itself",
		`{"dhcp_options":[{"code":42,"addresses":["one"]}]}`:                          "/dhcp_options/0/addresses/0: must be an IPv4 address",
		`{"pxe":{"next_server":"::1"}}`:                                               "/pxe/next_server: must be an IPv4 address",
		`{"pxe":{"filename":"a"}}`:                                                    "/pxe/next_server: must be the address of the TFTP server",
		`{"pxe":{"architectures":[{"architecture":"bios","next_server":"x"}]}}`:       "/pxe/architectures/0/next_server: must be an IPv4",
		`{"dns_records":[{"name":"db","type":"A","value":"fd00::1"}]}`:                "/dns_records/0/value: ",
		`{"dns_records":[{"name":"db","type":"CNAME","value":"www.example.org"}]}`:    "/dns_records/0/value: the target",
		`{"dns_forwarders":[{"domain":"corp","servers":["10.0.0.1","dns.corp"]}]}`:    "/dns_forwarders/0/servers/1: must be an IP address",
		`{"dns_forwarders":[{"domain":"corp","servers":["127.0.0.1","10.0.0.1:0"]}]}`: "/dns_forwarders/0/servers/1: ",
	} {
		p := a.want(t, 400, "PATCH", "/networks/lab", body).problem(t)
		if len(p.Errors) != 1 || !strings.HasPrefix(p.Errors[0].Field+": "+p.Errors[0].Detail, fault) {
			t.Errorf("%s: %+v, want %s", body, p, fault)
		}
	}
	same("after refused changes", a.want(t, 200, "GET", "/networks/lab", ""), none)
}

// TestForwardersNeedTheRoleAdmin checks that an operator cannot make the host send queries to a
// server of the operator's choice.
func TestForwardersNeedTheRoleAdmin(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	const forwarders = `"dns_forwarders":[{"domain":"corp","servers":["127.0.0.1"]}]`
	a.want(t, 201, "POST", "/networks", `{"name":"lab","mode":"nat",`+forwarders+`}`)
	secret, hash := NewToken()
	if err := a.store.PutToken(t.Context(), vm.Token{Name: "op", Role: vm.RoleOperator, Hash: hash}); err != nil {
		t.Fatal(err)
	}
	if err := a.ReloadTokens(t.Context()); err != nil {
		t.Fatal(err)
	}
	admin := a.token
	a.token = secret
	for _, r := range [][2]string{
		{"POST", `{"name":"lab2","mode":"nat",` + forwarders + `}`},
		{"PATCH", `{` + forwarders + `}`},
		{"PATCH", `{"dns_forwarders":[]}`},
	} {
		path := map[string]string{"POST": "/networks", "PATCH": "/networks/lab"}[r[0]]
		p := a.want(t, 403, r[0], path, r[1]).problem(t)
		if p.Detail != "dns_forwarders needs the role admin" {
			t.Errorf("%s %s: %+v", r[0], r[1], p)
		}
	}
	a.want(t, 201, "POST", "/networks", `{"name":"lab2","mode":"nat","dns_forwarders":[]}`)
	a.want(t, 200, "PATCH", "/networks/lab", `{"search_domains":["a"]}`)
	a.token = admin
	if n := into[openapi.Network](t, a.want(t, 200, "GET", "/networks/lab", "")); len(n.DNSForwarders) != 1 {
		t.Errorf("the network is %+v, want the forwarder", n)
	}
}

// TestTheLargestNetworkIsBounded measures the longest answer about a network.
func TestTheLargestNetworkIsBounded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	var records []string
	for i := range vm.MaxDNSRecords {
		records = append(records, fmt.Sprintf(`{"name":"r%d","type":"TXT","value":"%s"}`, i, strings.Repeat("<", 235)))
	}
	body := `{"dns_records":[` + strings.Join(records, ",") + `]}`
	a.want(t, 201, "POST", "/networks", `{"name":"lab","mode":"nat"}`)
	a.want(t, 200, "PATCH", "/networks/lab", body)
	if n := len(a.want(t, 200, "GET", "/networks/lab", "").body); n > 512<<10 {
		t.Errorf("the answer has %d bytes, want at most 512 KiB", n)
	}
	a.want(t, 400, "PATCH", "/networks/lab", strings.ReplaceAll(body, "<<<", "<<<<"))
}

func TestANetworkOfEveryModeCanBeCreated(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for body, want := range map[string]string{
		`{"name":"inside","mode":"isolated"}`:                        `"domain":"inside.internal"`,
		`{"name":"lan","mode":"bridge","bridge":"br0","vlan_id":20}`: `"vlan_id":20`,
		`{"name":"alone","mode":"user","restrict":true}`:             `"restrict":true`,
	} {
		if r := a.want(t, 201, "POST", "/networks", body); !strings.Contains(string(r.body), want) {
			t.Errorf("%s: %s", body, r.body)
		}
	}
	lan := into[openapi.NetworkDetails](t, a.want(t, 200, "GET", "/networks/lan", ""))
	if lan.Subnet != nil || lan.Gateway != nil || lan.Domain != nil || lan.FreeAddresses != nil || lan.MTU != 1500 ||
		*lan.Bridge != "br0" {
		t.Errorf("a bridge %+v", lan)
	}
	if n := into[openapi.Network](t, a.want(t, 200, "PATCH", "/networks/lan", `{"vlan_id":0}`)); n.VLANID != nil {
		t.Errorf("a bridge without a VLAN %+v", n)
	}
	if n := into[openapi.Network](t, a.want(t, 200, "PATCH", "/networks/alone", `{"restrict":false}`)); n.Restrict {
		t.Errorf("a network of mode user %+v", n)
	}
	all := into[[]openapi.Network](t, a.want(t, 200, "GET", "/networks", ""))
	if len(all) != 4 || all[0].Name != "vman0" {
		t.Errorf("list %+v", all)
	}
	r := a.want(t, 200, "GET", "/networks?limit=3", "")
	link := nextLink.FindStringSubmatch(r.Header.Get("Link"))
	if link == nil || len(into[[]openapi.Network](t, a.want(t, 200, "GET", link[1], ""))) != 1 {
		t.Errorf("Link %q", r.Header.Get("Link"))
	}
	if strings.Contains(string(r.body), "leases") {
		t.Errorf("a list with leases: %s", r.body)
	}
}

func TestInvalidNetworksAreRejected(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for body, want := range map[string]struct {
		status int
		code   openapi.ProblemCode
		field  string
	}{
		`{"name":"vman0","mode":"isolated"}`: {409,
			"already-exists", ""},
		`{"name":"lab","mode":"nat","subnet":"192.168.100.128/25"}`: {409, "in-use",
			"/subnet"},
		`{"name":"lab","mode":"nat","subnet":"10.0.0.1/24"}`: {400,
			"invalid-request", "/subnet"},
		`{"name":"lab","mode":"nat","subnet":"10.0.0.0/30"}`: {400,
			"invalid-request", "/subnet"},
		`{"name":"lab","mode":"nat","subnet":"10.0.0.0/24","gateway":"10.0.1.1"}`: {400,
			"invalid-request", "/gateway"},
		`{"name":"lab","mode":"nat","ipv6_subnet":"fd00::/48"}`: {400,
			"invalid-request", "/ipv6_subnet"},
		`{"name":"lab","mode":"nat","ipv6_subnet":"fd00::/64","mtu":1000}`: {400,
			"invalid-request", "/mtu"},
		`{"name":"lab","mode":"nat","bridge":"br0"}`: {400,
			"invalid-request", "/bridge"},
		`{"name":"lab","mode":"nat","vlan_id":3}`: {400,
			"invalid-request", "/vlan_id"},
		`{"name":"lab","mode":"nat","restrict":true}`: {400,
			"invalid-request", "/restrict"},
		`{"name":"lab","mode":"user","isolate_vms":true}`: {400,
			"invalid-request", "/isolate_vms"},
		`{"name":"lab","mode":"user","dns":["9.9.9.9"]}`: {400,
			"invalid-request", "/dns"},
		`{"name":"lab","mode":"bridge"}`: {400,
			"invalid-request", "/bridge"},
		`{"name":"lab","mode":"bridge","bridge":"br0","domain":"x"}`: {400,
			"invalid-request", "/domain"},
		`{"name":"lab","mode":"nat","ntp":["0.0.0.0"]}`: {400,
			"invalid-request", "/ntp"},
		`{"name":"lab","mode":"nat","routes":[{"destination":"10.0.0.0/8","gateway":"9.9.9.9"}]}`: {400,
			"invalid-request", "/routes"},
	} {
		p := a.want(t, want.status, "POST", "/networks", body).problem(t)
		if p.Code != want.code || want.field != "" && (len(p.Errors) != 1 || p.Errors[0].Field != want.field) {
			t.Errorf("%s: %+v", body, p)
		}
	}
	a.network.Hook = func(_ context.Context, method, name string) error {
		if method == "Check" {
			return &vm.Fault{
				Code:   vm.CodeNetworkUnavailable,
				Detail: "no privilege for mode " + name,
				Hint:   "use mode user",
			}
		}
		return nil
	}
	p := a.want(t, 503, "POST", "/networks", `{"name":"lab","mode":"nat"}`).problem(t)
	if p.Code != "network-unavailable" || p.Hint != "use mode user" {
		t.Errorf("%+v", p)
	}
	for body, field := range map[string]string{
		`{}`:                  "",
		`{"mode":"user"}`:     "/mode",
		`{"subnet":"x"}`:      "/subnet",
		`{"gateway":"x"}`:     "/gateway",
		`{"ipv6_subnet":"x"}`: "/ipv6_subnet",
		`{"dns":["x"]}`:       "/dns/0",
		`{"ntp":[""]}`:        "/ntp/0",
		`{"routes":[{"destination":"","gateway":"1.1.1.1"}]}`: "/routes/0/destination",
		`{"domain":""}`:        "/domain",
		`{"mtu":0}`:            "/mtu",
		`{"vlan_id":-1}`:       "/vlan_id",
		`{"isolate_vms":null}`: "/isolate_vms",
		`{"restrict":0}`:       "/restrict",
	} {
		p := a.want(t, 400, "PATCH", "/networks/vman0", body).problem(t)
		if len(p.Errors) == 0 || p.Errors[0].Field != field {
			t.Errorf("%s: %+v", body, p)
		}
	}
}

// lookedAt changes the observed state of a network on the host.
type lookedAt struct {
	Networks
	see func(*vm.NetworkReport)
}

func (l *lookedAt) Status(ctx context.Context, name string) (vm.NetworkReport, error) {
	r, err := l.Networks.Status(ctx, name)
	if err == nil && l.see != nil {
		l.see(&r)
	}
	return r, err
}

func TestANetworkShowsItsLeasesAndProblems(t *testing.T) {
	t.Parallel()
	seen := &lookedAt{}
	a := newAPI(t, func(f *fixture) { seen.Networks = f.d.Networks; f.d.Networks = seen }).withVM(t)
	r := a.want(t, 200, "GET", "/networks/vman0", "")
	n := into[openapi.NetworkDetails](t, r)
	if len(n.Leases) != 1 || n.Leases[0].VMID != "web-1" || *n.Leases[0].IP != "192.168.100.2" ||
		n.Leases[0].AckedAt != nil || n.Leases[0].ExpiresAt != nil ||
		n.Leases[0].Hostname != "web-1" || *n.FreeAddresses != 252 || fmt.Sprint(n.Interfaces) != "[vman0]" ||
		len(n.Problems) != 0 {
		t.Errorf("%s", r.body)
	}
	etag := r.Header.Get("ETag")
	a.want(t, 304, "GET", "/networks/vman0", "", "If-None-Match", etag)
	at := someVM(1).CreatedAt
	seen.see = func(r *vm.NetworkReport) {
		r.Leases[0].Acked, r.Leases[0].Expires = at, at
		r.Status.Problems = []vm.NetworkProblem{{Detail: "not forwarded", Fix: "sysctl"}}
	}
	r = a.want(t, 200, "GET", "/networks/vman0", "", "If-None-Match", etag)
	n = into[openapi.NetworkDetails](t, r)
	if !n.Leases[0].AckedAt.Equal(at) || n.Leases[0].ExpiresAt == nil || len(n.Problems) != 1 ||
		n.Problems[0].Fix != "sysctl" {
		t.Errorf("%s", r.body)
	}
	if p := a.want(t, 409, "DELETE", "/networks/vman0", "").problem(t); p.Code != "in-use" ||
		!strings.Contains(p.Detail, "in use by 1 VM") {
		t.Errorf("%+v", p)
	}
	a.wantCode(t, 409, "in-use", "PATCH", "/networks/vman0", `{"subnet":"10.0.0.0/24"}`)
}

func TestAFullNetworkIsReported(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(t, 201, "POST", "/templates", smallTemplate)
	a.want(t, 201, "POST", "/networks", `{"name":"tiny","mode":"isolated","subnet":"10.9.0.0/29"}`)
	for i := range 5 {
		v := into[openapi.VM](t,
			a.want(t, 201, "POST", "/vms", `{"template_name":"small","nics":[{"network":"tiny"}]}`))
		if want := fmt.Sprintf("10.9.0.%d", i+2); *v.LocalIP != want || *v.LocalIPSource != "assigned" ||
			!v.ReachableFromHost {
			t.Errorf("VM %d: %v, want %s", i, *v.LocalIP, want)
		}
	}
	a.wantCode(t, 409, "addresses-exhausted", "POST", "/vms", `{"template_name":"small","nics":[{"network":"tiny"}]}`)
	if n := into[openapi.NetworkDetails](t, a.want(t, 200, "GET", "/networks/tiny", "")); *n.FreeAddresses != 0 ||
		len(n.Leases) != 5 {
		t.Errorf("%+v", n)
	}
	if n := len(into[[]openapi.VM](t, a.want(t, 200, "GET", "/vms?network=tiny", ""))); n != 5 {
		t.Errorf("%d VMs on the network", n)
	}
	if n := len(into[[]openapi.VM](t, a.want(t, 200, "GET", "/vms?network=vman0", ""))); n != 0 {
		t.Errorf("%d VMs on another network", n)
	}
}
