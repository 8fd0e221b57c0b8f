package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

const vmColumns = `seq, id, uuid, template_name, cpu_count, ram_mib, state, reason, reason_detail, desired, local_ip,
	root_size_mib, root_base, root_base_format, machine, accel, created_at, updated_at, started_at, revision`

type vmRow struct {
	Seq            int64  `db:"seq"`
	ID             string `db:"id"`
	UUID           string `db:"uuid"`
	TemplateName   string `db:"template_name"`
	CPUCount       int64  `db:"cpu_count"`
	RAMMiB         int64  `db:"ram_mib"`
	State          string `db:"state"`
	Reason         string `db:"reason"`
	ReasonDetail   string `db:"reason_detail"`
	Desired        string `db:"desired"`
	LocalIP        string `db:"local_ip"`
	RootSizeMiB    int64  `db:"root_size_mib"`
	RootBase       string `db:"root_base"`
	RootBaseFormat string `db:"root_base_format"`
	Machine        string `db:"machine"`
	Accel          string `db:"accel"`
	CreatedAt      int64  `db:"created_at"`
	UpdatedAt      int64  `db:"updated_at"`
	StartedAt      int64  `db:"started_at"`
	Revision       int64  `db:"revision"`
}

func vmRowOf(v vm.VM) vmRow {
	return vmRow{ID: v.ID, UUID: v.UUID, TemplateName: v.Template.Name, CPUCount: int64(v.Template.CPUCount), RAMMiB: int64(v.Template.RAMMiB),
		State: string(v.State), Reason: string(v.Reason), ReasonDetail: v.ReasonDetail, Desired: string(v.Desired), LocalIP: v.LocalIP,
		RootSizeMiB: v.Root.SizeMiB, RootBase: v.Root.Base, RootBaseFormat: v.Root.BaseFormat, Machine: v.Machine, Accel: string(v.Accel),
		CreatedAt: millis(v.CreatedAt), StartedAt: millis(v.StartedAt)}
}

func (r *vmRow) vm() vm.VM {
	return vm.VM{Seq: r.Seq, ID: r.ID, UUID: r.UUID, Template: vm.Template{Name: r.TemplateName, CPUCount: int(r.CPUCount), RAMMiB: int(r.RAMMiB)},
		State: vm.State(r.State), Reason: vm.Reason(r.Reason), ReasonDetail: r.ReasonDetail, Desired: vm.Desired(r.Desired), LocalIP: r.LocalIP,
		Root:    vm.RootDisk{SizeMiB: r.RootSizeMiB, Base: r.RootBase, BaseFormat: r.RootBaseFormat},
		Machine: r.Machine, Accel: vm.Accel(r.Accel), CreatedAt: instant(r.CreatedAt), UpdatedAt: instant(r.UpdatedAt),
		StartedAt: instant(r.StartedAt), Revision: r.Revision}
}

// VM returns one VM. Of its template it has the name and the sizes.
func (s *Store) VM(ctx context.Context, id string) (vm.VM, error) {
	var r vmRow
	if err := s.get(ctx, &r, "vm", id, `SELECT `+vmColumns+` FROM vms WHERE id = ?`); err != nil {
		return vm.VM{}, err
	}
	return r.vm(), nil
}

// VMs returns a page of the VMs that f selects. Of its template each has the
// name and the sizes.
func (s *Store) VMs(ctx context.Context, f vm.VMFilter, p vm.Page) ([]vm.VM, error) {
	q := after(p)
	q.and("state = ?", string(f.State))
	q.and("template_name = ?", f.Template)
	query, args := q.sql(vmColumns, "vms", p)
	var rows []vmRow
	if err := s.list(ctx, &rows, query, args); err != nil {
		return nil, err
	}
	list := make([]vm.VM, len(rows))
	for i := range rows {
		list[i] = rows[i].vm()
	}
	return list, nil
}

func insertVM(ctx context.Context, tx *sqlx.Tx, v vm.VM, now time.Time) error {
	r := vmRowOf(v)
	r.UpdatedAt = now.UnixMilli()
	if r.CreatedAt == 0 {
		r.CreatedAt = r.UpdatedAt
	}
	_, err := tx.NamedExecContext(ctx, `
		INSERT INTO vms (id, uuid, template_name, cpu_count, ram_mib, state, reason, reason_detail, desired, local_ip,
			root_size_mib, root_base, root_base_format, machine, accel, created_at, updated_at, started_at, revision)
		VALUES (:id, :uuid, :template_name, :cpu_count, :ram_mib, :state, :reason, :reason_detail, :desired, :local_ip,
			:root_size_mib, :root_base, :root_base_format, :machine, :accel, :created_at, :updated_at, :started_at, 1)`, r)
	switch {
	case duplicate(err):
		return &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("vm %q already exists", v.ID), Err: err}
	case dangling(err):
		return vm.NotFound("template", v.Template.Name)
	}
	return err
}

func updateVM(ctx context.Context, tx *sqlx.Tx, u vm.VMUpdate, now time.Time) error {
	r := vmRowOf(u.VM)
	r.UpdatedAt = now.UnixMilli()
	err := changeNamed(ctx, tx, `
		UPDATE vms SET state = :state, reason = :reason, reason_detail = :reason_detail, desired = :desired, local_ip = :local_ip,
			root_size_mib = :root_size_mib, root_base = :root_base, root_base_format = :root_base_format, machine = :machine, accel = :accel,
			started_at = :started_at, updated_at = :updated_at, revision = revision + 1
		WHERE id = :id AND state = :from`, struct {
		vmRow
		From string `db:"from"`
	}{r, string(u.From)})
	if errors.Is(err, errNoRow) {
		return overtaken("vm", u.VM.ID, string(u.From))
	}
	return err
}

func deleteVM(ctx context.Context, tx *sqlx.Tx, id string) error {
	err := change(ctx, tx, `DELETE FROM vms WHERE id = ?`, id)
	switch {
	case errors.Is(err, errNoRow):
		return vm.NotFound("vm", id)
	case dangling(err):
		return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("vm %q still has data disks", id), Hint: "detach them first", Err: err}
	}
	return err
}
