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
)

// IssueTypes lists every type.
var IssueTypes = []IssueType{VMStateMismatch, OrphanProcess, MissingDisk, OrphanDisk, DiskStateInconsistent}

// Recorded is everything that is recorded and that a host can contradict.
type Recorded struct {
	VMs   []vm.VM
	Disks []vm.Disk
	Open  []vm.Operation // those that are not over
}

// An Action is one disagreement, and whether the [Settler] is to be asked to
// resolve it. What could lose data is never to be settled.
type Action struct {
	Type     IssueType
	Resource string // "vms/<id>" or "disks/<id>"
	Details  string // for a person
	Settle   bool
	// Doubtful actions rest on a survey that may be older than what an
	// operation has just done: they are an issue once a second pass agrees.
	Doubtful bool
}

// Plan returns where the records disagree with what the host shows, in order of
// resource and type, and nothing if they agree. What busy reports is left out:
// the operation that holds it will record how it is.
func Plan(recorded Recorded, seen vm.Survey, busy func(resource string) bool) []Action {
	p := planner{seen: seen, vms: make(map[string]bool, len(recorded.VMs)), disks: make(map[string]bool, len(recorded.Disks))}
	for _, v := range recorded.VMs {
		p.vms[v.ID] = true
		p.vm(v)
	}
	p.plugged = pluggedInto(seen)
	for _, d := range recorded.Disks {
		p.disks[d.ID] = true
		p.disk(d)
	}
	p.orphans()
	p.operations(recorded.Open)
	plan := slices.DeleteFunc(p.plan, func(a Action) bool { return busy(a.Resource) })
	slices.SortFunc(plan, func(a, b Action) int {
		return cmp.Or(cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Type, b.Type))
	})
	return plan
}

type planner struct {
	seen    vm.Survey
	vms     map[string]bool   // ids recorded
	disks   map[string]bool   // ids recorded
	plugged map[string]string // disk id to the id of the VM whose QEMU has it
	plan    []Action
}

func (p *planner) vm(v vm.VM) {
	resource := vm.VMResource(v.ID)
	seen := p.seen.VMs[v.ID]
	if verdict := vm.Settle(v.State, v.Reason, seen); !agrees(v, verdict) {
		p.plan = append(p.plan, Action{Type: VMStateMismatch, Resource: resource, Settle: true,
			Details: fmt.Sprintf("recorded as %s (%s), but %s", v.State, v.Reason, describe(seen))})
	}
	if !p.seen.VMFiles[v.ID] {
		p.plan = append(p.plan, Action{Type: MissingDisk, Resource: resource, Doubtful: true,
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
	if d.State != vm.DiskCreating && !p.seen.DiskFiles[d.ID] {
		p.plan = append(p.plan, Action{Type: MissingDisk, Resource: resource, Settle: true, Doubtful: true,
			Details: fmt.Sprintf("the file of disk %s is not there", d.ID)})
	}
	if details := p.inconsistency(d); details != "" {
		p.plan = append(p.plan, Action{Type: DiskStateInconsistent, Resource: resource, Settle: true, Doubtful: true, Details: details})
	}
}

// inconsistency says what is wrong with a disk's recorded state, or nothing.
// Every state that is a mere intent counts: no operation is at work on it, or it
// would be busy.
func (p *planner) inconsistency(d vm.Disk) string {
	host, plugged := p.plugged[d.ID]
	switch {
	case d.State.Transitional() && d.VMID != "":
		return fmt.Sprintf("recorded as %s (vm %s) while no operation is at work on it", d.State, d.VMID)
	case d.State.Transitional():
		return fmt.Sprintf("recorded as %s while no operation is at work on it", d.State)
	case plugged && host != d.VMID:
		return fmt.Sprintf("recorded as %s, but the QEMU of vm %s has it", d.State, host)
	case d.State == vm.DiskAvailable && d.VMID != "":
		return fmt.Sprintf("recorded as available and yet on vm %s", d.VMID)
	case d.State == vm.DiskError && p.seen.DiskFiles[d.ID]:
		return "recorded as error, but its file is there"
	case d.State != vm.DiskAttached:
		return ""
	case !p.vms[d.VMID]:
		return fmt.Sprintf("recorded as attached to vm %q, which does not exist", d.VMID)
	}
	if seen := p.seen.VMs[d.VMID]; seen.Alive() && seen.Plugged != nil && !plugged {
		return fmt.Sprintf("recorded as attached to vm %s, whose QEMU does not have it", d.VMID)
	}
	return ""
}

// operations finds those that nobody carries out any more, because how they
// ended could not be recorded; whoever does so holds the resource.
func (p *planner) operations(open []vm.Operation) {
	for _, op := range open {
		a := Action{Type: VMStateMismatch, Resource: op.Resource, Settle: true,
			Details: fmt.Sprintf("operation %s (%s) is recorded as %s while nobody is at work on it", op.ID, op.Kind, op.State)}
		if strings.HasPrefix(op.Resource, "disks/") {
			a.Type = DiskStateInconsistent
		}
		if !slices.ContainsFunc(p.plan, func(b Action) bool { return b.Type == a.Type && b.Resource == a.Resource }) {
			p.plan = append(p.plan, a)
		}
	}
}

func pluggedInto(seen vm.Survey) map[string]string {
	plugged := map[string]string{}
	for id, o := range seen.VMs {
		for _, disk := range o.Plugged {
			plugged[disk] = id
		}
	}
	return plugged
}

// orphans finds what the host has and nobody recorded. A database restored from
// an old backup makes every newer VM look like one, so they are only reported.
func (p *planner) orphans() {
	for id, o := range p.seen.VMs {
		if !p.vms[id] {
			p.plan = append(p.plan, Action{Type: OrphanProcess, Resource: vm.VMResource(id), Doubtful: true,
				Details: fmt.Sprintf("QEMU process %d runs for vm %s, which is not recorded; it is left alone", o.PID, id)})
		}
	}
	for id := range p.seen.VMFiles {
		if !p.vms[id] {
			p.plan = append(p.plan, Action{Type: OrphanDisk, Resource: vm.VMResource(id), Doubtful: true,
				Details: fmt.Sprintf("there are files of vm %s, which is not recorded; they are left alone", id)})
		}
	}
	for id := range p.seen.DiskFiles {
		if !p.disks[id] {
			p.plan = append(p.plan, Action{Type: OrphanDisk, Resource: vm.DiskResource(id), Doubtful: true,
				Details: fmt.Sprintf("there is a file of disk %s, which is not recorded; it is left alone", id)})
		}
	}
}
