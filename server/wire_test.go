package server

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

var someAgent = vm.Agent{
	State:      vm.AgentConnected,
	Version:    "7.2.17",
	LastSeenAt: time.Date(2026, 3, 1, 9, 5, 9, 120e6, time.UTC),
}

// apiVM returns a VM in the generated type.
func apiVM(v *vm.VM) *openapi.VM {
	ip, source := v.LocalIP()
	at, result := v.Boot.CloudInit, openapi.BootCloudInitResultDone
	if at.IsZero() {
		at, result = v.Boot.CloudInitFailed, openapi.BootCloudInitResultError
	}
	if at.IsZero() {
		result = ""
	}
	return &openapi.VM{
		ID:   v.ID,
		UUID: v.UUID,
		VMTemplate: openapi.VMTemplate{
			Name:      v.Template.Name,
			CPUCount:  v.Template.CPUCount,
			RAMAmount: v.Template.RAMMiB,
		},
		State:             openapi.VMState(v.State),
		StateReason:       (*openapi.VMStateReason)(optional(&v.Reason)),
		StateReasonDetail: optional(&v.ReasonDetail),
		DesiredState:      openapi.VMDesiredState(v.Desired),
		LocalIP:           optionalAddr(ip),
		LocalIPSource:     (*openapi.VMLocalIpSource)(optional(&source)),
		ReachableFromHost: v.ReachableFromHost(),
		NICs:              apiNICs(v.NICs),
		PortForwards:      apiForwards(v.Forwards),
		CDROMs:            apiCDROMs(v.CDROMs),
		Image:             optional(&v.Root.Image),
		Agent: openapi.Agent{
			State:      openapi.AgentStateConnected,
			Version:    optional(&someAgent.Version),
			LastSeenAt: optionalTime(someAgent.LastSeenAt),
		},
		Boot: openapi.Boot{
			AgentAt:         optionalTime(v.Boot.Agent),
			SpawnedAt:       optionalTime(v.Boot.Spawned),
			QMPReadyAt:      optionalTime(v.Boot.Monitor),
			FirstSerialAt:   optionalTime(v.Boot.Serial),
			DHCPAckAt:       optionalTime(v.Boot.DHCP),
			FirstTCPAt:      optionalTime(v.Boot.TCP),
			CloudInitAt:     optionalTime(at),
			CloudInitResult: optional(&result),
		},
		RootDiskSize:      gib(v.Root.Bytes()),
		RootDiskSizeBytes: v.Root.Bytes(),
		MachineType:       optional(&v.Machine),
		Accel:             (*openapi.VMAccel)(optional(&v.Accel)),
		CreatedAt:         openapi.Time{Time: v.CreatedAt},
		UpdatedAt:         openapi.Time{Time: v.UpdatedAt},
		StartedAt:         optionalTime(v.StartedAt),
		Description:       v.Description,
		Labels:            labelsOf(v),
		BootDevice:        openapi.BootDevice(cmp.Or(string(v.BootDevice), "disk")),
		RestartPolicy:     openapi.RestartPolicy(v.Restart),
		RestartCount:      v.Restarts,
		NextRestartAt:     optionalTime(v.RestartAt),
		Autostart:         v.Autostart.Enabled,
		AutostartOrder:    v.Autostart.Order,
		AutostartDelay:    int(v.Autostart.Delay / time.Second),
		ShutdownTimeout:   int(v.Shutdown.OrDefault().Timeout / time.Second),
		ShutdownAction:    openapi.ShutdownAction(v.Shutdown.OrDefault().Action),
	}
}

func apiNICs(nics []vm.NIC) []openapi.NIC {
	out := make([]openapi.NIC, len(nics))
	for i := range nics {
		n := &nics[i]
		out[i] = openapi.NIC{
			Slot:    n.Slot,
			Network: n.Network,
			Mode:    openapi.NetworkMode(n.Mode),
			MAC:     n.MAC,
			Model:   openapi.NICModel(n.Model),
			IP:      optionalAddr(n.IP),
			IPv6:    optionalAddr(n.IPv6),
			RateIn:  n.RateIn,
			RateOut: n.RateOut,
			Link:    openapi.NICLinkUp,
			State:   openapi.NICState(n.State),
			Reason:  optional(&n.Reason),

			ExtraAddresses: []openapi.ExtraAddress{},
		}
		for _, p := range n.Extra {
			out[i].ExtraAddresses = append(out[i].ExtraAddresses, p.String())
		}
		if n.LinkDown {
			out[i].Link = openapi.NICLinkDown
		}
	}
	return out
}

func apiForwards(forwards []vm.PortForward) []openapi.PortForward {
	out := make([]openapi.PortForward, len(forwards))
	for i, f := range forwards {
		out[i] = openapi.PortForward{
			ID:          f.ID,
			NIC:         f.Slot,
			Protocol:    openapi.Protocol(f.Protocol),
			HostAddress: f.HostAddress.String(),
			HostPort:    f.HostPort,
			GuestPort:   f.GuestPort,
			Ports:       f.Count(),
		}
	}
	return out
}

func apiCDROMs(cdroms []vm.CDROM) []openapi.CDROM {
	out := make([]openapi.CDROM, len(cdroms))
	for i := range cdroms {
		c := &cdroms[i]
		out[i] = openapi.CDROM{ID: c.ID, Image: optional(&c.Image)}
		if c.BootIndex != 0 {
			out[i].BootIndex = &c.BootIndex
		}
	}
	return out
}

func labelsOf(v *vm.VM) openapi.Labels {
	if v.Labels == nil {
		return openapi.Labels{}
	}
	return v.Labels
}

func TestAWireVMIsEncodedLikeTheGeneratedType(t *testing.T) {
	t.Parallel()
	some := someVM(7)
	odd := someVM(8)
	odd.ReasonDetail = "quote \" back \\ slash\n\ttab \x00 \x7f <b>&amp;</b> ü \u2028 \xff"
	odd.Root.SizeMiB = 1
	odd.NICs = []vm.NIC{{
		Slot:     1,
		Network:  "lan",
		Mode:     vm.NetworkBridge,
		MAC:      "52:00:00:00:00:01",
		Model:    vm.NICE1000e,
		LinkDown: true,
		State:    vm.NICDetaching,
		Reason:   "the guest's \"driver\" <b>",
	}, {
		Slot:    7,
		Network: "lab",
		Mode:    vm.NetworkUser,
		IP:      netip.MustParseAddr("10.0.2.15"),
		IPv6:    netip.MustParseAddr("fd00::2"),
		RateIn:  vm.MaxRateKbit,
		RateOut: 1,
		State:   vm.NICAttaching,
	}}
	odd.Learned = []vm.LearnedAddress{{Slot: 1, IP: netip.MustParseAddr("fe80::1"), Source: vm.SourceNeighbour}}
	odd.Forwards = []vm.PortForward{{
		ID:          "pf-a",
		Slot:        7,
		Protocol:    vm.UDP,
		HostAddress: netip.IPv4Unspecified(),
		HostPort:    65535,
		GuestPort:   1,
	},
		{
			ID:          "pf-b",
			Slot:        7,
			Protocol:    vm.TCP,
			HostAddress: netip.MustParseAddr("127.0.0.1"),
			HostPort:    1,
			GuestPort:   65535,
		}}
	odd.Boot = vm.Boot{Spawned: odd.StartedAt, Serial: odd.StartedAt}
	large := someVM(9)
	odd.Boot.CloudInitFailed = odd.StartedAt
	large.Boot.CloudInit, large.Boot.CloudInitFailed = large.StartedAt, large.StartedAt.Add(time.Second)
	odd.Root.Image = "debian-12"
	odd.CDROMs = []vm.CDROM{{ID: vm.SeedCDROM}, {
		ID:        "cd-1",
		Image:     "netinst",
		SHA256:    "00",
		BootIndex: 99,
	}, {ID: "cd-4", Image: "a.b_c"}}
	odd.CreatedAt = time.Date(1, 2, 3, 4, 5, 6, 7999999, time.FixedZone("", 3600))
	large.Root.SizeMiB, large.Template.RAMMiB = vm.MaxDiskMiB, vm.MaxRAMMiB
	odd.Description, odd.Labels = "new\nline & <tab>\t", map[string]string{
		"z":       "",
		"a/b":     "quote \"",
		"a":       "ü",
		"m.n_o-p": "1",
	}
	large.Restart, large.Restarts, large.RestartAt = vm.RestartAlways, 17, large.StartedAt
	large.Shutdown = vm.Shutdown{Timeout: vm.MaxStopTimeout, Action: vm.ShutdownKill}
	large.Autostart = vm.Autostart{Enabled: true, Order: vm.MaxOrder, Delay: vm.MaxDelay}
	for _, v := range []vm.VM{{}, some, odd, large} {
		var want strings.Builder
		e := json.NewEncoder(&want)
		e.SetEscapeHTML(false)
		if err := e.Encode(apiVM(&v)); err != nil {
			t.Fatal(err)
		}
		if got := encoded(t, &wireVM{&v, someAgent}); got != want.String() {
			t.Errorf("got  %s\nwant %s", got, want.String())
		}
		for _, part := range []struct {
			ours jsonAppender
			api  any
		}{{jsonArrayOf(v.NICs, appendNIC), apiNICs(v.NICs)},
			{jsonArrayOf(v.Forwards, appendForward), apiForwards(v.Forwards)},
			{jsonArrayOf(v.CDROMs, appendCDROM), apiCDROMs(v.CDROMs)}} {
			want.Reset()
			if err := e.Encode(part.api); err != nil {
				t.Fatal(err)
			}
			if got := encoded(t, part.ours); got != want.String() {
				t.Errorf("got  %s\nwant %s", got, want.String())
			}
		}
	}
}

// encoded returns the JSON of v in an answer.
func encoded(t *testing.T, v any) string {
	t.Helper()
	e := getEncoder()
	defer e.free()
	if err := e.encode(v); err != nil {
		t.Fatal(err)
	}
	return e.buf.String()
}
