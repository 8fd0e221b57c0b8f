package qemu

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmand/vm"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

func testSpec() vm.Spec {
	return vm.Spec{
		ID: "web-1", UUID: "8a0f3c1e-6a3d-4f52-9d0e-5f0a1b2c3d4e", CPUCount: 2, RAMMiB: 512,
		Machine: "pc-q35-7.2", Accel: vm.TCG, Root: vm.DiskFile{SizeMiB: 1024},
	}
}

// testPort returns the port of a NIC. userPort returns one that needs nothing of the
// host.
func testPort(slot int, kind vm.PortKind) vm.Port {
	n := vm.NIC{Slot: slot, MAC: fmt.Sprintf("52:54:00:12:34:%02x", slot), Model: vm.NICVirtio}
	return vm.Port{NIC: n, Kind: kind}
}

func userPort(slot int) vm.Port {
	p := testPort(slot, vm.PortUser)
	p.IP, p.Subnet, p.Gateway = netip.MustParseAddr("10.0.2.15"), netip.MustParsePrefix("10.0.2.0/24"), netip.MustParseAddr("10.0.2.2")
	return p
}

func TestCommandLineMatchesTheGoldenFile(t *testing.T) {
	l := layout{state: "/var/lib/vman", run: "/run/vman"}
	caps := capabilities{Version: "7.2.22", Machine: "pc-q35-7.2"}
	fds := bootFDs{qmp: 3, operator: 4, agent: 10, serialLog: 10}
	withBase := fds
	withBase.base = 6
	taps := fds
	taps.ports = []portFDs{{"6", "7"}, {"8", ""}, {"9", ""}}
	for name, c := range map[string]struct {
		fds  bootFDs
		spec func(*vm.Spec)
	}{
		"empty-root": {fds, func(*vm.Spec) {}},
		"kvm":        {fds, func(s *vm.Spec) { s.Accel, s.Machine = vm.KVM, "" }},
		"base-qcow2": {withBase, func(s *vm.Spec) { s.Root.Base, s.Root.BaseFormat = "/srv/a, b=c.qcow2", formatQcow2 }},
		"base-raw":   {withBase, func(s *vm.Spec) { s.Root.Base, s.Root.BaseFormat = "/srv/debian.raw", formatRaw }},
		"disks": {fds, func(s *vm.Spec) {
			s.Disks = []vm.Disk{{ID: "data", MountPoint: "/dev/sdb"}, {ID: "disk-of-20-characters"[:20], MountPoint: "/dev/vdz"}}
		}},
		"contents": {fds, func(s *vm.Spec) {
			s.Root.Base, s.Root.BaseFormat = vm.ContentBase(strings.Repeat("0a", 32)), "vmdk"
			for i, format := range []string{"qcow2", "raw", "vhdx", "vdi", "vpc"} {
				f := vm.DiskFile{Base: vm.ContentBase(strings.Repeat("0b", 32)), BaseFormat: format}
				s.Disks = append(s.Disks, vm.Disk{ID: format, MountPoint: fmt.Sprintf("/dev/sd%c", 'b'+i), DiskFile: f})
			}
		}},
		"ignition": {fds, func(s *vm.Spec) { s.Ignition = true }},
		"cdroms": {fds, func(s *vm.Spec) {
			s.CDROMs = []vm.CDROM{
				{ID: vm.SeedCDROM},
				{ID: "cd-1", SHA256: strings.Repeat("0c", 32), BootIndex: 1},
				{ID: "cd-4", SHA256: strings.Repeat("0d", 32)},
			}
		}},
		"nics-user": {fds, func(s *vm.Spec) {
			s.Ports = []vm.Port{userPort(0), userPort(7)}
			s.Ports[0].Domain, s.Ports[0].Restrict = "vman, internal", true
			s.Ports[0].Forwards = []vm.PortForward{
				{Protocol: vm.TCP, HostAddress: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, GuestPort: 80},
				{Protocol: vm.UDP, HostAddress: netip.IPv4Unspecified(), HostPort: 5353, GuestPort: 53},
			}
			s.Ports[1].Gateway, s.Ports[1].IP = netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("10.0.2.4")
		}},
		"nics-tap": {taps, func(s *vm.Spec) {
			s.Ports = []vm.Port{testPort(0, vm.PortTap), testPort(1, vm.PortTap), testPort(2, vm.PortTap)}
			s.Ports[0].MTU = 9000
			s.Ports[2].Model, s.Ports[2].MTU = vm.NICE1000e, 9000
		}},
		"boot-network": {taps, func(s *vm.Spec) {
			s.Boot = vm.BootNetwork
			s.Ports = []vm.Port{testPort(1, vm.PortTap), testPort(2, vm.PortTap)}
			s.CDROMs = []vm.CDROM{{ID: "cd-1", SHA256: strings.Repeat("0c", 32), BootIndex: 1}}
		}},
		"nics-stream": {taps, func(s *vm.Spec) {
			s.Ports = []vm.Port{testPort(1, vm.PortStream)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := testSpec()
			c.spec(&spec)
			args, err := commandLine(caps, spec, l, c.fds)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(args, "\n") + "\n"
			golden := filepath.Join("testdata", "cmdline", name+".args")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the command line is\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestTheCommandLineRefusesInvalidSpecs(t *testing.T) {
	for name, change := range map[string]func(*vm.Spec){
		"a disk without a slot":  func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "data", MountPoint: "/dev/sda"}} },
		"a drive of no number":   func(s *vm.Spec) { s.CDROMs = []vm.CDROM{{ID: "cd-5", SHA256: strings.Repeat("0c", 32)}} },
		"a drive of the seed's":  func(s *vm.Spec) { s.CDROMs = []vm.CDROM{{ID: "cd-0", SHA256: strings.Repeat("0c", 32)}} },
		"a drive of a name":      func(s *vm.Spec) { s.CDROMs = []vm.CDROM{{ID: "floppy", SHA256: strings.Repeat("0c", 32)}} },
		"a drive without a disc": func(s *vm.Spec) { s.CDROMs = []vm.CDROM{{ID: "cd-1", SHA256: "../../etc/passwd"}} },
		"a port of no kind":      func(s *vm.Spec) { s.Ports = []vm.Port{testPort(0, "warp")} },
		"a tap without a file":   func(s *vm.Spec) { s.Ports = []vm.Port{testPort(0, vm.PortTap)} },
		"a slot beyond the last": func(s *vm.Spec) { s.Ports = []vm.Port{userPort(vm.MaxNICs)} },
		"a NIC of no model": func(s *vm.Spec) {
			s.Ports = []vm.Port{userPort(0)}
			s.Ports[0].Model = "ne2k"
		},
		"a user NIC without an address": func(s *vm.Spec) {
			s.Ports = []vm.Port{userPort(0)}
			s.Ports[0].IP = netip.Addr{}
		},
		"a forward of no protocol": func(s *vm.Spec) {
			s.Ports = []vm.Port{userPort(0)}
			s.Ports[0].Forwards = []vm.PortForward{{Protocol: "tcp:0.0.0.0", HostAddress: netip.IPv4Unspecified(), HostPort: 1, GuestPort: 1}}
		},
		"a forward to no port": func(s *vm.Spec) {
			s.Ports = []vm.Port{userPort(0)}
			s.Ports[0].Forwards = []vm.PortForward{{Protocol: vm.TCP, HostAddress: netip.IPv4Unspecified(), HostPort: 1, GuestPort: 65536}}
		},
		"a disk without a mount": func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "data"}} },
	} {
		spec := testSpec()
		change(&spec)
		args, err := commandLine(capabilities{}, spec, layout{}, bootFDs{})
		if code := codeOf(err); code != vm.CodeInvalid {
			t.Errorf("%s: got %v, %v; want an error of code %s", name, args, err, vm.CodeInvalid)
		}
	}
}

func TestAHotPluggedDiskIsTheOneOnTheCommandLine(t *testing.T) {
	spec := testSpec()
	spec.Disks = []vm.Disk{{ID: "data", MountPoint: "/dev/sdc"}}
	args, err := commandLine(capabilities{}, spec, layout{state: "/s"}, bootFDs{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(args, `{"driver":"scsi-hd","id":"disk-data","bus":"scsi0.0","drive":"data-data","channel":0,"scsi-id":0,"lun":2,`+
		`"serial":"data","device_id":"data","werror":"stop","rerror":"stop"}`) {
		t.Errorf("the disk is not in %s", strings.Join(args, "\n"))
	}
	if id, ok := diskOfDevice(diskDevice("data")); !ok || id != "data" {
		t.Errorf("the device of disk data has the id of disk %q", id)
	}
	if id, ok := diskOfDevice(rootDevice); ok {
		t.Errorf("the root disk has the id of data disk %q", id)
	}
	names := map[string]bool{"root": true, "base": true} // of every VM
	longest := strings.Repeat("x", 20)
	for _, name := range []string{diskNode(longest), diskFileNode(longest), diskBaseNode(longest), diskBaseFileNode(longest),
		cdromAlias(vm.SeedCDROM), cdromFileNode(vm.SeedCDROM)} {
		prefix, _, _ := strings.Cut(name, "-")
		if len(name) > 31 || names[prefix] {
			t.Errorf("a node has the invalid or repeated name %s", name)
		}
		names[prefix] = true
	}
}
