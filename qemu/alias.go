package qemu

import (
	"strconv"
	"strings"
)

// The ids of the devices that every VM has. They are part of a VM's identity: the
// command line and a later hot-plug must use the same ids, also across versions of
// vmand.
const (
	rootDevice   = "root"      // the virtio-blk device the VM boots from
	rootNode     = "root-disk" // its qcow2 node
	rootFileNode = "root-file"
	baseNode     = "base-disk" // the base of the root disk, if that is an overlay
	baseFileNode = "base-file"

	watchdogDevice = "watchdog0"

	vportsDevice  = "vports0" // the controller of virtio serial ports
	vportsBus     = vportsDevice + ".0"
	agentDevice   = "agent0"                 // the port of the guest agent
	agentPortName = "org.qemu.guest_agent.0" // its name in the guest, which the agent opens

	scsiDevice = "scsi0"
	scsiBus    = scsiDevice + ".0"
	pciBus     = "pcie.0"

	qmpChardev      = "qmp"
	operatorChardev = "operator"
	serialChardev   = "console"
	agentChardev    = "agent"
)

const (
	diskDevicePrefix = "disk-"
	diskNodePrefix   = "data-"
	nicDevicePrefix  = "nic-"
	cdromPrefix      = "cdrom-" // of both the device and its node
)

// A node-name has at most 31 characters (block.h in QEMU's source). A data disk's
// id has at most 20.
func diskDevice(diskID string) string   { return diskDevicePrefix + diskID }
func diskNode(diskID string) string     { return diskNodePrefix + diskID }
func diskFileNode(diskID string) string { return "file-" + diskID }

// The nodes of the image content that a data disk is an overlay of.
func diskBaseNode(diskID string) string     { return "image-" + diskID }
func diskBaseFileNode(diskID string) string { return "imgfile-" + diskID }

func cdromAlias(cdromID string) string    { return cdromPrefix + cdromID }
func cdromFileNode(cdromID string) string { return "cdfile-" + cdromID }

// cdromOfAlias returns the id of the CD-ROM drive that has the alias as its device
// or node, if there is one.
func cdromOfAlias(alias string) (cdromID string, ok bool) {
	return strings.CutPrefix(alias, cdromPrefix)
}

// diskOfDevice returns the id of the data disk with a device id, if it is one.
func diskOfDevice(device string) (diskID string, ok bool) {
	return strings.CutPrefix(device, diskDevicePrefix)
}

// nicOfDevice returns the slot of the NIC with a device id, if it is one.
func nicOfDevice(device string) (slot int, ok bool) {
	number, ok := strings.CutPrefix(device, nicDevicePrefix)
	slot, err := strconv.Atoi(number)
	return slot, ok && err == nil
}

func nicDevice(slot int) string { return nicDevicePrefix + strconv.Itoa(slot) }
func nicNetdev(slot int) string { return "net-" + strconv.Itoa(slot) }
func rootPort(n int) string     { return "port-" + strconv.Itoa(n) }
