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
	Seq       int64  `db:"seq"`
	Name      string `db:"name"`
	CPUCount  int    `db:"cpu_count"`
	RAMMiB    int    `db:"ram_mib"`
	CreatedAt int64  `db:"created_at"`
}

func (r templateRow) template() vm.Template {
	return vm.Template{Seq: r.Seq, Name: r.Name, CPUCount: r.CPUCount, RAMMiB: r.RAMMiB, CreatedAt: instant(r.CreatedAt)}
}

// Template returns one template.
func (s *Store) Template(ctx context.Context, name string) (vm.Template, error) {
	var r templateRow
	if err := s.get(ctx, &r, "template", name, `SELECT `+templateColumns+` FROM templates WHERE name = ?`); err != nil {
		return vm.Template{}, err
	}
	return r.template(), nil
}

// Templates returns a page of the templates.
func (s *Store) Templates(ctx context.Context, p vm.Page) ([]vm.Template, error) {
	q := after(p)
	query, args := q.sql(templateColumns, "templates", p)
	var rows []templateRow
	if err := s.list(ctx, &rows, query, args); err != nil {
		return nil, err
	}
	list := make([]vm.Template, len(rows))
	for i, r := range rows {
		list[i] = r.template()
	}
	return list, nil
}

// CreateTemplate records t, as of now unless it says when, and returns it as
// it is recorded.
func (s *Store) CreateTemplate(ctx context.Context, t vm.Template) (vm.Template, error) {
	r := templateRow{Name: t.Name, CPUCount: t.CPUCount, RAMMiB: t.RAMMiB, CreatedAt: millis(t.CreatedAt)}
	if r.CreatedAt == 0 {
		r.CreatedAt = time.Now().UnixMilli()
	}
	err := s.write(ctx, func(tx *sqlx.Tx) error {
		res, err := tx.NamedExecContext(ctx, `
			INSERT INTO templates (name, cpu_count, ram_mib, created_at)
			VALUES (:name, :cpu_count, :ram_mib, :created_at)`, r)
		if duplicate(err) {
			return &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("template %q already exists", t.Name), Err: err}
		}
		if err == nil {
			r.Seq, err = res.LastInsertId()
		}
		return err
	})
	if err != nil {
		return vm.Template{}, err
	}
	return r.template(), nil
}

// DeleteTemplate forgets a template that no VM is made of.
func (s *Store) DeleteTemplate(ctx context.Context, name string) error {
	return s.write(ctx, func(tx *sqlx.Tx) error {
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
	})
}
