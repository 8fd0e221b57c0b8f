package openapi

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// decode decodes a JSON text as the validator of requests does.
func decode(text string) (any, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

func TestSchemas(t *testing.T) {
	doc := load(t)
	tests := []struct {
		schema, text string
		ok           bool
	}{
		{"DiskSize", `0.5`, true},
		{"DiskSize", `10`, true},
		{"DiskSize", `1e1`, true},
		{"DiskSize", `10.25`, true},
		{"DiskSize", `0.0009765625`, true},
		{"DiskSize", `16383.9990234375`, true},
		{"DiskSize", `16384`, true},
		{"DiskSize", `16384.0009765625`, false},
		{"DiskSize", `0.0001`, true}, // the exact size of an image
		{"DiskSize", `10.1`, true},
		{"CreateDisk", `{"size":0.0001}`, false},
		{"CreateDisk", `{"size":10.1}`, false},
		{"CreateDisk", `{"size":10.00001}`, false},
		{"CreateDisk", `{"size":0}`, false},
		{"UpdateDisk", `{"size":10.1}`, false},
		{"UpdateDisk", `{"size_bytes":1048577}`, false},
		{"UpdateDisk", `{"size_bytes":1048576}`, true},
		{"DiskSize", `0`, false},
		{"DiskSize", `-1`, false},
		{"DiskSize", `1e400`, false},
		{"DiskSize", `-1e400`, false},
		{"DiskSize", strings.Repeat("9", 400), false},
		{"DiskSize", `"10"`, false},
		{"DiskSize", `null`, false},
		{"CPUCount", `256`, true},
		{"CPUCount", `257`, false},
		{"CPUCount", `0`, false},
		{"CPUCount", `1.5`, false},
		{"RAMAmount", `4194304`, true},
		{"RAMAmount", `4194305`, false},
		{"RAMAmount", strings.Repeat("9", 400), false},
		{"ResourceId", `"web-1"`, true},
		{"ResourceId", `"w"`, true},
		{"ResourceId", `"` + strings.Repeat("a", 63) + `"`, true},
		{"ResourceId", `"` + strings.Repeat("a", 64) + `"`, false},
		{"ResourceId", `"` + strings.Repeat("a", 10000) + `"`, false},
		{"ResourceId", `""`, false},
		{"ResourceId", `"-web"`, false},
		{"ResourceId", `"web-"`, false},
		{"ResourceId", `"Web"`, false},
		{"ResourceId", `"../web"`, false},
		{"ResourceId", `"web\n"`, false},
		{"ResourceId", `"web\u0000"`, false},
		{"ResourceId", `"web,file=x"`, false},
		{"ResourceId", `"we'b"`, false},
		{"TemplateName", `"small_1.x"`, true},
		{"TemplateName", `".small"`, false},
		{"ResourcePath", `"vms/web-1"`, true},
		{"ResourcePath", `"templates/small_1.x"`, true},
		{"ResourcePath", `"templates/../x"`, false},
		{"ResourcePath", `"vms/small_1"`, false},
		{"ResourcePath", `"operations/x"`, false},
		{"ResourcePath", `"networks/vman0"`, true},
		{"NetworkName", `"vman0"`, true},
		{"NetworkName", `"sixteen-letters1"`, false},
		{"NetworkName", `"vman0\n"`, false},
		{"NetworkName", `"../vman"`, false},
		{"CreateNetwork", `{"name":"lab","mode":"nat"}`, true},
		{"CreateNetwork", `{"mode":"nat"}`, false},
		{"CreateNetwork", `{"name":"lab"}`, false},
		{"CreateNetwork", `{"name":"lab","mode":"bridged"}`, false},
		{"CreateNetwork", `{"name":"lab","mode":"bridge","bridge":"br/0"}`, false},
		{"CreateNetwork", `{"name":"lab","mode":"nat","mtu":575}`, false},
		{"CreateNetwork", `{"name":"lab","mode":"nat","vlan_id":4095}`, false},
		{"CreateNetwork", `{"name":"lab","mode":"nat","domain":"a..b"}`, false},
		{"CreateNetwork", `{"name":"lab","mode":"nat","routes":[{"destination":"10.0.0.0/8"}]}`, false},
		{"CreateNetwork", `{"name":"lab","mode":"nat","subnet":null}`, false},
		{"UpdateNetwork", `{}`, false},
		{"UpdateNetwork", `{"mode":"nat"}`, false},
		{"UpdateNetwork", `{"ipv6_subnet":"","dns":[],"vlan_id":0}`, true},
		{"UpdateNetwork", `{"search_domains":[],"dhcp_options":[],"pxe":{},"dns_records":[],"dns_forwarders":[]}`, true},
		{"UpdateNetwork", `{"search_domains":["a."]}`, false},
		{"UpdateNetwork", `{"search_domains":[` + strings.Repeat(`"a",`, 16) + `"a"]}`, false},
		{"UpdateNetwork", `{"dhcp_options":[{"code":42,"addresses":["10.0.0.1"],"always":true}]}`, true},
		{"UpdateNetwork", `{"dhcp_options":[{"text":"a"}]}`, false},
		{"UpdateNetwork", `{"dhcp_options":[{"code":255,"text":"a"}]}`, false},
		{"UpdateNetwork", `{"dhcp_options":[{"code":43,"hex":"abc"}]}`, false},
		{"UpdateNetwork", `{"dhcp_options":[{"code":43,"uint32":4294967296}]}`, false},
		{"UpdateNetwork", `{"pxe":{"filename":"a b"}}`, false},
		{"UpdateNetwork", `{"pxe":{"architectures":[{"architecture":"mips"}]}}`, false},
		{"UpdateNetwork", `{"dns_records":[{"name":"*.apps","type":"A","value":"10.0.0.1","ttl":0}]}`, true},
		{"UpdateNetwork", `{"dns_records":[{"name":"Db","type":"A","value":"10.0.0.1"}]}`, false},
		{"UpdateNetwork", `{"dns_records":[{"name":"db","type":"NS","value":"a"}]}`, false},
		{"UpdateNetwork", `{"dns_records":[{"name":"db","type":"TXT","value":"a\nb"}]}`, false},
		{"UpdateNetwork", `{"dns_forwarders":[{"domain":"corp.example","servers":["10.0.0.1","[fd00::1]:5353"]}]}`, true},
		{"UpdateNetwork", `{"dns_forwarders":[{"domain":"corp.example","servers":[]}]}`, false},
		{"CreateVM", `{"template_name":"small","boot_device":"network"}`, true},
		{"UpdateVM", `{"boot_device":"cdrom"}`, false},
		{"CreateNIC", `{}`, true},
		{"CreateNIC", `{"network":"lab","ip":"10.0.0.2","mac":"52:54:00:AA:bb:01","model":"e1000e",` +
			`"rate_in":1,"rate_out":100000000,"link":"down"}`, true},
		{"CreateNIC", `{"mac":"52:54:00:aa:bb"}`, false},
		{"CreateNIC", `{"model":"rtl8139"}`, false},
		{"CreateNIC", `{"rate_in":-1}`, false},
		{"CreateNIC", `{"slot":1}`, false},
		{"UpdateNIC", `{}`, false},
		{"UpdateNIC", `{"link":"sideways"}`, false},
		{"UpdateNIC", `{"rate_out":100000001}`, false},
		{"UpdateNIC", `{"ip":"10.0.0.2"}`, false},
		{"CreatePortForward", `{"host_port":1,"guest_port":65535}`, true},
		{"CreatePortForward", `{"host_port":0,"guest_port":22}`, false},
		{"CreatePortForward", `{"host_port":22,"guest_port":65536}`, false},
		{"CreatePortForward", `{"host_port":22}`, false},
		{"CreatePortForward", `{"host_port":22,"guest_port":22,"protocol":"sctp"}`, false},
		{"CreatePortForward", `{"host_port":22,"guest_port":22,"nic":8}`, false},
		{"CreateVM", `{"template_name":"small","nics":[]}`, true},
		{"CreateVM", `{"template_name":"small","nics":[{},{},{},{},{},{},{},{},{}]}`, false},
		{"MountPoint", `"/dev/xvdz"`, true},
		{"MountPoint", `"/dev/sda"`, false},
		{"MountPoint", `"/dev/sdb1"`, false},
		{"MountPoint", `"/dev/sdb\n"`, false},
		{"CreateVM", `{"template_name":"small"}`, true},
		{"CreateVM", `{"template_name":"small","name":"web-1","root_disk_size":0.5}`, true},
		{"CreateVM", `{"template_name":"small","NAME":"web-1"}`, false},
		{"CreateVM", `{"template_name":"small","name":null}`, false},
		{"CreateVM", `{"name":"web-1"}`, false},
		{"CreateVM", `[]`, false},
		{"CreateVM", `{"template_name":"small","labels":{"env":"prod"},"restart_policy":"always",` +
			`"autostart":true,"autostart_order":1000,"autostart_delay":3600}`, true},
		{"CreateVM", `{"template_name":"small","shutdown_timeout":3600,"shutdown_action":"kill"}`, true},
		{"CreateVM", `{"template_name":"small","shutdown_timeout":3601}`, false},
		{"UpdateVM", `{"shutdown_timeout":0}`, false},
		{"UpdateVM", `{"shutdown_action":"suspend"}`, false},
		{"StopRequest", `{"reason":"host-shutdown"}`, true},
		{"StopRequest", `{"reason":"crashed"}`, false},
		{"UpdateVM", `{}`, false},
		{"UpdateVM", `{"labels":{}}`, true},
		{"UpdateVM", `{"labels":null}`, false},
		{"UpdateVM", `{"labels":{"env":1}}`, false},
		{"UpdateVM", `{"labels":{"env":"` + strings.Repeat("ü", 255) + `"}}`, true},
		{"UpdateVM", `{"labels":{"env":"` + strings.Repeat("ü", 256) + `"}}`, false},
		{"UpdateVM", `{"restart_policy":"sometimes"}`, false},
		{"UpdateVM", `{"desired_state":"paused"}`, false},
		{"UpdateVM", `{"autostart_order":-1}`, false},
		{"UpdateVM", `{"autostart_order":1001}`, false},
		{"UpdateVM", `{"autostart_delay":3601}`, false},
		{"UpdateVM", `{"name":"web-2"}`, false},
		{"AdoptOrphan", `{}`, true},
		{"AdoptOrphan", `{"template_name":""}`, false},
		{"OrphanId", `"vms:web-1"`, true},
		{"OrphanId", `"disks:disk-1"`, true},
		{"OrphanId", `"templates:small"`, false},
		{"OrphanId", `"vms:../x"`, false},
		{"OrphanVMId", `"disks:disk-1"`, false},
		{"EventNumber", `0`, true},
		{"EventNumber", `9223372036854775807`, true},
		{"EventNumber", `-1`, false},
		{"StopRequest", `{}`, true},
		{"StopRequest", `{"force":true,"timeout_seconds":0}`, true},
		{"StopRequest", `{"timeout_seconds":3601}`, false},
		{"StopRequest", `{"force":"true"}`, false},
		{"EmptyRequest", `{}`, true},
		{"EmptyRequest", `{"force":true}`, false},
		{"AttachDisk", `{}`, false},
		{"CreateVM", `{"template_name":"small","start":true}`, true},
		{"CreateVM", `{"template_name":"small","start":1}`, false},
		{"ExecRequest", `{"command":["uname"]}`, true},
		{"ExecRequest", `{"command":["/bin/sh","-c",""],"env":{"A":""},"stdin":"x","timeout_seconds":300}`, true},
		{"ExecRequest", `{"command":[]}`, false},
		{"ExecRequest", `{"command":"uname"}`, false},
		{"ExecRequest", `{"command":["a\u0000b"]}`, false},
		{"ExecRequest", `{"command":["a"],"env":{"A":"\u0000"}}`, false},
		{"ExecRequest", `{"command":["a"],"env":["A=b"]}`, false},
		{"ExecRequest", `{"command":["a"],"timeout_seconds":0}`, false},
		{"ExecRequest", `{"command":["a"],"timeout_seconds":301}`, false},
		{"ExecRequest", `{"command":["a"],"shell":true}`, false},
		{"SetPassword", `{"user":"root","password":"x y:z"}`, true},
		{"SetPassword", `{"user":"root","password":""}`, false},
		{"SetPassword", `{"user":"root","password":"x\ny"}`, false},
		{"SetPassword", `{"user":"ro:ot","password":"x"}`, false},
		{"SetPassword", `{"user":"root"}`, false},
		{"CreateImage", `{"name":"debian-12","url":"https://images.example/a.qcow2",` +
			`"sha256":"` + strings.Repeat("aF", 32) + `","format":"iso"}`, true},
		{"CreateImage", `{"name":"golden_1.x","from_disk":"web-1","description":"a\nb","labels":{}}`, true},
		{"CreateImage", `{"url":"https://images.example/a.qcow2"}`, false},
		{"CreateImage", `{"name":"../x","url":"https://images.example/a.qcow2"}`, false},
		{"CreateImage", `{"name":"a","url":"https://images.example/a b"}`, false},
		{"CreateImage", `{"name":"a","url":"http://x/","sha256":"00"}`, false},
		{"CreateImage", `{"name":"a","url":"http://x/","sha512":"` + strings.Repeat("0", 64) + `"}`, false},
		{"CreateImage", `{"name":"a","url":"http://x/","format":"qcow"}`, false},
		{"UpdateImage", `{}`, false},
		{"UpdateImage", `{"name":"b"}`, false},
		{"CreateCDROM", `{"image":"netinst","boot_index":99}`, true},
		{"CreateCDROM", `{"boot_index":1}`, false},
		{"CreateCDROM", `{"image":"netinst","boot_index":0}`, false},
		{"CreateCDROM", `{"image":"netinst","boot_index":100}`, false},
		{"CreateVM", `{"template_name":"small","image":"debian-12","full_clone":true,` +
			`"cdroms":[{"image":"a"}],"cloud_init":{}}`, true},
		{"CreateVM", `{"template_name":"small",` +
			`"cdroms":[{"image":"a"},{"image":"a"},{"image":"a"},{"image":"a"},{"image":"a"}]}`, false},
		{"CreateVM", `{"template_name":"small","cloud_init":{"reprovision":true}}`, false},
		{"SetCloudInit", `{"reprovision":true,"hostname":"web-1.example.org","user_data":"#!/bin/sh\n"}`, true},
		{"SetCloudInit", `{"hostname":"Web"}`, false},
		{"SetCloudInit", `{"ssh_authorized_keys":["a\nb"]}`, false},
		{"SetCloudInit", `{"users":[{}]}`, false},
		{"SetCloudInit", `{"users":[{"name":"a:b"}]}`, false},
		{"SetCloudInit", `{"users":[{"name":"a","shell":"sh"}]}`, false},
		{"SetCloudInit", `{"user_data":"\u0000"}`, false},
		{"CreateDisk", `{"image":"debian-12"}`, true},
		{"CreateDisk", `{"from_disk":"web-1","size":20,"mount_point":"/dev/sdb"}`, true},
		{"OrphanFilesId", `"images:` + strings.Repeat("0a", 32) + `"`, true},
		{"OrphanFilesId", `"images:debian-12"`, false},
		{"ResourcePath", `"images/debian_12.x"`, true},
		{"ResourcePath", `"images/` + strings.Repeat("0a", 32) + `"`, true},
		{"CreateConsoleTicket", `{}`, true},
		{"CreateConsoleTicket", `{"write":"true"}`, false},
	}
	for _, tt := range tests {
		t.Run(tt.schema+" "+shorten(tt.text), func(t *testing.T) {
			v, err := decode(tt.text)
			if err == nil {
				err = doc.Components.Schemas[tt.schema].Value.VisitJSON(v, openapi3.MultiErrors())
			}
			if (err == nil) != tt.ok {
				t.Errorf("valid: %v (%v), want %v", err == nil, err, tt.ok)
			}
		})
	}
}

// shorten returns the first 60 bytes of s.
func shorten(s string) string {
	if len(s) > 60 {
		return s[:60]
	}
	return s
}

// The generated types must encode a resource without values as its schema requires: with
// every property, and null for a missing value.
func TestTheGeneratedTypesEncodeNull(t *testing.T) {
	doc := load(t)
	for name, value := range emptyResources() {
		if err := conform(doc.Components.Schemas[name].Value, value); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// emptyResources returns values with as many null properties as possible, by schema.
func emptyResources() map[string]any {
	now := Time{}
	return map[string]any{
		"VM": VM{
			ID:           "web-1",
			UUID:         "6f2f1f3f-1c9a-4c33-9d6b-0f6a2f1f3f10",
			State:        VMStateStopped,
			DesiredState: VMDesiredStateStopped,
			RootDiskSize: 10,

			RootDiskSizeBytes: 10 << 30,
			VMTemplate:        VMTemplate{Name: "small", CPUCount: 1, RAMAmount: 64},
			CreatedAt:         now,
			UpdatedAt:         now,
			Agent:             Agent{State: AgentStateAbsent},
			Labels:            Labels{},
			RestartPolicy:     RestartPolicyNever,
			BootDevice:        BootDeviceDisk,
			ShutdownTimeout:   60,
			ShutdownAction:    ShutdownActionStop,
			NICs:              []NIC{},
			PortForwards:      []PortForward{},
			CDROMs:            []CDROM{},
		},
		"Image": Image{
			Name:      "debian-12",
			State:     ImageStateImporting,
			Source:    "upload",
			Labels:    Labels{},
			CreatedAt: now,
			UpdatedAt: now,
		},
		"CDROM": CDROM{ID: "seed"},
		"CloudInitDetails": CloudInitDetails{
			Format:            UserDataFormatCloudInit,
			SSHAuthorizedKeys: []string{},
			Users: []CloudInitUserDetails{
				{Name: "ops", SSHAuthorizedKeys: []string{}, Groups: []string{}},
			},
		},
		"CloudInitStatus": CloudInitStatus{Status: "done", Errors: []string{}},
		"Guest": Guest{
			Interfaces:  []GuestInterface{{Addresses: []string{}}},
			Filesystems: []GuestFilesystem{{Disks: []string{}}},
		},
		"ExecResult":    ExecResult{},
		"ConsoleTicket": ConsoleTicket{ExpiresAt: now},
		"NIC": NIC{
			ExtraAddresses: []ExtraAddress{},
			Network:        "lan",
			Mode:           NetworkModeBridge,
			MAC:            "52:a1:0c:7e:43:19",
			Model:          NICModelVirtio,
			Link:           NICLinkUp,
			State:          NICStateAttached,
		},
		"NetworkDetails": NetworkDetails{
			Name:   "lan",
			Mode:   NetworkModeBridge,
			DNS:    []IPv4Address{},
			NTP:    []IPv4Address{},
			Routes: []NetworkRoute{},
			MTU:    1500,

			SearchDomains: []string{},
			DHCPOptions:   []DHCPOption{},
			DNSRecords:    []DNSRecord{},
			DNSForwarders: []DNSForwarder{},

			CreatedAt:  now,
			UpdatedAt:  now,
			Leases:     []Lease{{VMID: "web-1"}},
			Interfaces: []string{},
			Problems:   []NetworkProblem{},
		},
		"Disk": Disk{
			ID:        "disk-1",
			Size:      0.5,
			SizeBytes: 512 << 20,
			State:     DiskStateAvailable,
			CreatedAt: now,
			UpdatedAt: now,
		},
		"Operation": Operation{
			ID:          "op-1",
			Kind:        OperationKindVmStart,
			Resource:    "vms/web-1",
			State:       OperationStatePending,
			RequestedBy: "token admin",
			CreatedAt:   now,
			Log:         []OperationLogLine{},
		},
		"Event": Event{
			Seq:      1,
			At:       now,
			Type:     EventTypeVmState,
			Resource: "vms/web-1",
			Data:     RawJSON(`{}`),
		},
		"Why": Why{
			Recorded:   WhyRecorded{State: VMStateStopped, DesiredState: WhyRecordedDesiredStateStopped},
			Verdict:    WhyVerdict{State: VMStateStopped},
			Disks:      []Disk{},
			Operations: []Operation{},
			Events:     []Event{},
			Words:      []string{},
			Recorder: Recorder{
				Now:     Recording{Messages: []RecordedMessage{}},
				Crashes: []Recording{},
			},
		},
		"ObserverStatus": ObserverStatus{
			Status:        ObserverStatusStatusStarting,
			RepairMode:    ObserverStatusRepairModeAuto,
			CheckInterval: 5,
			LastIssues:    []Issue{},
		},
		"HealthCheck": HealthCheck{Status: HealthStatusOk},
		"Problem": Problem{
			Type:   "urn:vman:problem:internal",
			Title:  "x",
			Status: 500,
			Detail: "x",
			Code:   ProblemCodeInternal,
		},
	}
}
