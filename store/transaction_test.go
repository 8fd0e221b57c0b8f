package store

import (
	"context"
	"testing"

	"vmand/vm"
)

func TestStatementsOfTheWriterArePreparedAfterTheirFirstUse(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(0)
	apply(t, s, vm.Change{NewVM: &v})
	insert := vmTable.insert + " RETURNING " + vmTable.list
	if s.statements.get(insert) == nil {
		t.Error("the insert is not prepared after a transaction that used it")
	}
	missing := func() int { return len(s.statements.missing) }
	for i := range 3 {
		w := makeVM(i + 1)
		apply(t, s, vm.Change{NewVM: &w})
		if missing() != 0 {
			t.Errorf("%d statements are still missing: %q", missing(), s.statements.missing)
		}
	}

	// A canceled transaction prepares nothing, the next one does.
	const query = `DELETE FROM notes WHERE name = 'x'`
	ctx, cancel := context.WithCancel(t.Context())
	err := s.write(ctx, func(tx *transaction) error {
		cancel()
		_, err := tx.ExecContext(t.Context(), query)
		return err
	})
	if err == nil {
		t.Error("a canceled transaction commits")
	}
	for range 2 {
		must(t, s.write(t.Context(), func(tx *transaction) error {
			_, err := tx.ExecContext(t.Context(), query)
			return err
		}))
	}
	if s.statements.get(query) == nil {
		t.Error("the statement is not prepared after two transactions")
	}
}
