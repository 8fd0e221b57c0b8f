package observer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vmand/vm"
)

// IssueType names a kind of disagreement between records and host. Its values are stable.
type IssueType string

// The values of [IssueType].
const (
	VMStateMismatch       IssueType = "vm_state_mismatch"
	OrphanProcess         IssueType = "orphan_process"
	MissingDisk           IssueType = "missing_disk"
	OrphanDisk            IssueType = "orphan_disk"
	DiskStateInconsistent IssueType = "disk_state_inconsistent"
	DiskSizeMismatch      IssueType = "disk_size_mismatch"
	QMPUnreachable        IssueType = "qmp_unreachable"  // the process is alive, but its monitor does not answer
	RuntimeDrift          IssueType = "runtime_drift"    // the devices or the files of a QEMU differ from the records
	StorageLow            IssueType = "storage_low"      // the file system of the disks is nearly full
	NetworkDrift          IssueType = "network_drift"    // a network on the host differs from its record
	SlowAccelerator       IssueType = "slow_accelerator" // a VM runs in emulation although KVM works now
	MissingImage          IssueType = "missing_image"    // the content of an image is missing or differs from its record
	OrphanImage           IssueType = "orphan_image"     // content belongs to no recorded image
)

// IssueTypes lists every type but those of networks, which are [vm.ProblemKinds].
var IssueTypes = []IssueType{
	VMStateMismatch,
	OrphanProcess,
	MissingDisk,
	OrphanDisk,
	DiskStateInconsistent,
	DiskSizeMismatch,
	QMPUnreachable,
	RuntimeDrift,
	StorageLow,
	NetworkDrift,
	SlowAccelerator,
	MissingImage,
	OrphanImage,
}

const (
	// mutePasses is the number of passes in a row without an answer on the monitor that
	// makes an issue: a QEMU that flushes a disk or waits for a slow one does not answer.
	mutePasses = 3
	// lowPercent is the free part of a file system, in percent, below which it is nearly full.
	lowPercent = 5
)

// ofFiles reports whether finding an issue of type t needs the lists of files or the records
// of inactive resources. A light pass reads neither, so it can miss these issues.
func (t IssueType) ofFiles() bool {
	switch t {
	case MissingDisk, OrphanDisk, DiskStateInconsistent, DiskSizeMismatch, RuntimeDrift, MissingImage, OrphanImage:
		return true
	}
	return false
}

// Recorded holds the records that the host can contradict.
type Recorded struct {
	// Partial is true if VMs holds only the VMs that are active or have a process, Disks
	// only the disks of these VMs, and the survey no lists of files. A resource that is
	// not listed is then neither an orphan nor missing.
	Partial bool
	VMs     []vm.VM
	Disks   []vm.Disk
	Images  []vm.Image
	Open    []vm.Operation // operations that have not ended
}

// An Action is one disagreement between the records and the host.
type Action struct {
	Type     IssueType
	Resource vm.Resource // the id of an orphan image is its SHA-256
	Details  string      // for people
	Settle   bool        // the [Settler] resolves it; false if that could lose data
	// Passes is the number of passes in a row that must find the disagreement before it
	// is reported without a confirmation by the Settler, which holds the resource's lock:
	// a survey may be older than the last change. 0 means that it needs a confirmation.
	Passes int
	// Cure describes the repair if it leaves the state of the resource unchanged.
	Cure string
}

// Plan returns the disagreements between the records and the host, ordered by resource and
// type; none if they agree. It leaves out the resources for which busy returns true, because
// the operation that holds them will record their state. Storage is low if less than lowMiB
// or less than 5 % of it is free; with lowMiB 0 it is never low.
func Plan(recorded Recorded, seen vm.Survey, lowMiB int64, busy func(vm.Resource) bool) []Action {
	p := newPlanner(seen, recorded.Partial)
	for _, v := range recorded.VMs {
		p.addVM(v)
	}
	for _, d := range recorded.Disks {
		p.addDisk(d)
	}
	p.images(recorded.Images)
	return p.finish(recorded.Open, lowMiB, busy)
}

// A planner makes a [Plan] in steps, for callers that do not hold all records in memory: call
// addVM for all VMs, then addDisk for all disks, then images, then finish.
type planner struct {
	seen    vm.Survey
	partial bool                 // see [Recorded]
	vms     map[string]bool      // ids of the VMs added
	disks   map[string]bool      // ids of the disks added; false if a file is needed to judge its state
	owner   map[string]string    // by id of a plugged disk: its VM by the records, "" if none
	held    map[vm.Resource]bool // resources with a disagreement that an operation holds
	plugged map[string]bool      // ids of the disks that QEMU processes have
	plan    []Action
}

func newPlanner(seen vm.Survey, partial bool) *planner {
	p := &planner{
		seen:    seen,
		partial: partial,
		vms:     make(map[string]bool, len(seen.VMFiles)),
		disks:   make(map[string]bool, len(seen.DiskFiles)),
		owner:   map[string]string{},
		held:    map[vm.Resource]bool{},
		plugged: map[string]bool{},
	}
	for _, o := range seen.VMs {
		for _, id := range o.Plugged {
			p.plugged[id] = true
		}
	}
	return p
}

// report plans an issue that vmand does not repair, for which passes passes in a row must
// agree.
func (p *planner) report(t IssueType, on vm.Resource, passes int, format string, args ...any) {
	p.plan = append(p.plan, Action{Type: t, Resource: on, Passes: passes, Details: fmt.Sprintf(format, args...)})
}

// repair plans an issue that the Settler repairs. For passes and cure see [Action].
func (p *planner) repair(t IssueType, on vm.Resource, passes int, details, cure string) {
	p.plan = append(p.plan, Action{Type: t, Resource: on, Settle: true, Passes: passes, Details: details, Cure: cure})
}

func (p *planner) addVM(v vm.VM) {
	p.vms[v.ID] = true
	p.vm(v)
	p.nics(v)
	p.drives(v)
}

// addDisk must be called after addVM was called for all VMs.
func (p *planner) addDisk(d vm.Disk) {
	p.disks[d.ID] = d.State != vm.DiskError
	if p.plugged[d.ID] {
		p.owner[d.ID] = d.VMID
	}
	p.disk(d)
}

// strangers returns the plugged disks that were not added.
func (p *planner) strangers() (ids []string) {
	for id := range p.plugged {
		if _, added := p.disks[id]; !added {
			ids = append(ids, id)
		}
	}
	return ids
}

// finish returns the plan.
func (p *planner) finish(open []vm.Operation, lowMiB int64, busy func(vm.Resource) bool) []Action {
	p.drift()
	p.storage(lowMiB)
	p.orphans()
	p.operations(open)
	plan := slices.DeleteFunc(p.plan, func(a Action) bool {
		if !busy(a.Resource) {
			return false
		}
		if a.Type.ofFiles() {
			p.held[a.Resource] = true
		}
		return true
	})
	slices.SortFunc(plan, func(a, b Action) int {
		return cmp.Or(cmp.Compare(a.Resource.String(), b.Resource.String()), cmp.Compare(a.Type, b.Type))
	})
	return plan
}

// covers reports whether the plan contains f if f is still true.
func (p *planner) covers(f finding) bool {
	if !p.partial || !f.issue.ofFiles() {
		return true
	}
	id := f.resource.ID
	switch f.issue {
	case RuntimeDrift:
		return p.vms[id]
	case DiskStateInconsistent:
		return p.disks[id]
	case MissingDisk:
		_, looked := p.seen.VMFiles[id]
		return f.resource.Kind == vm.VMKind && looked
	}
	return false
}

// vm plans for a VM whose state, monitor or root disk differs from its record.
func (p *planner) vm(v vm.VM) {
	resource := vm.VMResource(v.ID)
	seen := p.seen.VMs[v.ID]
	switch verdict := vm.Settle(v.State, v.Reason, seen); {
	case !agrees(v, verdict):
		details := fmt.Sprintf("recorded as %s (%s), but %s", v.State, v.Reason, describe(seen))
		p.repair(VMStateMismatch, resource, 0, details, "")
	case v.HasRoomAgain(seen):
		details := fmt.Sprintf("paused because the file system of a disk was full; now %d MiB of it are free", seen.FreeMiB)
		p.repair(VMStateMismatch, resource, 0, details, "")
	}
	if seen.Alive() && seen.Status == vm.StatusMute {
		p.report(QMPUnreachable, resource, mutePasses,
			"QEMU process %d is alive, but does not answer on its monitor; vmand does not end it", seen.PID)
	}
	if seen.Alive() && v.Accel == vm.TCG && p.seen.Accel == vm.KVM {
		p.report(SlowAccelerator, resource, 1,
			"VM %s runs in software emulation (TCG) and is slow, although KVM works now: restart it", v.ID)
	}
	p.rootDisk(v.ID)
}

// addInactive adds a VM that is neither active nor has a process. It is a no-op for a VM
// that was added, and for one that has become active since the active VMs were read: the
// next pass looks at that.
func (p *planner) addInactive(s vm.VMSummary) {
	if p.vms[s.ID] {
		return
	}
	p.vms[s.ID] = true
	if s.State == vm.Stopped {
		p.rootDisk(s.ID)
	}
}

// rootDisk finds a root disk without a file.
func (p *planner) rootDisk(vmID string) {
	if exists, listed := p.seen.VMFiles[vmID]; !exists && (listed || !p.partial) {
		p.report(MissingDisk, vm.VMResource(vmID), 2, "the root disk of VM %s is missing", vmID)
	}
}

// agrees reports whether the record of v matches the verdict. QEMU reports the same status
// for all I/O errors, so a recorded full disk matches any I/O error.
func agrees(v vm.VM, verdict vm.Verdict) bool {
	if verdict.State != v.State || verdict.End {
		return false
	}
	return verdict.Reason == v.Reason || verdict.Reason == vm.ReasonIOError && v.Reason == vm.ReasonDiskFull
}

func describe(seen vm.Observation) string {
	switch {
	case !seen.Alive():
		return "no QEMU process runs"
	case seen.Status == vm.StatusMute:
		return fmt.Sprintf("QEMU process %d does not answer", seen.PID)
	}
	return fmt.Sprintf("QEMU process %d reports %s", seen.PID, seen.Status)
}

// disk plans for a data disk whose file or state differs from its record.
func (p *planner) disk(d vm.Disk) {
	resource := vm.DiskResource(d.ID)
	size, exists := p.seen.DiskFiles[d.ID]
	if d.State != vm.DiskCreating && !exists && !p.partial {
		p.repair(MissingDisk, resource, 2, fmt.Sprintf("the file of disk %s is missing", d.ID), "")
	}
	if details := p.inconsistency(d); details != "" {
		p.repair(DiskStateInconsistent, resource, 2, details, "")
	}
	if size != 0 && size != d.SizeMiB && !d.State.Transitional() {
		p.repair(DiskSizeMismatch, resource, 2,
			fmt.Sprintf("recorded with %d MiB, but its file has %d MiB", d.SizeMiB, size),
			fmt.Sprintf("recorded %d MiB in place of %d MiB", size, d.SizeMiB))
	}
}

// inconsistency describes why the recorded state of a disk is wrong, or returns "". Every
// transitional state is wrong: a disk with a running operation is busy, and [Plan] leaves
// busy resources out.
func (p *planner) inconsistency(d vm.Disk) string {
	_, exists := p.seen.DiskFiles[d.ID]
	switch {
	case d.State.Transitional() && d.VMID != "":
		return fmt.Sprintf("recorded as %s (VM %s), but no operation is running", d.State, d.VMID)
	case d.State.Transitional():
		return fmt.Sprintf("recorded as %s, but no operation is running", d.State)
	case d.State == vm.DiskAvailable && d.VMID != "":
		return fmt.Sprintf("recorded as available, but also with VM %s", d.VMID)
	case d.State == vm.DiskError && exists:
		return "recorded as error, but its file exists"
	case d.State != vm.DiskAttached:
		return ""
	case d.VMID == "":
		return "recorded as attached, but without a VM"
	case !p.vms[d.VMID]:
		return fmt.Sprintf("recorded as attached to VM %s, which does not exist", d.VMID)
	}
	if seen := p.seen.VMs[d.VMID]; seen.Alive() && seen.Plugged != nil && !slices.Contains(seen.Plugged, d.ID) {
		return fmt.Sprintf("recorded as attached to VM %s, but its QEMU does not have the disk", d.VMID)
	}
	return ""
}

// drift reports the disks that the QEMU of a recorded VM has and that are recorded on no VM
// or on another one. Unplugging a disk that a guest may write to could lose data, so vmand
// only reports them.
func (p *planner) drift() {
	for id, o := range p.seen.VMs {
		if o.Lost != "" && p.vms[id] {
			p.plan = append(p.plan, Action{Type: RuntimeDrift, Resource: vm.VMResource(id), Passes: 2,
				Details: fmt.Sprintf("%s of QEMU process %d is missing: the next vmand cannot ask this QEMU; "+
					"stop the VM and start it again, with force if its monitor does not answer", o.Lost, o.PID)})
			continue
		}
		if !p.vms[id] {
			continue // reported as an orphan
		}
		var extra []string
		for _, disk := range slices.Sorted(slices.Values(o.Plugged)) {
			switch vmID, known := p.owner[disk]; {
			case !known:
				extra = append(extra, fmt.Sprintf("%s, which is not recorded", disk))
			case vmID == "":
				extra = append(extra, fmt.Sprintf("%s, which is recorded without a VM", disk))
			case vmID != id:
				extra = append(extra, fmt.Sprintf("%s, which is recorded on VM %s", disk, vmID))
			}
		}
		if extra != nil {
			p.report(RuntimeDrift, vm.VMResource(id), 2,
				"QEMU process %d has data disk %s; vmand does not unplug it", o.PID, strings.Join(extra, "; "))
		}
	}
}

// drives plans for an active VM whose CD-ROM drives differ from the records, because a
// change of them was interrupted.
func (p *planner) drives(v vm.VM) {
	seen := p.seen.VMs[v.ID]
	if v.State != vm.Running && v.State != vm.Paused || v.SameCDROMs(seen) {
		return
	}
	p.repair(RuntimeDrift, vm.VMResource(v.ID), 2,
		fmt.Sprintf("QEMU process %d has the CD-ROM drives %q, but others are recorded", seen.PID, seen.CDROMs),
		"changed the CD-ROM drives to those recorded")
}

// images plans for the images whose content differs from the record, and reports content of
// no image. Disks of orphans may be based on such content, so vmand keeps it. It does nothing
// if the survey has no list of content.
func (p *planner) images(recorded []vm.Image) {
	if p.seen.Images == nil {
		return
	}
	known := map[string]bool{}
	for _, i := range recorded {
		known[i.SHA256] = true
		resource := vm.ImageResource(i.Name)
		size, exists := p.seen.Images[i.SHA256]
		switch {
		case i.State == vm.ImageImporting:
			details := fmt.Sprintf("image %s is recorded as importing, but no operation is running", i.Name)
			p.repair(MissingImage, resource, 2, details, "")
		case i.State == vm.ImageAvailable && !exists:
			p.repair(MissingImage, resource, 2, fmt.Sprintf("the content of image %s is missing", i.Name), "")
		case i.State == vm.ImageError && exists:
			details := fmt.Sprintf("image %s is recorded as error, but its content exists", i.Name)
			p.repair(MissingImage, resource, 2, details, "")
		case i.State == vm.ImageAvailable && size != i.Bytes: // the disks based on it are damaged, too
			p.report(MissingImage, resource, 2,
				"the content of image %s (%s) has %d bytes instead of %d; import the same content again to replace it",
				i.Name, i.SHA256, size, i.Bytes)
		}
	}
	for sum := range p.seen.Images {
		if !known[sum] {
			p.report(OrphanImage, vm.ImageResource(sum), 2,
				"no image has this content; vmand keeps it, because disks that are not recorded may be based on it")
		}
	}
}

// storage reports a nearly full file system of the disks. It does nothing if the survey has
// no size.
func (p *planner) storage(lowMiB int64) {
	s := p.seen.Storage
	floor := max(lowMiB, s.SizeMiB*lowPercent/100)
	if lowMiB > 0 && s.SizeMiB > 0 && s.FreeMiB < floor {
		p.report(StorageLow, vm.Resource{Kind: vm.StorageKind, ID: s.Path}, 1,
			"%d of %d MiB are free at %s, less than %d MiB; free space before guests are paused",
			s.FreeMiB, s.SizeMiB, s.Path, floor)
	}
}

// operations plans for the open operations that no longer run, because vmand could not
// record how they ended. A running operation holds its resource, so [Plan] leaves it out.
func (p *planner) operations(open []vm.Operation) {
	for _, op := range open {
		issue := VMStateMismatch
		switch op.Resource.Kind {
		case vm.DiskKind:
			issue = DiskStateInconsistent
		case vm.ImageKind:
			issue = MissingImage
		}
		planned := func(a Action) bool { return a.Type == issue && a.Resource == op.Resource }
		if !slices.ContainsFunc(p.plan, planned) {
			details := fmt.Sprintf("operation %s (%s) is recorded as %s, but it no longer runs", op.ID, op.Kind, op.State)
			p.repair(issue, op.Resource, 0, details, "")
		}
	}
}

// orphans reports the processes and files on the host that are not recorded. After a restore
// of an old backup every newer VM is an orphan, so vmand only reports them.
func (p *planner) orphans() {
	for id, o := range p.seen.VMs {
		if !p.vms[id] {
			p.report(OrphanProcess, vm.VMResource(id), 2,
				"QEMU process %d runs VM %s, which is not recorded; adopt or terminate the orphan", o.PID, id)
		}
	}
	if p.partial {
		return
	}
	for id := range p.seen.VMFiles {
		if !p.vms[id] {
			p.report(OrphanDisk, vm.VMResource(id), 2,
				"the host has files of VM %s, which is not recorded; adopt or delete the orphan", id)
		}
	}
	for id := range p.seen.DiskFiles {
		if _, recorded := p.disks[id]; !recorded {
			p.report(OrphanDisk, vm.DiskResource(id), 2,
				"the host has a file of disk %s, which is not recorded; adopt or delete the orphan", id)
		}
	}
}
