package qemu

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"vmand/failpoint"
	"vmand/vm"
)

// cdromTarget is the SCSI target of the CD-ROM drives. That of the disks is 0.
const cdromTarget = 1

// cdromNodes describes the content of a drive.
func cdromNodes(vmID string, c vm.CDROM, l layout) blockNode {
	return *readNode(formatRaw, cdromAlias(c.ID), cdromFileNode(c.ID), cdromFile(vmID, c, l))
}

// cdromFile returns the path of the content of a drive.
func cdromFile(vmID string, c vm.CDROM, l layout) string {
	if c.ID == vm.SeedCDROM {
		return l.inState(vmSeed(vmID))
	}
	return l.content(c.SHA256)
}

// cdromSCSI describes the device of a drive. Like a disk's, its address is fixed
// for life: the seed's drive comes first, because cloud-init looks there, then the
// drives in the order of their numbers. The guest sees read errors.
func cdromSCSI(c vm.CDROM) (device, error) {
	lun, target, channel := 0, cdromTarget, 0
	if c.ID != vm.SeedCDROM {
		number, _ := strings.CutPrefix(c.ID, "cd-")
		if lun, _ = strconv.Atoi(number); lun < 1 || lun > vm.MaxCDROMs || c.ID != "cd-"+strconv.Itoa(lun) {
			return device{}, fault(vm.CodeInvalid, nil, "%q is no name of a CD-ROM drive", c.ID)
		}
		if !vm.ValidContent(c.SHA256) {
			return device{}, fault(vm.CodeInvalid, nil, "CD-ROM drive %s has no content: %q", c.ID, c.SHA256)
		}
	}
	drive := device{
		Driver:  "scsi-cd",
		ID:      cdromAlias(c.ID),
		Bus:     scsiBus,
		Channel: &channel,
		SCSIID:  &target,
		LUN:     &lun,
		Drive:   cdromAlias(c.ID),
	}
	if c.BootIndex != 0 {
		drive.BootIndex = new(c.BootIndex)
	}
	return drive, nil
}

// SetCDROMs implements [vm.Plugger].
func (d *Driver) SetCDROMs(ctx context.Context, vmID string, want []vm.CDROM) error {
	for _, c := range want {
		if _, err := cdromSCSI(c); err != nil {
			return err
		}
	}
	s, err := d.live(vmID)
	if err != nil {
		return err
	}
	has, err := s.cdroms(ctx)
	if err != nil {
		return err
	}
	var missing []vm.CDROM
	for _, c := range want {
		if has[c.ID] == (drive{true, cdromFile(vmID, c, d.layout)}) {
			delete(has, c.ID)
		} else {
			missing = append(missing, c)
		}
	}
	if err := d.checkCDROMs(vmID, missing); err != nil { // QEMU has the files of the others open
		return err
	}
	if err := s.ejectAll(ctx, has); err != nil {
		return err
	}
	for _, c := range missing {
		if err := s.insert(ctx, c, d.layout); err != nil {
			return err
		}
	}
	return nil
}

// drive is a CD-ROM drive in QEMU. An interrupted attempt leaves a block
// node without a device.
type drive struct {
	device bool
	file   string // of the block node; empty if there is none
}

// cdroms returns the CD-ROM drives of the machine by id.
func (s *session) cdroms(ctx context.Context) (map[string]drive, error) {
	has, err := s.peripherals(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := s.nodes(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[string]drive)
	for _, id := range has.cdroms {
		all[id] = drive{device: true}
	}
	for _, n := range nodes {
		if id, ok := cdromOfAlias(n.Name); ok {
			all[id] = drive{device: all[id].device, file: n.File}
		}
	}
	return all, nil
}

// ejectAll removes drives, with the block nodes of their content.
func (s *session) ejectAll(ctx context.Context, drives map[string]drive) error {
	for id, has := range drives {
		u := cdromUnplugging(id)
		if !has.device {
			if err := s.removeBackend(ctx, u); err != nil {
				return err
			}
			continue
		}
		if err := s.unplug(ctx, u); err != nil {
			return err
		}
	}
	return nil
}

// cdromUnplugging returns how to remove a CD-ROM drive.
func cdromUnplugging(id string) unplugging {
	name := "CD-ROM drive " + id
	return unplugging{
		device:         cdromAlias(id),
		name:           name,
		removeBackend:  func(ctx context.Context, s *session) error { return s.removeNode(ctx, cdromAlias(id), name) },
		deviceDeleted:  func() { failpoint.Hit("cdrom.device-deleted") },
		backendDeleted: func() { failpoint.Hit("cdrom.node-deleted") },
	}
}

// insert plugs a drive of which QEMU has nothing.
func (s *session) insert(ctx context.Context, c vm.CDROM, l layout) error {
	scsi, err := cdromSCSI(c)
	if err != nil {
		return err
	}
	if err := s.blockdevAdd(ctx, cdromNodes(s.id, c, l)); err != nil {
		return err
	}
	failpoint.Hit("cdrom.node-added")
	if err := s.addDrive(ctx, scsi); err != nil {
		return err
	}
	failpoint.Hit("cdrom.device-added")
	return nil
}

// checkCDROMs fails if QEMU cannot read the content of a drive. It skips the seed,
// which is written just before it is inserted.
func (d *Driver) checkCDROMs(vmID string, drives []vm.CDROM) error {
	for _, c := range drives {
		if c.ID == vm.SeedCDROM {
			continue
		}
		if err := d.checkContent(c.SHA256); err != nil {
			return fault(vm.CodeOperationFailed, err, "image %s (content %s) in the CD-ROM drive %s of VM %s cannot be read",
				c.Image, c.SHA256, c.ID, vmID)
		}
	}
	return nil
}

// checkContent fails if QEMU cannot read content.
func (d *Driver) checkContent(sha256 string) error {
	return d.account.CanRead(d.layout.content(sha256))
}

// checkBaseOf fails if QEMU cannot read the content that a file is an overlay of.
// what names the file in messages. An image of the operator's is checked when it is
// opened.
func (d *Driver) checkBaseOf(f vm.DiskFile, what string) error {
	content, ok := f.Content()
	if !ok {
		return nil
	}
	if err := d.checkContent(content); err != nil {
		return fault(vm.CodeOperationFailed, err, "image %s (content %s), the base of %s, cannot be read",
			f.Image, content, what)
	}
	return nil
}

// idsOf returns the sorted ids of drives.
func idsOf(drives []vm.CDROM) []string {
	ids := []string{}
	for _, c := range drives {
		ids = append(ids, c.ID)
	}
	slices.Sort(ids)
	return ids
}
