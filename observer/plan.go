package observer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vmand/vm"
)

// IssueType says in one stable word what is wrong.
type IssueType string

// The ways in which records and host can disagree.
const (
	VMStateMismatch       IssueType = "vm_state_mismatch"
	OrphanProcess         IssueType = "orphan_process"
	MissingDisk           IssueType = "missing_disk"
	OrphanDisk            IssueType = "orphan_disk"
	DiskStateInconsistent IssueType = "disk_state_inconsistent"
	DiskSizeMismatch      IssueType = "disk_size_mismatch"
	QMPUnreachable        IssueType = "qmp_unreachable" // the process lives, its monitor is mute
	RuntimeDrift          IssueType = "runtime_drift"   // a QEMU is not what the records and the runtime directory say
	StorageLow            IssueType = "storage_low"     // the file system of the disks is nearly full
	NetworkDrift          IssueType = "network_drift"   // a network on the host is not as it is recorded
	MissingImage          IssueType = "missing_image"   // an image is recorded without its content, or not as it is
	OrphanImage           IssueType = "orphan_image"    // there is content that no image has
)

// IssueTypes lists every type.
var IssueTypes = []IssueType{VMStateMismatch, OrphanProcess, MissingDisk, OrphanDisk, DiskStateInconsistent,
	DiskSizeMismatch, QMPUnreachable, RuntimeDrift, StorageLow, NetworkDrift, MissingImage, OrphanImage}

const (
	// mutePasses is for how many passes a monitor must have been mute: a QEMU that
	// flushes a disk, or waits for a slow one, says nothing for a while.
	mutePasses = 3
	// lowPercent of a file system's size is too little room whatever its size is.
	lowPercent = 5
)

// ofFiles reports whether a light pass may not look at the findings of a type: they need
// the lists of files, or the records of what is not active.
func (t IssueType) ofFiles() bool {
	switch t {
	case MissingDisk, OrphanDisk, DiskStateInconsistent, DiskSizeMismatch, RuntimeDrift, MissingImage, OrphanImage:
		return true
	}
	return false
}

// Recorded is everything that is recorded and that a host can contradict.
type Recorded struct {
	// Partial says that VMs has only those that are active or have a process, Disks only
	// those on these VMs, and the survey no lists of files: nothing is an orphan or
	// missing because it is not listed.
	Partial bool
	VMs     []vm.VM
	Disks   []vm.Disk
	Images  []vm.Image
	Open    []vm.Operation // those that are not over
}

// An Action is one disagreement, and whether the [Settler] is to be asked to
// resolve it. What could lose data is never to be settled.
type Action struct {
	Type     IssueType
	Resource vm.Resource // the id of an orphan image is its SHA-256
	Details  string      // for a person
	Settle   bool
	// Passes is how many passes in a row must find it before it is an issue that
	// the Settler, under the resource's lock, has not confirmed: a survey may be
	// older than what an operation has just done. 0: it never is one.
	Passes int
	// Cure says what a settling does that leaves the state as it is.
	Cure string
}

// Plan returns where the records disagree with what the host shows, in order of
// resource and type, and nothing if they agree. What busy reports is left out:
// the operation that holds it will record how it is. Less free storage than
// lowMiB, or than 5 % of all, is too little; with 0 any is enough.
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

// A planner is [Plan] in steps, for callers that do not hold all records in memory: addVM
// for all VMs, addDisk for all disks, images, finish.
type planner struct {
	seen    vm.Survey
	partial bool                 // see [Recorded]
	vms     map[string]bool      // ids of the VMs added
	disks   map[string]bool      // ids of the disks added; false if a file is needed to judge its state
	owner   map[string]string    // by id of a plugged disk: the VM that it is recorded on, "" for none
	held    map[vm.Resource]bool // those with a disagreement that an operation holds
	plugged map[string]bool      // ids of the disks that a QEMU has
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

// covers reports whether the plan would have f if it were still true.
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

func (p *planner) vm(v vm.VM) {
	resource := vm.VMResource(v.ID)
	seen := p.seen.VMs[v.ID]
	switch verdict := vm.Settle(v.State, v.Reason, seen); {
	case !agrees(v, verdict):
		p.plan = append(p.plan, Action{Type: VMStateMismatch, Resource: resource, Settle: true,
			Details: fmt.Sprintf("recorded as %s (%s), but %s", v.State, v.Reason, describe(seen))})
	case v.HasRoomAgain(seen):
		p.plan = append(p.plan, Action{Type: VMStateMismatch, Resource: resource, Settle: true,
			Details: fmt.Sprintf("paused because the file system of a disk was full; %d MiB of it are free again", seen.FreeMiB)})
	}
	if seen.Alive() && seen.Status == vm.StatusMute {
		p.plan = append(p.plan, Action{Type: QMPUnreachable, Resource: resource, Passes: mutePasses,
			Details: fmt.Sprintf("QEMU process %d lives and does not answer on its monitor; it is left alone", seen.PID)})
	}
	if there, looked := p.seen.VMFiles[v.ID]; !there && (looked || !p.partial) {
		p.plan = append(p.plan, Action{Type: MissingDisk, Resource: resource, Passes: 2,
			Details: fmt.Sprintf("the root disk of vm %s is not there", v.ID)})
	}
}

// agrees reports whether a VM is recorded as it is. QEMU has one word for all
// I/O errors; that the reason was a full disk is known from elsewhere.
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
	return fmt.Sprintf("QEMU process %d says %s", seen.PID, seen.Status)
}

func (p *planner) disk(d vm.Disk) {
	resource := vm.DiskResource(d.ID)
	size, there := p.seen.DiskFiles[d.ID]
	if d.State != vm.DiskCreating && !there && !p.partial {
		p.plan = append(p.plan, Action{Type: MissingDisk, Resource: resource, Settle: true, Passes: 2,
			Details: fmt.Sprintf("the file of disk %s is not there", d.ID)})
	}
	if details := p.inconsistency(d); details != "" {
		p.plan = append(p.plan, Action{Type: DiskStateInconsistent, Resource: resource, Settle: true, Passes: 2, Details: details})
	}
	if size != 0 && size != d.SizeMiB && !d.State.Transitional() {
		p.plan = append(p.plan, Action{Type: DiskSizeMismatch, Resource: resource, Settle: true, Passes: 2,
			Details: fmt.Sprintf("recorded with %d MiB, but its file has %d MiB", d.SizeMiB, size),
			Cure:    fmt.Sprintf("recorded %d MiB in place of %d MiB", size, d.SizeMiB)})
	}
}

// inconsistency says what is wrong with a disk's recorded state, or nothing.
// Every state that is a mere intent counts: no operation is at work on it, or it
// would be busy.
func (p *planner) inconsistency(d vm.Disk) string {
	_, there := p.seen.DiskFiles[d.ID]
	switch {
	case d.State.Transitional() && d.VMID != "":
		return fmt.Sprintf("recorded as %s (vm %s) while no operation is at work on it", d.State, d.VMID)
	case d.State.Transitional():
		return fmt.Sprintf("recorded as %s while no operation is at work on it", d.State)
	case d.State == vm.DiskAvailable && d.VMID != "":
		return fmt.Sprintf("recorded as available and yet on vm %s", d.VMID)
	case d.State == vm.DiskError && there:
		return "recorded as error, but its file is there"
	case d.State != vm.DiskAttached:
		return ""
	case !p.vms[d.VMID]:
		return fmt.Sprintf("recorded as attached to vm %q, which does not exist", d.VMID)
	}
	if seen := p.seen.VMs[d.VMID]; seen.Alive() && seen.Plugged != nil && !slices.Contains(seen.Plugged, d.ID) {
		return fmt.Sprintf("recorded as attached to vm %s, whose QEMU does not have it", d.VMID)
	}
	return ""
}

// drift finds the disks that the QEMU of a recorded VM has and the records do not give
// it. To unplug a disk that a guest may write to could lose data, so this is only reported.
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
				extra = append(extra, fmt.Sprintf("%s, which is recorded as being on no vm", disk))
			case vmID != id:
				extra = append(extra, fmt.Sprintf("%s, which is recorded as being on vm %s", disk, vmID))
			}
		}
		if extra != nil {
			p.plan = append(p.plan, Action{Type: RuntimeDrift, Resource: vm.VMResource(id), Passes: 2,
				Details: fmt.Sprintf("QEMU process %d has data disk %s; it is left alone", o.PID, strings.Join(extra, "; "))})
		}
	}
}

// drives finds a VM whose CD-ROM drives are not those that are recorded: a change
// of them was cut short.
func (p *planner) drives(v vm.VM) {
	seen := p.seen.VMs[v.ID]
	if v.State != vm.Running && v.State != vm.Paused || v.SameCDROMs(seen) {
		return
	}
	p.plan = append(p.plan, Action{Type: RuntimeDrift, Resource: vm.VMResource(v.ID), Settle: true, Passes: 2,
		Details: fmt.Sprintf("QEMU process %d has the CD-ROM drives %q, which are not those recorded", seen.PID, seen.CDROMs),
		Cure:    "made the CD-ROM drives those recorded"})
}

// images finds the images whose content is not as it is recorded, and content that
// no image has: the disks of orphans may be based on it, so it is only reported. When
// the host does not say what content there is, nothing is known.
func (p *planner) images(recorded []vm.Image) {
	if p.seen.Images == nil {
		return
	}
	known := map[string]bool{}
	for _, i := range recorded {
		known[i.SHA256] = true
		size, there := p.seen.Images[i.SHA256]
		details, settle := "", true
		switch {
		case i.State == vm.ImageImporting:
			details = fmt.Sprintf("image %s is recorded as importing while no operation is at work on it", i.Name)
		case i.State == vm.ImageAvailable && !there:
			details = fmt.Sprintf("the content of image %s is not there", i.Name)
		case i.State == vm.ImageError && there:
			details = fmt.Sprintf("image %s is recorded as error, but its content is there", i.Name)
		case i.State == vm.ImageAvailable && size != i.Bytes: // whoever changed it, what is based on it is damaged
			details, settle = fmt.Sprintf("the content of image %s (%s) has %d bytes, and had %d: bring the same in again to replace it", i.Name, i.SHA256, size, i.Bytes), false
		}
		if details != "" {
			p.plan = append(p.plan, Action{Type: MissingImage, Resource: vm.ImageResource(i.Name), Settle: settle, Passes: 2, Details: details})
		}
	}
	for sum := range p.seen.Images {
		if !known[sum] {
			p.plan = append(p.plan, Action{Type: OrphanImage, Resource: vm.ImageResource(sum), Passes: 2,
				Details: "there is content that no image has; it is left alone, as disks that are not recorded may be based on it"})
		}
	}
}

// storage reports a file system of the disks that is nearly full. What is not
// known is not reported.
func (p *planner) storage(lowMiB int64) {
	s := p.seen.Storage
	floor := max(lowMiB, s.SizeMiB*lowPercent/100)
	if lowMiB > 0 && s.SizeMiB > 0 && s.FreeMiB < floor {
		p.plan = append(p.plan, Action{Type: StorageLow, Resource: vm.Resource{Kind: vm.StorageKind, ID: s.Path}, Passes: 1,
			Details: fmt.Sprintf("%d of %d MiB are free at %s, less than %d MiB: make room before guests are paused", s.FreeMiB, s.SizeMiB, s.Path, floor)})
	}
}

// operations finds those that nobody carries out any more, because how they
// ended could not be recorded; whoever does so holds the resource.
func (p *planner) operations(open []vm.Operation) {
	for _, op := range open {
		a := Action{Type: VMStateMismatch, Resource: op.Resource, Settle: true,
			Details: fmt.Sprintf("operation %s (%s) is recorded as %s while nobody is at work on it", op.ID, op.Kind, op.State)}
		switch op.Resource.Kind {
		case vm.DiskKind:
			a.Type = DiskStateInconsistent
		case vm.ImageKind:
			a.Type = MissingImage
		}
		if !slices.ContainsFunc(p.plan, func(b Action) bool { return b.Type == a.Type && b.Resource == a.Resource }) {
			p.plan = append(p.plan, a)
		}
	}
}

// orphans finds what the host has and nobody recorded. A database restored from
// an old backup makes every newer VM look like one, so they are only reported.
func (p *planner) orphans() {
	for id, o := range p.seen.VMs {
		if !p.vms[id] {
			p.plan = append(p.plan, Action{Type: OrphanProcess, Resource: vm.VMResource(id), Passes: 2,
				Details: fmt.Sprintf("QEMU process %d runs for vm %s, which is not recorded; it is left alone", o.PID, id)})
		}
	}
	if p.partial {
		return
	}
	for id := range p.seen.VMFiles {
		if !p.vms[id] {
			p.plan = append(p.plan, Action{Type: OrphanDisk, Resource: vm.VMResource(id), Passes: 2,
				Details: fmt.Sprintf("there are files of vm %s, which is not recorded; they are left alone", id)})
		}
	}
	for id := range p.seen.DiskFiles {
		if _, recorded := p.disks[id]; !recorded {
			p.plan = append(p.plan, Action{Type: OrphanDisk, Resource: vm.DiskResource(id), Passes: 2,
				Details: fmt.Sprintf("there is a file of disk %s, which is not recorded; it is left alone", id)})
		}
	}
}
