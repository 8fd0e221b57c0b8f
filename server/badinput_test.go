package server

import (
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"vmand/openapi"
	"vmand/vm"
)

func TestInvalidBodiesAreRejectedWithEachField(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	digits := strings.Repeat("9", 400)
	tests := map[string]refusal{
		"no body":              {"/templates", "", codeMalformed, nil},
		"broken":               {"/templates", `{"name":`, codeMalformed, nil},
		"not JSON":             {"/templates", `name=small`, codeMalformed, nil},
		"two values":           {"/templates", smallTemplate + smallTemplate, codeMalformed, nil},
		"data after the value": {"/templates", smallTemplate + "x", codeMalformed, nil},
		"a duplicate name": {"/templates", `{"name":"a","name":"b","cpu_count":1,"ram_amount":1}`,
			codeMalformed, nil},
		"not UTF-8":            {"/templates", "{\"name\":\"\xff\"}", codeMalformed, nil},
		"too deeply nested":    {"/templates", strings.Repeat("[", 100000), codeMalformed, nil},
		"two byte order marks": {"/templates", "\ufeff\ufeff" + smallTemplate, codeMalformed, nil},
		"a mismatched bracket": {"/templates", `{"name":["a"}`, codeMalformed, nil},
		"an array":             {"/templates", `[]`, vm.CodeInvalid, []string{": must be an object"}},
		"null":                 {"/templates", `null`, vm.CodeInvalid, []string{": must be an object"}},
		"an empty object": {"/templates", `{}`, vm.CodeInvalid,
			[]string{"/cpu_count: is missing", "/name: is missing", "/ram_amount: is missing"}},
		"an unknown property": {"/templates", `{"name":"a","cpu_count":1,"ram_amount":1,"c~p/u":2}`,
			vm.CodeInvalid, []string{"/c~0p~1u: is not a known property"}},
		"another case": {"/templates", `{"Name":"a","cpu_count":1,"ram_amount":1}`, vm.CodeInvalid,
			[]string{"/Name: is not a known property", "/name: is missing"}},
		"wrong types": {"/templates", `{"name":1,"cpu_count":"2","ram_amount":true}`, vm.CodeInvalid,
			[]string{"/cpu_count: must be an integer", "/name: must be a string", "/ram_amount: must be an integer"}},
		"null for a value": {"/templates", `{"name":null,"cpu_count":1,"ram_amount":1}`, vm.CodeInvalid,
			[]string{"/name: must be a string"}},
		"too small": {"/templates", `{"name":"a","cpu_count":0,"ram_amount":-1}`, vm.CodeInvalid,
			[]string{"/cpu_count: must be at least 1", "/ram_amount: must be at least 1"}},
		"too large": {"/templates", `{"name":"a","cpu_count":257,"ram_amount":4194305}`, vm.CodeInvalid,
			[]string{"/cpu_count: must be at most 256", "/ram_amount: must be at most 4194304"}},
		"a fraction": {"/templates", `{"name":"a","cpu_count":1.5,"ram_amount":1}`, vm.CodeInvalid,
			[]string{"/cpu_count: must be an integer"}},
		"a fraction of zero": {"/templates", `{"name":"a","cpu_count":2.0,"ram_amount":1}`, vm.CodeInvalid,
			[]string{"/cpu_count: must be a whole number without a fraction or an exponent"}},
		"an exponent": {"/templates", `{"name":"a","cpu_count":1e2,"ram_amount":1}`, vm.CodeInvalid,
			[]string{"/cpu_count: must be a whole number without a fraction or an exponent"}},
		"400 digits": {"/templates", `{"name":"a","cpu_count":` + digits + `,"ram_amount":1}`,
			vm.CodeInvalid, []string{"/cpu_count: must be an integer"}},
		"400 digits of a size": {"/disks", `{"size":` + digits + `}`, vm.CodeInvalid,
			[]string{"/size: must be a number"}},
		"an enormous exponent": {"/disks", `{"size":1e308}`, vm.CodeInvalid,
			[]string{"/size: must be at most 16384"}},
		"half a MiB": {"/disks", `{"size":0.00048828125}`, vm.CodeInvalid,
			[]string{"/size: must be a whole number of MiB, 1/1024 GiB: the nearest allowed value is 0.0009765625 (1 MiB)",
				"/size: must be at least 0.0009765625 (1 MiB)"}},
		"no whole number of MiB": {"/disks", `{"size":0.1}`, vm.CodeInvalid,
			[]string{"/size: must be a whole number of MiB, 1/1024 GiB: " +
				"the nearest allowed values are 0.099609375 (102 MiB) and 0.1005859375 (103 MiB)"}},
		"an invalid mount point": {"/disks", `{"size":1,"mount_point":"/dev/sda"}`, vm.CodeInvalid,
			[]string{"/mount_point: must be " + patternWords[`^/dev/(xvd|vd|sd)[b-z]$`]}},
		"an empty mount point": {"/disks", `{"size":1,"mount_point":""}`, vm.CodeInvalid,
			[]string{"/mount_point: must be " + patternWords[`^/dev/(xvd|vd|sd)[b-z]$`]}},
		"a size as text": {"/disks", `{"size":"1"}`, vm.CodeInvalid, []string{"/size: must be a number"}},
		"a timeout out of range": {"/vms/web-1/actions/stop", `{"timeout_seconds":3601}`, vm.CodeInvalid,
			[]string{"/timeout_seconds: must be at most 3600"}},
		"an option of another action": {"/vms/web-1/actions/start", `{"force":true}`, vm.CodeInvalid,
			[]string{"/force: is not a known property"}},
	}
	refuse(t, a, tests)
}

// A refusal is an invalid body and the expected problem. fields are sorted and have the
// form "field: detail".
type refusal struct {
	path, body string
	code       vm.Code
	fields     []string
}

func refuse(t *testing.T, a *api, tests map[string]refusal) {
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := a.want(t, 400, "POST", test.path, test.body).problem(t)
			var fields []string
			for _, e := range p.Errors {
				fields = append(fields, e.Field+": "+e.Detail)
			}
			slices.Sort(fields)
			if vm.Code(p.Code) != test.code || !slices.Equal(fields, test.fields) {
				t.Errorf("code %s, fields %q", p.Code, fields)
			}
		})
	}
}

func TestInvalidBodiesForNetworksAreRejectedWithEachField(t *testing.T) {
	t.Parallel()
	refuse(t, newAPI(t), map[string]refusal{
		"an empty network": {"/networks", `{}`, vm.CodeInvalid, []string{"/mode: is missing", "/name: is missing"}},
		"strings of a network": {"/networks",
			`{"name":"a-name-of-more-than-15","mode":"bridged","bridge":"","domain":"-","subnet":1,"gateway":null}`,
			vm.CodeInvalid,
			[]string{"/bridge: must be " + patternWords[`^[^\x00-\x20\x7f/:]+$`], "/bridge: must have at least 1 characters",
				"/domain: must be " + patternWords[`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`],
				"/gateway: must be a string", "/mode: must be one of nat, isolated, bridge, user",
				"/name: must be " + patternWords[`^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$`],
				"/name: must have at most 15 characters", "/subnet: must be a string"}},
		"other types of a network": {"/networks",
			`{"name":"lab","mode":"nat","mtu":575,"vlan_id":4095,"isolate_vms":1,
			"restrict":"no","dns":"9.9.9.9","ntp":[1],"routes":[{}]}`,
			vm.CodeInvalid,
			[]string{"/dns: must be an array", "/isolate_vms: must be a boolean", "/mtu: must be at least 576",
				"/ntp/0: must be a string",
				"/restrict: must be a boolean", "/routes/0/destination: is missing", "/routes/0/gateway: is missing",
				"/vlan_id: must be at most 4094"}},
		"addresses of a network": {"/networks",
			`{"name":"lab","mode":"nat","subnet":"10.0.0.0","gateway":"::1","ipv6_subnet":"fd00::",
			"dns":["9.9.9.9","one"],"ntp":["1.2.3"],"routes":[{"destination":"x","gateway":"y"}]}`,
			vm.CodeInvalid,
			[]string{"/dns/1: must be an IPv4 address such as 192.168.100.1",
				"/gateway: must be an IPv4 address such as 192.168.100.1",
				"/ipv6_subnet: must be a subnet with its prefix length, such as 192.168.100.0/24 or fd00:1:2:3::/64",
				"/ntp/0: must be an IPv4 address such as 192.168.100.1",
				"/routes/0/destination: must be a subnet with its prefix length, such as 192.168.100.0/24 or fd00:1:2:3::/64",
				"/routes/0/gateway: must be an IPv4 address such as 192.168.100.1",
				"/subnet: must be a subnet with its prefix length, such as 192.168.100.0/24 or fd00:1:2:3::/64"}},
		"names of a network": {"/networks",
			`{"name":"lab","mode":"nat","search_domains":["a b"],"dhcp_options":[{"code":300,"hex":"a"}],
			"pxe":{"filename":"a b","architectures":[{}]},"dns_records":[{"name":"A","type":"NS"}],
			"dns_forwarders":[{"domain":"corp","servers":[]}]}`,
			vm.CodeInvalid,
			[]string{"/dhcp_options/0/code: must be at most 254",
				"/dhcp_options/0/hex: must be an even number of hexadecimal digits",
				"/dhcp_options/0/hex: must have at least 2 characters",
				"/dns_forwarders/0/servers: must have at least 1 items",
				"/dns_records/0/name: must be " + patternWords[`^(@|[a-z0-9_*.-]+)$`],
				"/dns_records/0/type: must be one of A, AAAA, CNAME, TXT, SRV, PTR", "/dns_records/0/value: is missing",
				"/pxe/architectures/0/architecture: is missing", "/pxe/filename: must be visible ASCII characters without spaces",
				"/search_domains/0: must be " + patternWords[`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`]}},
		"a NIC": {"/vms/web-1/nics",
			`{"network":"Lab","ip":4,"mac":"52:54:00:aa:bb","model":"rtl8139",
			"rate_in":-1,"rate_out":100000001,"link":true,"slot":1}`,
			vm.CodeInvalid,
			[]string{"/ip: must be a string", "/link: must be one of up, down",
				"/mac: must be " + patternWords[`^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$`], "/model: must be one of virtio, e1000e",
				"/network: must be " + patternWords[`^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$`], "/rate_in: must be at least 0",
				"/rate_out: must be at most 100000000", "/slot: is not a known property"}},
		"the address of a NIC": {"/vms/web-1/nics", `{"ip":"fe80::1%eth0"}`, vm.CodeInvalid,
			[]string{"/ip: must be an IPv4 address such as 192.168.100.1"}},
		"NICs of a VM": {"/vms", `{"template_name":"small","nics":[{},{"ip":"one"},{"ip":"fd00::2"}]}`, vm.CodeInvalid,
			[]string{"/nics/1/ip: must be an IPv4 address such as 192.168.100.1",
				"/nics/2/ip: must be an IPv4 address such as 192.168.100.1"}},
		"too many NICs": {"/vms", `{"template_name":"small","nics":[{},{},{},{},{},{},{},{},{}]}`, vm.CodeInvalid,
			[]string{"/nics: must have at most 8 items"}},
		"no NIC": {"/vms", `{"template_name":"small","nics":null}`, vm.CodeInvalid,
			[]string{"/nics: must be an array"}},
		"a port forward": {"/vms/web-1/port_forwards",
			`{"protocol":"sctp","host_address":5,"host_port":0,"guest_port":65536,"nic":8}`, vm.CodeInvalid,
			[]string{"/guest_port: must be at most 65535", "/host_address: must be a string",
				"/host_port: must be at least 1", "/nic: must be at most 7",
				"/protocol: must be one of tcp, udp"}},
		"an empty port forward": {"/vms/web-1/port_forwards", `{}`, vm.CodeInvalid,
			[]string{"/guest_port: is missing", "/host_port: is missing"}},
		"the address of a port forward": {"/vms/web-1/port_forwards",
			`{"host_port":1,"guest_port":1,"host_address":"localhost"}`, vm.CodeInvalid,
			[]string{"/host_address: must be an IPv4 or IPv6 address, such as 192.0.2.1 or 2001:db8::1"}},
		"the addresses of a NIC": {"/vms/web-1/nics", `{"extra_addresses":["10.0.0.0/33","fe80::1%eth0","x"]}`, vm.CodeInvalid,
			[]string{
				"/extra_addresses/0: must be an address or a prefix, such as 10.0.0.200, 10.0.0.224/28 or fd00::5",
				"/extra_addresses/1: must be an address or a prefix, such as 10.0.0.200, 10.0.0.224/28 or fd00::5",
				"/extra_addresses/2: must be an address or a prefix, such as 10.0.0.200, 10.0.0.224/28 or fd00::5",
			}},
	})
}

// badNames are names that must never reach a file, a command or SQL.
var badNames = map[string]string{
	"a parent directory": "../../etc/passwd",
	"a quote":            `a"b`,
	"an apostrophe":      "a' OR '1'='1",
	"SQL":                "x'; DROP TABLE vms; --",
	"a comma":            "a,file=/etc/shadow",
	"a newline":          "a\nb",
	"a final newline":    "a\n",
	"NUL":                "a\x00b",
	"a bell":             "a\x07",
	"a space":            "a b",
	"upper case":         "Web",
	"a final hyphen":     "web-",
	"a dot":              ".",
	"a percent":          "%2e%2e",
	"unicode":            "wéb",
	"a wide letter":      "ｗeb",
	"very long":          strings.Repeat("a", 10000),
	"64 letters":         strings.Repeat("a", 64),
}

func TestInvalidNamesAreRejectedEverywhere(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for name, bad := range badNames {
		t.Run(name, func(t *testing.T) {
			for _, prefix := range []string{"/vms/", "/disks/", "/networks/", "/templates/", "/operations/",
				"/vms/web-1/port_forwards/", "/vms/web-1/nics/"} {
				r := a.want(t, 400, "GET", prefix+url.PathEscape(bad), "")
				if p := r.problem(t); p.Code != "invalid-request" || len(p.Errors) == 0 {
					t.Errorf("%s: %s", prefix, r.body)
				}
				if len(r.body) > 1000+3*len(bad) {
					t.Errorf("%s: the answer has %d bytes", prefix, len(r.body))
				}
			}
			body := `{"template_name":` + quote(bad) + `,"name":` + quote(bad) + `}`
			p := a.want(t, 400, "POST", "/vms", body).problem(t)
			if len(p.Errors) < 2 {
				t.Errorf("only %v", p.Errors)
			}
			if strings.Contains(p.Detail, bad) {
				t.Errorf("the detail contains the value: %s", p.Detail)
			}
			a.want(t, 400, "POST", "/observer/orphans/vms:"+url.PathEscape(bad)+"/delete", "")
			a.want(t, 400, "GET", "/events?resource="+url.QueryEscape("vms/\n"+bad), "")
			a.want(t, 400, "GET", "/disks?vm_id="+url.QueryEscape(bad), "")
			a.want(t, 400, "GET", "/operations?resource="+url.QueryEscape("vms/"+bad), "")
			a.want(t, 400, "GET", "/vms?network="+url.QueryEscape(bad), "")
			a.want(t, 400, "POST", "/networks", `{"mode":"nat","name":`+quote(bad)+`}`)
			a.want(t, 400, "POST", "/vms/web-1/nics", `{"network":`+quote(bad)+`}`)
			a.want(t, 400, "POST", "/vms/web-1/actions/start?wait_for="+url.QueryEscape(bad), "", "Prefer", "wait=1")
			a.want(t, 400, "GET", "/vms?state="+url.QueryEscape(bad), "")
		})
	}
}

// quote returns s as a JSON string.
func quote(s string) string {
	b, _ := json.Marshal(s) // never fails for a string
	return string(b)
}

func TestInvalidParametersAreNamed(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	tests := map[string][]string{
		"/vms?state=gone": {"state: must be one of stopped, starting, running, paused, stopping, error"},
		"/vms?colour=red&state=gone": {"colour: is not a query parameter of this request",
			"state: must be one of stopped, starting, running, paused, stopping, error"},
		"/vms?limit=0":                            {"limit: must be at least 1"},
		"/vms?limit=1001":                         {"limit: must be at most 1000"},
		"/vms?limit=many":                         {"limit: must be an integer"},
		"/vms?limit=1.5":                          {"limit: must be an integer"},
		"/vms?limit=1e2":                          {"limit: must be an integer"},
		"/vms?limit=" + strings.Repeat("9", 400):  {"limit: must be an integer"},
		"/vms?limit=":                             {"limit: must not be empty"},
		"/vms?limit=1&limit=2":                    {"limit: occurs more than once"},
		"/vms?cursor=MTAw":                        {"cursor: is not a cursor from a Link header"},
		"/vms?cursor=":                            {"cursor: must have at least 1 characters"},
		"/vms?cursor=" + strings.Repeat("a", 201): {"cursor: must have at most 200 characters"},
		"/vms?Limit=1":                            {"Limit: is not a query parameter of this request"},
		"/vms?state=%zz":                          {": the query is not validly encoded"},
		"/vms?state=running;limit=1":              {": the query is not validly encoded"},
		"/health?x=1":                             {"x: is not a query parameter of this request"},
		"/vms?" + strings.Repeat("k", 5000) +
			"=1": {strings.Repeat("k", 64) + "…: is not a query parameter of this request"},
	}
	for path, want := range tests {
		p := a.want(t, 400, "GET", path, "").problem(t)
		var fields []string
		for _, e := range p.Errors {
			fields = append(fields, e.Field+": "+e.Detail)
		}
		if !slices.Equal(fields, want) {
			t.Errorf("%.60s: %q", path, fields)
		}
	}
	for _, prefer := range []string{"wait=soon", "wait=-1", "wait", strings.Repeat("a", 201)} {
		p := a.want(t, 400, "POST", "/vms/web-1/actions/start", "", "Prefer", prefer).problem(t)
		if len(p.Errors) != 1 || p.Errors[0].Field != "Prefer" {
			t.Errorf("%.20s: %+v", prefer, p)
		}
	}
	// Two Prefer lines form one list; its first wait counts.
	a.want(t, 404, "POST", "/vms/web-1/actions/start", "", "Prefer", "wait=1", "Prefer", "wait=soon")
}

func TestOnlyJSONBodiesAreAccepted(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for media, status := range map[string]int{
		"application/json":                  201,
		"application/json; charset=utf-8":   201,
		"APPLICATION/JSON":                  201,
		"text/plain":                        415,
		"application/x-www-form-urlencoded": 415,
		"application/problem+json":          415,
		"json":                              415,
		"; x":                               415,
		"application/*":                     415,
		strings.Repeat("a/", 2000):          415,
	} {
		r := a.want(t, status, "POST", "/templates", smallTemplate, "Content-Type", "", "Content-Type", media)
		if status == 201 {
			a.want(t, 204, "DELETE", "/templates/small", "")
		} else if p := r.problem(t); p.Code != "unsupported-media-type" || p.Hint == "" {
			t.Errorf("%s: %+v", media, p)
		}
	}
	a.want(t, 415, "POST", "/templates", smallTemplate, "Content-Type", "")
}

func TestAnUnexpectedBodyIsRejected(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	for _, r := range [][2]string{{"GET", "/vms"}, {"GET", "/health"}, {"DELETE", "/vms/web-1"}} {
		p := a.want(t, 400, r[0], r[1], "{}").problem(t)
		if p.Code != "invalid-request" || len(p.Errors) != 1 {
			t.Errorf("%v: %+v", r, p)
		}
	}
	a.want(t, 200, "GET", "/vms/web-1", "")
}

func TestEveryOperationOfTheContractIsServed(t *testing.T) {
	t.Parallel()
	doc, _ := specification()
	ops := compile(doc)
	s := newAPI(t).Server
	served := map[routeKey]bool{}
	for _, r := range s.echo.Routes() {
		served[routeKey{r.Method, r.Path}] = true
		if ops[routeKey{r.Method, r.Path}] == nil {
			t.Errorf("%s %s is served, but is not in the contract", r.Method, r.Path)
		}
	}
	for key, op := range ops {
		if !served[key] {
			t.Errorf("%v is in the contract, but is not served", key)
		}
		for _, p := range op.header {
			if p.Required {
				t.Errorf("%v: the validation does not support required headers such as %s", key, p.Name)
			}
		}
	}
}

func TestEveryPatternOfTheContractIsSaidInWords(t *testing.T) {
	t.Parallel()
	pattern := regexp.MustCompile(`(?m)^ *pattern: '(.*)'$`)
	for _, m := range pattern.FindAllStringSubmatch(string(openapi.YAML()), -1) {
		if patternWords[m[1]] == "" {
			t.Errorf("the pattern %s has no words in patternWords", m[1])
		}
	}
}

func TestMemoryInGiBIsRefusedWithTheUnit(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for amount, hint := range map[string]string{"4": "for 4 GiB send 4096", "15": "for 15 GiB send 15360"} {
		p := a.want(t, 400, "POST", "/templates", `{"name":"a","cpu_count":1,"ram_amount":`+amount+`}`).problem(t)
		if len(p.Errors) != 1 || p.Errors[0].Field != "/ram_amount" || !strings.Contains(p.Errors[0].Detail, "16 to 4194304 MiB") ||
			!strings.Contains(p.Hint, "ram_amount is in MiB") || !strings.Contains(p.Hint, hint) {
			t.Errorf("%s: %+v", amount, p)
		}
	}
	a.want(t, 201, "POST", "/templates", `{"name":"a","cpu_count":1,"ram_amount":16}`)
}
