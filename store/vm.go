package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmand/vm"
)

// vmTable is the one list of a VM's columns. boot and learned are written by
// learn alone.
var vmTable = newTable("vms",
	column[vm.VM]{"seq", readOnly, func(v *vm.VM) any { return (*integer64)(&v.Seq) }},
	column[vm.VM]{"id", fixed, func(v *vm.VM) any { return &v.ID }},
	column[vm.VM]{"uuid", fixed, func(v *vm.VM) any { return &v.UUID }},
	column[vm.VM]{"template_name", fixed, func(v *vm.VM) any { return &v.Template.Name }},
	column[vm.VM]{"cpu_count", fixed, func(v *vm.VM) any { return (*integer)(&v.Template.CPUCount) }},
	column[vm.VM]{"ram_mib", fixed, func(v *vm.VM) any { return (*integer)(&v.Template.RAMMiB) }},
	column[vm.VM]{"state", mutable, func(v *vm.VM) any { return (*string)(&v.State) }},
	column[vm.VM]{"reason", mutable, func(v *vm.VM) any { return (*string)(&v.Reason) }},
	column[vm.VM]{"reason_detail", mutable, func(v *vm.VM) any { return (*text)(&v.ReasonDetail) }},
	column[vm.VM]{"desired", mutable, func(v *vm.VM) any { return (*string)(&v.Desired) }},
	column[vm.VM]{"root_size_mib", mutable, func(v *vm.VM) any { return (*integer64)(&v.Root.SizeMiB) }},
	column[vm.VM]{"root_size_short", mutable, func(v *vm.VM) any { return (*integer64)(&v.Root.ShortBytes) }},
	column[vm.VM]{"root_image", mutable, func(v *vm.VM) any { return (*text)(&v.Root.Image) }},
	column[vm.VM]{"root_base", mutable, func(v *vm.VM) any { return (*text)(&v.Root.Base) }},
	column[vm.VM]{"root_base_format", mutable, func(v *vm.VM) any { return (*text)(&v.Root.BaseFormat) }},
	column[vm.VM]{"machine", mutable, func(v *vm.VM) any { return (*text)(&v.Machine) }},
	column[vm.VM]{"accel", mutable, func(v *vm.VM) any { return (*text)(&v.Accel) }},
	column[vm.VM]{"accel_reason", mutable, func(v *vm.VM) any { return (*text)(&v.AccelReason) }},
	column[vm.VM]{"created_at", fixed, func(v *vm.VM) any { return (*instant)(&v.CreatedAt) }},
	column[vm.VM]{"updated_at", mutable, func(v *vm.VM) any { return (*instant)(&v.UpdatedAt) }},
	column[vm.VM]{"started_at", mutable, func(v *vm.VM) any { return (*instant)(&v.StartedAt) }},
	column[vm.VM]{"revision", counter, func(v *vm.VM) any { return (*integer64)(&v.Revision) }},
	column[vm.VM]{"description", mutable, func(v *vm.VM) any { return (*text)(&v.Description) }},
	column[vm.VM]{"labels", mutable, func(v *vm.VM) any { return (*labels)(&v.Labels) }},
	column[vm.VM]{"policy", mutable, func(v *vm.VM) any { return &policy{v} }},
	column[vm.VM]{"nics", mutable, func(v *vm.VM) any { return (*nics)(&v.NICs) }},
	column[vm.VM]{"forwards", mutable, func(v *vm.VM) any { return (*forwards)(&v.Forwards) }},
	column[vm.VM]{"cdroms", mutable, func(v *vm.VM) any { return (*cdroms)(&v.CDROMs) }},
	column[vm.VM]{"boot_device", mutable, func(v *vm.VM) any { return (*text)(&v.BootDevice) }},
	column[vm.VM]{"boot", readOnly, func(v *vm.VM) any { return (*boot)(&v.Boot) }},
	column[vm.VM]{"learned", readOnly, func(v *vm.VM) any { return (*learnedAddresses)(&v.Learned) }},
)

// VM returns one VM. Its template has only the name and the sizes. A VM without a
// restart policy has [vm.RestartNever].
func (s *Store) VM(ctx context.Context, id string) (vm.VM, error) {
	s.lookIfDue(ctx)
	v, epoch, ok := s.cache.get(id)
	if ok {
		return v, s.fault(ctx, ctx.Err())
	}
	v, err := one(ctx, s, "VM", id, vmTable.all+" WHERE id = ?", vmTable.scan)
	if err == nil {
		s.cache.put(epoch, v)
	}
	return v, err
}

// onNetwork is the condition of a NIC on a network. The plus keeps SQLite from
// the index by network, which would read every NIC on it for each VM.
const onNetwork = "EXISTS (SELECT 1 FROM vm_addresses WHERE vm_id = vms.id AND +network = ?)"

// VMs returns a page of the VMs that f selects, as [Store.VM] returns them.
func (s *Store) VMs(ctx context.Context, f vm.VMFilter, p vm.Page) ([]vm.VM, error) {
	q := selectVMs(f)
	if p.Limit > 0 && p.Limit <= shortList {
		return s.pageOfVMs(ctx, q, p)
	}
	if p.Limit == 0 { // a whole list is compared with the host: stale VMs must not follow
		if err := s.look(ctx, s.writer); err != nil {
			return nil, s.fault(ctx, err)
		}
	}
	query, args := q.sql(vmTable.list, p)
	return list(ctx, s, query, args, p.Limit, vmTable.scanner())
}

// pageOfVMs reads which revisions of which VMs are on a page and takes them from the
// cache. If it does not have all, it reads the page whole.
func (s *Store) pageOfVMs(ctx context.Context, q selection, p vm.Page) ([]vm.VM, error) {
	s.lookIfDue(ctx)
	query, args := q.sql("id, seq, revision", p)
	var k vmKey
	dest := []any{&k.id, (*integer64)(&k.seq), (*integer64)(&k.revision)}
	keys, err := list(ctx, s, query, args, p.Limit, func(row scanner) (vmKey, error) {
		err := row.Scan(dest...)
		return k, err
	})
	if err != nil {
		return nil, err
	}
	page, epoch, ok := s.cache.page(keys)
	if ok {
		return page, nil
	}
	query, args = q.sql(vmTable.list, p)
	page, err = list(ctx, s, query, args, p.Limit, vmTable.scanner())
	if err == nil {
		s.cache.put(epoch, page...)
	}
	return page, err
}

// VMSummaries returns a page of the VMs that f selects, in brief. It costs a ninth
// of VMs (BenchmarkVMSummaries).
func (s *Store) VMSummaries(ctx context.Context, f vm.VMFilter, p vm.Page) ([]vm.VMSummary, error) {
	q := selectVMs(f)
	query, args := q.sql("seq, id, state, reason, revision", p)
	var v vm.VMSummary
	dest := []any{(*integer64)(&v.Seq), &v.ID, (*string)(&v.State), (*string)(&v.Reason), (*integer64)(&v.Revision)}
	return list(ctx, s, query, args, p.Limit, func(row scanner) (vm.VMSummary, error) {
		err := row.Scan(dest...)
		return v, err
	})
}

// The conditions of partial indexes, in their words.
const (
	activeVM = "(state <> 'stopped' OR policy ->> '$.restart_at' > 0" +
		` OR instr(nics, '"state":"attaching"') > 0 OR instr(nics, '"state":"detaching"') > 0)`
	autostartVM = "policy ->> '$.autostart' = 1 AND desired = 'running'"
)

func selectVMs(f vm.VMFilter) selection {
	q := from("vms")
	q.label("vm_labels", f.Label, f.LabelValue)
	q.only(f.Active, activeVM)
	q.only(f.Autostart, autostartVM)
	q.and("state = ?", string(f.State))
	q.and("template_name = ?", f.Template)
	q.and(onNetwork, f.Network)
	return q
}

func insertVM(ctx context.Context, tx *transaction, v vm.VM, now time.Time) (vm.VM, error) {
	if err := checkVM(v); err != nil {
		return v, err
	}
	if v.CreatedAt.IsZero() {
		v.CreatedAt = now
	}
	v.UpdatedAt = now
	row, err := vmTable.insertRow(ctx, tx, v)
	switch {
	case duplicate(err):
		return v, &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("VM %s already exists", v.ID), Err: err}
	case dangling(err):
		return v, vm.NotFound("template", v.Template.Name)
	case err != nil:
		return v, err
	}
	return row, replaceIndexes(ctx, tx, vm.VM{}, row)
}

func updateVM(ctx context.Context, tx *transaction, u vm.VMUpdate, now time.Time) (vm.VM, error) {
	if err := checkVM(u.VM); err != nil {
		return u.VM, err
	}
	// The transaction holds the write lock, so nothing changes the row between the
	// two statements.
	before, err := vmTable.row(ctx, tx, "id = ?", u.VM.ID)
	if errors.Is(err, errNoRow) || err == nil && before.State != u.From {
		return before, overtaken("VM", u.VM.ID, string(u.From))
	}
	if err != nil {
		return before, err
	}
	u.VM.UpdatedAt = now
	row, err := vmTable.updateRow(ctx, tx, u.VM, "seq = ?", before.Seq)
	if err != nil {
		return row, err
	}
	return row, replaceIndexes(ctx, tx, before, row)
}

func deleteVM(ctx context.Context, tx *transaction, id string) error {
	err := change(ctx, tx, `DELETE FROM vms WHERE id = ?`, id)
	switch {
	case errors.Is(err, errNoRow):
		return vm.NotFound("VM", id)
	case dangling(err):
		return &vm.Fault{
			Code:   vm.CodeInUse,
			Detail: fmt.Sprintf("VM %s still has data disks", id),
			Hint:   "detach them first",
			Err:    err,
		}
	}
	return err
}
