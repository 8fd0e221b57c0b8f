package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

const vmColumns = `seq, id, uuid, template_name, cpu_count, ram_mib, state, reason, reason_detail, desired,
	root_size_mib, root_base, root_base_format, machine, accel, created_at, updated_at, started_at, revision, description, labels, policy,
	nics, forwards, facts, image, cdroms`

// vmDest returns where the columns go in v. A list of VMs is what is read most:
// scanning into place costs two thirds of what [sqlx.Rows.StructScan] does.
func vmDest(v *vm.VM) []any {
	return []any{(*integer64)(&v.Seq), &v.ID, &v.UUID, &v.Template.Name, (*integer)(&v.Template.CPUCount), (*integer)(&v.Template.RAMMiB),
		(*string)(&v.State), (*string)(&v.Reason), (*text)(&v.ReasonDetail), (*string)(&v.Desired),
		(*integer64)(&v.Root.SizeMiB), (*text)(&v.Root.Base), (*text)(&v.Root.BaseFormat), (*text)(&v.Machine), (*text)(&v.Accel),
		(*instant)(&v.CreatedAt), (*instant)(&v.UpdatedAt), (*instant)(&v.StartedAt), (*integer64)(&v.Revision),
		(*text)(&v.Description), (*labels)(&v.Labels), &policy{v},
		(*nics)(&v.NICs), (*forwards)(&v.Forwards), &facts{v}, (*text)(&v.Root.Image), (*cdroms)(&v.CDROMs)}
}

// vmRow is a row as it is written.
type vmRow struct {
	ID             string  `db:"id"`
	UUID           string  `db:"uuid"`
	TemplateName   string  `db:"template_name"`
	CPUCount       int     `db:"cpu_count"`
	RAMMiB         int     `db:"ram_mib"`
	State          string  `db:"state"`
	Reason         string  `db:"reason"`
	ReasonDetail   text    `db:"reason_detail"`
	Desired        string  `db:"desired"`
	RootSizeMiB    int64   `db:"root_size_mib"`
	RootBase       text    `db:"root_base"`
	RootBaseFormat text    `db:"root_base_format"`
	Machine        text    `db:"machine"`
	Accel          text    `db:"accel"`
	CreatedAt      instant `db:"created_at"`
	UpdatedAt      instant `db:"updated_at"`
	StartedAt      instant `db:"started_at"`
	Description    text    `db:"description"`
	Labels         labels  `db:"labels"`
	Policy         policy  `db:"policy"`
	NICs           text    `db:"nics"`
	Forwards       text    `db:"forwards"`
	Image          text    `db:"image"`
	CDROMs         text    `db:"cdroms"`
}

func vmRowOf(v vm.VM, now time.Time) (vmRow, error) {
	if v.CreatedAt.IsZero() {
		v.CreatedAt = now
	}
	nics, err := packNICs(v.NICs)
	if err != nil {
		return vmRow{}, fmt.Errorf("vm %s: %w", v.ID, err)
	}
	forwards, err := packForwards(v.Forwards)
	if err != nil {
		return vmRow{}, fmt.Errorf("vm %s: %w", v.ID, err)
	}
	cdroms, err := packCDROMs(v.CDROMs)
	if err != nil {
		return vmRow{}, fmt.Errorf("vm %s: %w", v.ID, err)
	}
	return vmRow{ID: v.ID, UUID: v.UUID, TemplateName: v.Template.Name, CPUCount: v.Template.CPUCount, RAMMiB: v.Template.RAMMiB,
		State: string(v.State), Reason: string(v.Reason), ReasonDetail: text(v.ReasonDetail), Desired: string(v.Desired),
		RootSizeMiB: v.Root.SizeMiB, RootBase: text(v.Root.Base), RootBaseFormat: text(v.Root.BaseFormat), Machine: text(v.Machine), Accel: text(v.Accel),
		CreatedAt: instant(v.CreatedAt), UpdatedAt: instant(now), StartedAt: instant(v.StartedAt),
		Description: text(v.Description), Labels: v.Labels, Policy: policy{&v}, NICs: nics, Forwards: forwards,
		Image: text(v.Root.Image), CDROMs: cdroms}, nil
}

// VM returns one VM. Of its template it has the name and the sizes; of no
// restart policy, it has [vm.RestartNever].
func (s *Store) VM(ctx context.Context, id string) (vm.VM, error) {
	g := s.cache.generation(ctx)
	if v, ok := g.get(id); ok {
		return v, s.fault(ctx, ctx.Err())
	}
	var v vm.VM
	err := s.one(ctx, "VM", id, `SELECT `+vmColumns+` FROM vms WHERE id = ?`, func(row *sqlx.Row) error {
		return row.Scan(vmDest(&v)...)
	})
	if err == nil {
		g.put(v)
	}
	return v, err
}

// onNetwork is the condition of a NIC on a network. The plus keeps SQLite from
// the index by network, which would look at all that is on it for each VM.
const onNetwork = "EXISTS (SELECT 1 FROM addresses WHERE vm_id = vms.id AND +network = ?)"

// VMs returns a page of the VMs that f selects. Of its template each has the
// name and the sizes, as [Store.VM] does.
func (s *Store) VMs(ctx context.Context, f vm.VMFilter, p vm.Page) ([]vm.VM, error) {
	if p.Limit == 0 { // who compares all records with the host wants no old ones afterwards
		if err := s.cache.look(ctx); err != nil {
			return nil, s.fault(ctx, err)
		}
	}
	q := after(p)
	q.and("state = ?", string(f.State))
	q.and("template_name = ?", f.Template)
	q.and(onNetwork, f.Network)
	q.andLabel(f.Label, f.LabelValue)
	query, args := q.sql(vmColumns, "vms", p)
	var v vm.VM
	dest := vmDest(&v)
	return list(ctx, s, query, args, p.Limit, func(rows *sqlx.Rows) (vm.VM, error) {
		err := rows.Scan(dest...)
		return v, err
	})
}

func insertVM(ctx context.Context, tx *sqlx.Tx, v vm.VM, now time.Time) error {
	row, err := vmRowOf(v, now)
	if err != nil {
		return err
	}
	_, err = tx.NamedExecContext(ctx, `
		INSERT INTO vms (id, uuid, template_name, cpu_count, ram_mib, state, reason, reason_detail, desired,
			root_size_mib, root_base, root_base_format, machine, accel, created_at, updated_at, started_at, revision,
			description, labels, policy, nics, forwards, image, cdroms)
		VALUES (:id, :uuid, :template_name, :cpu_count, :ram_mib, :state, :reason, :reason_detail, :desired,
			:root_size_mib, :root_base, :root_base_format, :machine, :accel, :created_at, :updated_at, :started_at, 1,
			:description, :labels, :policy, :nics, :forwards, :image, :cdroms)`, row)
	switch {
	case duplicate(err):
		return &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("vm %q already exists", v.ID), Err: err}
	case dangling(err):
		return vm.NotFound("template", v.Template.Name)
	case err != nil:
		return err
	}
	return replaceDerived(ctx, tx, v, derived{nics: row.NICs != "", forwards: row.Forwards != "", contents: len(contentsOf(v)) > 0})
}

func updateVM(ctx context.Context, tx *sqlx.Tx, u vm.VMUpdate, now time.Time) error {
	row, err := vmRowOf(u.VM, now)
	if err != nil {
		return err
	}
	var news derived
	err = tx.QueryRowxContext(ctx, `SELECT nics IS NOT ?, forwards IS NOT ?, root_base IS NOT ? OR cdroms IS NOT ? FROM vms WHERE id = ?`,
		row.NICs, row.Forwards, row.RootBase, row.CDROMs, row.ID).Scan(&news.nics, &news.forwards, &news.contents)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	err = changeNamed(ctx, tx, `
		UPDATE vms SET state = :state, reason = :reason, reason_detail = :reason_detail, desired = :desired,
			root_size_mib = :root_size_mib, root_base = :root_base, root_base_format = :root_base_format, machine = :machine, accel = :accel,
			started_at = :started_at, description = :description, labels = :labels, policy = :policy, nics = :nics, forwards = :forwards,
			image = :image, cdroms = :cdroms, updated_at = :updated_at, revision = revision + 1
		WHERE id = :id AND state = :from`, struct {
		vmRow
		From string `db:"from"`
	}{row, string(u.From)})
	if errors.Is(err, errNoRow) {
		return overtaken("vm", u.VM.ID, string(u.From))
	}
	if err != nil {
		return err
	}
	return replaceDerived(ctx, tx, u.VM, news)
}

// derived says what is new of that which other tables follow from.
type derived struct{ nics, forwards, contents bool }

// replaceDerived writes again what follows from the NICs, the forwards, the root
// disk and the drives of a VM, of which few changes of a VM change anything.
func replaceDerived(ctx context.Context, tx *sqlx.Tx, v vm.VM, news derived) error {
	if news.nics {
		if err := replaceAddresses(ctx, tx, v); err != nil {
			return err
		}
	}
	if news.forwards {
		if err := replaceHostPorts(ctx, tx, v); err != nil {
			return err
		}
	}
	if news.contents {
		return replaceContents(ctx, tx, v)
	}
	return nil
}

func deleteVM(ctx context.Context, tx *sqlx.Tx, id string) error {
	err := change(ctx, tx, `DELETE FROM vms WHERE id = ?`, id)
	switch {
	case errors.Is(err, errNoRow):
		return vm.NotFound("VM", id)
	case dangling(err):
		return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("vm %q still has data disks", id), Hint: "detach them first", Err: err}
	}
	return err
}
