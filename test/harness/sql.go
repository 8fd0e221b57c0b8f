package harness

import (
	"database/sql"
	"path/filepath"

	_ "modernc.org/sqlite"
)

// SQL runs a statement on the daemon's database, which the daemon does not notice.
func (d *Daemon) SQL(statement string) {
	d.T.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(d.StateDir, "vman.db")+"?_pragma=busy_timeout(5000)")
	if err != nil {
		d.T.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		d.T.Fatal(err)
	}
}
