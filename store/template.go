package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmand/vm"
)

var templateTable = newTable("templates",
	column[vm.Template]{"seq", readOnly, func(t *vm.Template) any { return (*integer64)(&t.Seq) }},
	column[vm.Template]{"name", fixed, func(t *vm.Template) any { return &t.Name }},
	column[vm.Template]{"cpu_count", fixed, func(t *vm.Template) any { return (*integer)(&t.CPUCount) }},
	column[vm.Template]{"ram_mib", fixed, func(t *vm.Template) any { return (*integer)(&t.RAMMiB) }},
	column[vm.Template]{"created_at", fixed, func(t *vm.Template) any { return (*instant)(&t.CreatedAt) }},
)

// Template returns one template.
func (s *Store) Template(ctx context.Context, name string) (vm.Template, error) {
	return one(ctx, s, "template", name, templateTable.all+" WHERE name = ?", templateTable.scan)
}

// Templates returns a page of the templates.
func (s *Store) Templates(ctx context.Context, p vm.Page) ([]vm.Template, error) {
	q := from("templates")
	query, args := q.sql(templateTable.list, p)
	return list(ctx, s, query, args, p.Limit, templateTable.scanner())
}

func insertTemplate(ctx context.Context, tx *transaction, t vm.Template, now time.Time) (vm.Template, error) {
	if t.CreatedAt.IsZero() {
		t.CreatedAt = now
	}
	row, err := templateTable.insertRow(ctx, tx, t)
	if duplicate(err) {
		return row, &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("template %s already exists", t.Name), Err: err}
	}
	return row, err
}

func deleteTemplate(ctx context.Context, tx *transaction, name string) error {
	var users int
	if err := tx.GetContext(ctx, &users, `SELECT count(*) FROM vms WHERE template_name = ?`, name); err != nil {
		return err
	}
	if users > 0 {
		return &vm.Fault{
			Code:   vm.CodeInUse,
			Detail: fmt.Sprintf("template %s is in use by %d VM(s)", name, users),
			Hint:   "delete the VMs first",
		}
	}
	err := change(ctx, tx, `DELETE FROM templates WHERE name = ?`, name)
	if errors.Is(err, errNoRow) {
		return vm.NotFound("template", name)
	}
	return err
}
