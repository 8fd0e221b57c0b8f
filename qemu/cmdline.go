package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"vmand/vm"
)

// The slots of devices on the root bus. A guest names its network interfaces by
// these numbers and expects every device in the same place after a restart, so they
// never change. The chipset has 0x0 and 0x1f.
const (
	rootSlot  = 0x2
	scsiSlot  = 0x3
	rngSlot   = 0x4
	dogSlot   = 0x5
	vportSlot = 0x6
	portsSlot = 0x10 // root ports, eight functions to a slot
)

// rootPorts is the number of PCIe root ports of a VM: one for each NIC it can get.
// Each costs about 1 ms of start time (measured).
const rootPorts = vm.MaxNICs

// bootFDs are the descriptors that QEMU inherits, by their numbers in QEMU.
type bootFDs struct {
	qmp, operator, agent int // listening sockets
	serialLog            int // the guest's output is appended to it
	base                 int // the base image, 0 if there is none
	ports                []portFDs
}

// Numbers of the descriptor sets that hold the base image and the serial log.
const (
	baseFDSet      = 1
	serialLogFDSet = 2
)

// nicBootIndex is the boot index of the NIC that a VM boots from. No drive has it.
const nicBootIndex = 0

// device is the argument of -device and device_add. The type is the same for both,
// so a device of the start and a hot-plugged one cannot differ.
type device struct {
	Driver        string  `json:"driver"`
	ID            string  `json:"id,omitempty"`
	Bus           string  `json:"bus,omitempty"`
	Addr          string  `json:"addr,omitempty"`
	Multifunction bool    `json:"multifunction,omitempty"`
	Chassis       int     `json:"chassis,omitempty"`
	Drive         string  `json:"drive,omitempty"`
	Channel       *int    `json:"channel,omitempty"`
	SCSIID        *int    `json:"scsi-id,omitempty"`
	LUN           *int    `json:"lun,omitempty"`
	Serial        string  `json:"serial,omitempty"`
	DeviceID      string  `json:"device_id,omitempty"`
	BootIndex     *int    `json:"bootindex,omitempty"` // nil: not a boot device
	WriteError    string  `json:"werror,omitempty"`
	ReadError     string  `json:"rerror,omitempty"`
	Netdev        string  `json:"netdev,omitempty"`
	MAC           string  `json:"mac,omitempty"`
	HostMTU       int     `json:"host_mtu,omitempty"`
	ROMFile       *string `json:"romfile,omitempty"`
	Number        int     `json:"nr,omitempty"`
	Chardev       string  `json:"chardev,omitempty"`
	Name          string  `json:"name,omitempty"`
}

// cpuModel returns the CPU model for an accelerator. With KVM the guest gets the
// host's. Under TCG "max" makes guests use features that are slow to emulate (AVX,
// five-level paging): a boot takes 15 to 25 % more CPU time than with Nehalem
// (measured). Nehalem is x86-64-v2, which current distributions are built for.
func cpuModel(a vm.Accel) string {
	if a == vm.KVM {
		return "host"
	}
	return "Nehalem"
}

// commandLine returns QEMU's arguments, without the program's name. It is pure:
// the same VM has the same arguments in the same order.
//
// -S stops the machine before the guest runs. -no-shutdown keeps the process when
// the guest powers itself off, and -action pauses a guest that panicked or did not
// feed its watchdog, so that each of these can be observed later. Values that a
// user chose are JSON or names that were validated.
func commandLine(caps capabilities, s vm.Spec, l layout, fds bootFDs) ([]string, error) {
	machine := s.Machine
	if machine == "" {
		machine = caps.Machine
	}
	args := []string{
		"-name", "guest=" + s.ID + ",debug-threads=on",
		"-uuid", s.UUID,
		"-machine", machine + ",dump-guest-core=off,vmport=off",
		"-accel", string(s.Accel),
		"-cpu", cpuModel(s.Accel),
		"-smp", strconv.Itoa(s.CPUCount),
		"-m", strconv.Itoa(s.RAMMiB) + "M",
		"-nodefaults", "-no-user-config",
		"-display", "none",
		"-S", "-no-shutdown",
		"-action", "shutdown=pause,panic=pause,watchdog=pause",
		"-boot", "strict=on",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-pidfile", l.pidfile(s.ID),
	}
	if s.Ignition {
		args = append(args, ignitionArgs(l.inState(vmIgnition(s.ID)))...)
	}
	args = append(args, chardevArgs(fds, l.inRun(s.ID, consoleSuffix))...)
	devices, err := deviceArgs(s, l, fds)
	if err != nil {
		return nil, err
	}
	return append(args, devices...), nil
}

// ignitionNames are the names under which Ignition looks for its configuration in fw_cfg: in
// Fedora CoreOS and in Flatcar.
var ignitionNames = []string{"opt/com.coreos/config", "opt/org.flatcar-linux/config"}

// ignitionArgs returns the entries of fw_cfg with the content of a file.
func ignitionArgs(file string) []string {
	var args []string
	for _, name := range ignitionNames {
		args = append(args, "-fw_cfg", "name="+name+",file="+strings.ReplaceAll(file, ",", ",,"))
	}
	return args
}

// chardevArgs returns the monitors of vmand and the operator, the serial console and
// the port of the guest agent. console is the path of the console's files without
// their suffixes. Listening sockets are vmand's, passed as descriptors.
func chardevArgs(fds bootFDs, console string) []string {
	listen := func(id string, fd int) []string {
		return []string{"-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", id, fd)}
	}
	var args []string
	args = append(args, listen(qmpChardev, fds.qmp)...)
	args = append(args, "-mon", "chardev="+qmpChardev+",mode=control")
	args = append(args, listen(operatorChardev, fds.operator)...)
	args = append(args, "-mon", "chardev="+operatorChardev+",mode=control")
	args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", fds.serialLog, serialLogFDSet))
	args = append(args, "-chardev", fmt.Sprintf("pipe,id=%s,path=%s,logfile=/dev/fdset/%d,logappend=on",
		serialChardev, strings.ReplaceAll(console, ",", ",,"), serialLogFDSet))
	args = append(args, "-serial", "chardev:"+serialChardev)
	return append(args, listen(agentChardev, fds.agent)...)
}

// deviceArgs returns the devices of a VM with their backends.
func deviceArgs(s vm.Spec, l layout, fds bootFDs) ([]string, error) {
	all := machineDevices(s, l)
	for _, d := range s.Disks {
		scsi, err := diskSCSI(d)
		if err != nil {
			return nil, err
		}
		all = append(all, argument{"-blockdev", diskNodes(d, l)}, argument{"-device", scsi})
	}
	for _, c := range s.CDROMs {
		drive, err := cdromSCSI(c)
		if err != nil {
			return nil, err
		}
		all = append(all, argument{"-blockdev", cdromNodes(s.ID, c, l)}, argument{"-device", drive})
	}
	for i, p := range s.Ports {
		var files portFDs
		if i < len(fds.ports) {
			files = fds.ports[i]
		}
		netdev, card, err := nicPair(p, files)
		if err != nil {
			return nil, err
		}
		if i == 0 && s.Boot == vm.BootNetwork {
			card.BootIndex, card.ROMFile = new(nicBootIndex), nil
		}
		all = append(all, argument{"-netdev", netdev}, argument{"-device", card})
	}
	var args []string
	if fds.base != 0 {
		args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", fds.base, baseFDSet))
	}
	for _, a := range all {
		value, err := json.Marshal(a.value)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", a.option, err)
		}
		args = append(args, a.option, string(value))
	}
	return args, nil
}

// argument is an option and its value, which is passed as JSON.
type argument struct {
	option string
	value  any
}

// machineDevices returns the devices that every VM has. pvpanic is the ISA variant:
// Linux has a driver for it since 3.9, for the PCI variant only since 5.13. The
// watchdog does nothing until the guest starts it; guests of every kind have a
// driver for its model.
func machineDevices(s vm.Spec, l layout) []argument {
	args := []argument{
		{"-blockdev", rootDisk(s, l)},
		{"-device", device{
			Driver:     "virtio-blk-pci",
			ID:         rootDevice,
			Bus:        pciBus,
			Addr:       pciAddr(rootSlot, 0),
			Drive:      rootNode,
			BootIndex:  new(vm.RootBootIndex),
			WriteError: "stop",
			ReadError:  "stop",
		}},
		{"-device", device{Driver: "virtio-scsi-pci", ID: scsiDevice, Bus: pciBus, Addr: pciAddr(scsiSlot, 0)}},
		{"-device", device{Driver: "virtio-rng-pci", ID: "rng0", Bus: pciBus, Addr: pciAddr(rngSlot, 0)}},
		{"-device", device{Driver: "pvpanic", ID: "pvpanic0"}},
		{"-device", device{Driver: "i6300esb", ID: watchdogDevice, Bus: pciBus, Addr: pciAddr(dogSlot, 0)}},
		{"-device", device{Driver: "virtio-serial-pci", ID: vportsDevice, Bus: pciBus, Addr: pciAddr(vportSlot, 0)}},
		{"-device", device{
			Driver:  "virtserialport",
			ID:      agentDevice,
			Bus:     vportsBus,
			Number:  1,
			Chardev: agentChardev,
			Name:    agentPortName,
		}},
	}
	for n := range rootPorts {
		args = append(args, argument{"-device", device{
			Driver:        "pcie-root-port",
			ID:            rootPort(n),
			Bus:           pciBus,
			Addr:          pciAddr(portsSlot+n/8, n%8),
			Multifunction: n%8 == 0,
			Chassis:       n + 1,
		}})
	}
	return args
}

// pciAddr returns the address of a PCI function in QEMU's syntax.
func pciAddr(slot, function int) string {
	if function == 0 {
		return fmt.Sprintf("0x%x", slot)
	}
	return fmt.Sprintf("0x%x.0x%x", slot, function)
}
