package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

const templateColumns = `seq, name, cpu_count, ram_mib, created_at`

type templateRow struct {
	Seq       int64   `db:"seq"`
	Name      string  `db:"name"`
	CPUCount  int     `db:"cpu_count"`
	RAMMiB    int     `db:"ram_mib"`
	CreatedAt instant `db:"created_at"`
}

func (r templateRow) template() vm.Template {
	return vm.Template{Seq: r.Seq, Name: r.Name, CPUCount: r.CPUCount, RAMMiB: r.RAMMiB, CreatedAt: time.Time(r.CreatedAt)}
}

const templateByName = `SELECT ` + templateColumns + ` FROM templates WHERE name = ?`

func scanTemplate(row scanner) (vm.Template, error) {
	var r templateRow
	err := row.StructScan(&r)
	return r.template(), err
}

// Template returns one template.
func (s *Store) Template(ctx context.Context, name string) (vm.Template, error) {
	return one(ctx, s, "template", name, templateByName, scanTemplate)
}

// Templates returns a page of the templates.
func (s *Store) Templates(ctx context.Context, p vm.Page) ([]vm.Template, error) {
	q := after(p)
	query, args := q.sql(templateColumns, "templates", p)
	return list(ctx, s, query, args, p.Limit, scanTemplate)
}

func insertTemplate(ctx context.Context, tx *sqlx.Tx, t vm.Template, now time.Time) error {
	if t.CreatedAt.IsZero() {
		t.CreatedAt = now
	}
	_, err := tx.NamedExecContext(ctx, `
		INSERT INTO templates (name, cpu_count, ram_mib, created_at)
		VALUES (:name, :cpu_count, :ram_mib, :created_at)`,
		templateRow{Name: t.Name, CPUCount: t.CPUCount, RAMMiB: t.RAMMiB, CreatedAt: instant(t.CreatedAt)})
	if duplicate(err) {
		return &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("template %q already exists", t.Name), Err: err}
	}
	return err
}

func deleteTemplate(ctx context.Context, tx *sqlx.Tx, name string) error {
	var users int
	if err := tx.GetContext(ctx, &users, `SELECT count(*) FROM vms WHERE template_name = ?`, name); err != nil {
		return err
	}
	if users > 0 {
		return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("template %q is in use by %d VM(s)", name, users),
			Hint: "delete the VMs first"}
	}
	err := change(ctx, tx, `DELETE FROM templates WHERE name = ?`, name)
	if errors.Is(err, errNoRow) {
		return vm.NotFound("template", name)
	}
	return err
}
