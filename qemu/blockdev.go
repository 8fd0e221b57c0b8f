package qemu

import (
	"context"
	"slices"

	"vmand/failpoint"
	"vmand/host"
	"vmand/vm"
)

const mib = 1 << 20

// namedNode is a block node of QEMU's.
type namedNode struct {
	Name string `json:"node-name"`
	File string `json:"file"` // the path of the file below it
}

// nodes returns the block nodes of QEMU.
func (s *session) nodes(ctx context.Context) ([]namedNode, error) {
	var nodes []namedNode
	args := struct {
		Flat bool `json:"flat"` // false describes every backing chain in full
	}{true}
	err := s.execute(ctx, queryTimeout, "query-named-block-nodes", args, &nodes)
	return nodes, err
}

// hasNode reports whether QEMU has a block node with a name.
func (s *session) hasNode(ctx context.Context, name string) (bool, error) {
	nodes, err := s.nodes(ctx)
	return slices.ContainsFunc(nodes, func(n namedNode) bool { return n.Name == name }), err
}

// ResizeDisk implements [vm.Files]. The new size is durable when it returns.
func (d *Driver) ResizeDisk(ctx context.Context, disk vm.Disk, sizeMiB int64) error {
	now, err := d.diskBytes(disk.ID)
	if err != nil {
		return err
	}
	if sizeMiB*mib < now {
		return fault(vm.CodeInvalid, nil, "disk %s has %d MiB and cannot shrink to %d MiB", disk.ID, ceilMiB(now), sizeMiB)
	}
	if sizeMiB*mib > now {
		if err := d.grow(ctx, disk, sizeMiB*mib); err != nil {
			return err
		}
		failpoint.Hit("resize.grown")
	}
	return fileFault(host.Sync(d.state, dataDisk(disk.ID)), "grow disk %s", disk.ID)
}

// grow grows a disk by QEMU if it is plugged, else by qemu-img.
func (d *Driver) grow(ctx context.Context, disk vm.Disk, bytes int64) error {
	if disk.VMID != "" {
		s, err := d.session(disk.VMID)
		if err != nil {
			return fault(vm.CodeOperationFailed, err, "look for the QEMU process of VM %s", disk.VMID)
		}
		if s != nil {
			plugged, err := s.pluggedDisks(ctx)
			if err != nil {
				return err
			}
			if slices.Contains(plugged, disk.ID) {
				return s.blockResize(ctx, diskNode(disk.ID), bytes)
			}
		}
	}
	return d.imgResize(ctx, disk.ID, bytes)
}
