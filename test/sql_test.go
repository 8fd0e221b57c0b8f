package test

import (
	"database/sql"
	"path/filepath"

	_ "modernc.org/sqlite"
)

// sql runs a statement on the daemon's database, behind its back.
func (d *daemon) sql(statement string) {
	d.t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(d.state, "vman.db")+"?_pragma=busy_timeout(5000)")
	if err != nil {
		d.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		d.t.Fatal(err)
	}
}
