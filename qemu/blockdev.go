package qemu

import (
	"context"
	"slices"

	"vmand/failpoint"
	"vmand/host"
	"vmand/vm"
)

const mib = 1 << 20

// namedNode is a block node that QEMU has.
type namedNode struct {
	Name string `json:"node-name"`
	File string `json:"file"` // the path of the file below it
}

// nodes returns the block nodes that QEMU has.
func (s *session) nodes(ctx context.Context) ([]namedNode, error) {
	var nodes []namedNode
	args := struct {
		Flat bool `json:"flat"` // else every backing chain is described in full
	}{true}
	err := s.execute(ctx, queryTimeout, "query-named-block-nodes", args, &nodes)
	return nodes, err
}

// hasNode reports whether QEMU has a block node of a name.
func (s *session) hasNode(ctx context.Context, name string) (bool, error) {
	nodes, err := s.nodes(ctx)
	return slices.ContainsFunc(nodes, func(n namedNode) bool { return n.Name == name }), err
}

// ResizeDisk implements [vm.Driver]. The new size is on the disk when it
// returns.
func (d *Driver) ResizeDisk(ctx context.Context, disk vm.Disk, sizeMiB int64) error {
	now, err := d.DiskSize(ctx, disk.ID)
	if err != nil {
		return err
	}
	if sizeMiB < now {
		return fault(vm.CodeInvalid, nil, "disk %s has %d MiB and cannot be made smaller (%d MiB)", disk.ID, now, sizeMiB)
	}
	if sizeMiB > now {
		if err := d.grow(ctx, disk, sizeMiB*mib); err != nil {
			return err
		}
		failpoint.Hit("resize.grown")
	}
	return fileFault(host.Sync(d.state, dataDisk(disk.ID)), "grow disk %s", disk.ID)
}

// grow lets whoever has the file open do it: QEMU, if the disk is plugged.
func (d *Driver) grow(ctx context.Context, disk vm.Disk, bytes int64) error {
	if disk.VMID != "" {
		s, err := d.session(disk.VMID)
		if err != nil {
			return fault(vm.CodeOperationFailed, err, "look for the QEMU process of vm %s", disk.VMID)
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
