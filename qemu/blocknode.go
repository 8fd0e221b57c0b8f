package qemu

import (
	"encoding/json"
	"fmt"

	"vmand/vm"
)

// blockNode is the argument of -blockdev and blockdev-add, and the source of a copy
// by qemu-img.
type blockNode struct {
	Driver   string     `json:"driver"`
	NodeName string     `json:"node-name"`
	ReadOnly bool       `json:"read-only,omitempty"`
	Discard  string     `json:"discard,omitempty"`
	Filename string     `json:"filename,omitempty"`
	File     *blockNode `json:"file,omitempty"`
	Backing  any        `json:"backing,omitempty"` // a *blockNode or noBacking
}

// noBacking makes QEMU ignore the backing file that the header of an image names.
var noBacking = json.RawMessage("null")

// qcow2Node describes a writable qcow2 file. The cache mode is QEMU's default,
// write-back: the guest's flushes reach the disk, so no data is lost that the guest
// believes safe, and it works on every file system (O_DIRECT does not).
// discard=unmap returns blocks that the guest trims to the host.
func qcow2Node(name, fileName, path string, backing any) blockNode {
	return blockNode{
		Driver:   formatQcow2,
		NodeName: name,
		Discard:  "unmap",
		File:     &blockNode{Driver: "file", NodeName: fileName, Filename: path, Discard: "unmap"},
		Backing:  backing,
	}
}

// readNode describes a read-only image, which any number of QEMUs may read at a
// time. If its format can name a backing file, that is ignored.
func readNode(format, name, fileName, path string) *blockNode {
	n := &blockNode{
		Driver:   format,
		NodeName: name,
		ReadOnly: true,
		File:     &blockNode{Driver: "file", NodeName: fileName, ReadOnly: true, Filename: path},
	}
	if format == formatQcow2 || format == formatVMDK {
		n.Backing = noBacking
	}
	return n
}

// diskNodes describes a data disk and its base.
func diskNodes(d vm.Disk, l layout) blockNode {
	var backing any = noBacking
	if content, ok := d.Content(); ok {
		backing = readNode(d.BaseFormat, diskBaseNode(d.ID), diskBaseFileNode(d.ID), l.content(content))
	}
	return qcow2Node(diskNode(d.ID), diskFileNode(d.ID), l.inState(dataDisk(d.ID)), backing)
}

// rootDisk describes a root disk and its base. QEMU opens a base that is content of
// an image itself. The operator's image is passed as a descriptor.
func rootDisk(s vm.Spec, l layout) blockNode {
	var backing any = noBacking
	if content, ok := s.Root.Content(); ok {
		backing = readNode(s.Root.BaseFormat, baseNode, baseFileNode, l.content(content))
	} else if s.Root.Base != "" {
		backing = readNode(s.Root.BaseFormat, baseNode, baseFileNode, fmt.Sprintf("/dev/fdset/%d", baseFDSet))
	}
	return qcow2Node(rootNode, rootFileNode, l.inState(vmRootDisk(s.ID)), backing)
}

// diskSCSI describes the device of a data disk. scsi-hd on virtio-scsi can be
// unplugged without the guest's help. Its LUN is its slot, for life. The rest of
// its address is explicit, because QEMU would give each disk another target. A
// Linux guest names it by device_id, which udev reads from VPD page 0x83; serial is
// the same for tools that read page 0x80. On an I/O error (such as a full host
// disk) the guest is stopped instead of seeing the error, so it loses no data.
func diskSCSI(d vm.Disk) (device, error) {
	lun, ok := vm.Slot(d.MountPoint)
	if !ok {
		return device{}, fault(vm.CodeInvalid, nil, "disk %s has no slot: mount point %q", d.ID, d.MountPoint)
	}
	var zero int
	return device{
		Driver:     "scsi-hd",
		ID:         diskDevice(d.ID),
		Bus:        scsiBus,
		Channel:    &zero,
		SCSIID:     &zero,
		LUN:        &lun,
		Drive:      diskNode(d.ID),
		Serial:     d.ID,
		DeviceID:   d.ID,
		WriteError: "stop",
		ReadError:  "stop",
	}, nil
}
