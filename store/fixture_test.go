package store

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

// fixture unpacks testdata/schema-NNNN.db.gz, a database that a vmand with that schema wrote, and
// returns its path.
func fixture(t *testing.T, version int) string {
	t.Helper()
	packed, err := os.Open(fmt.Sprintf("testdata/schema-%04d.db.gz", version))
	if err != nil {
		t.Fatalf("each schema needs a database as fixture: make one with `vmand backup` of a dry run with "+
			"templates, images, networks, VMs, disks and events (%v)", err)
	}
	defer packed.Close()
	r, err := gzip.NewReader(packed)
	must(t, err)
	path := filepath.Join(t.TempDir(), "vman.db")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	_, err = io.Copy(f, r)
	must(t, err)
	must(t, f.Close())
	return path
}

// rowCounts returns the number of rows of each table of a database.
func rowCounts(t *testing.T, path string) map[string]int {
	t.Helper()
	db, err := sqlx.Open("sqlite", "file:"+path+"?mode=ro")
	must(t, err)
	defer db.Close()
	var tables []string
	must(t, db.Select(&tables, `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'`))
	counts := map[string]int{}
	for _, table := range tables {
		var n int
		must(t, db.Get(&n, "SELECT count(*) FROM "+table))
		counts[table] = n
	}
	return counts
}

func TestDatabasesOfEarlierVersionsAreUpgraded(t *testing.T) {
	all, err := readMigrations(embedded)
	must(t, err)
	for version := firstFixture; version <= len(all); version++ {
		t.Run(fmt.Sprintf("schema %d", version), func(t *testing.T) {
			path := fixture(t, version)
			before := rowCounts(t, path)
			s := openAt(t, path)
			ctx := t.Context()
			vms, err := s.VMs(ctx, vm.VMFilter{}, vm.Page{})
			must(t, err)
			if len(vms) != 2 || vms[0].ID != "web-1" || vms[0].Restart != vm.RestartAlways || vms[0].Autostart.Order != 7 ||
				vms[0].State != vm.Paused || len(vms[0].Forwards) != 1 || len(vms[0].CDROMs) != 1 || len(vms[1].NICs) != 2 {
				t.Errorf("VMs %+v", vms)
			}
			disks, err := s.Disks(ctx, vm.DiskFilter{}, vm.Page{})
			must(t, err)
			images, err := s.Images(ctx, vm.ImageFilter{}, vm.Page{})
			must(t, err)
			networks, err := s.Networks(ctx, vm.Page{})
			must(t, err)
			templates, err := s.Templates(ctx, vm.Page{})
			must(t, err)
			tokens, err := s.Tokens(ctx)
			must(t, err)
			operations, err := s.Operations(ctx, vm.OperationFilter{}, vm.Page{})
			must(t, err)
			_, err = s.Seed(ctx, "web-1")
			must(t, err)
			events, err := s.Events(ctx, vm.EventFilter{}, vm.Page{Limit: 1000})
			must(t, err)
			for table, n := range map[string]int{
				"vms": len(vms), "disks": len(disks), "images": len(images), "networks": len(networks), "templates": len(templates),
				"tokens": len(tokens), "operations": len(operations), "events": len(events),
			} {
				if n == 0 || n != before[table] {
					t.Errorf("%d rows of %s are read, the old database has %d", n, table, before[table])
				}
			}
			if images[0].VirtualBytes() != 8<<20 || disks[0].SizeMiB != 1024 {
				t.Errorf("image of %d bytes, disk of %d MiB", images[0].VirtualBytes(), disks[0].SizeMiB)
			}
			update := vm.VMUpdate{From: vms[0].State, VM: vms[0]}
			update.VM.Description = "after the upgrade"
			apply(t, s, vm.Change{VM: &update})
			if version < len(all) {
				if _, err := os.Stat(fmt.Sprintf("%s.before-v%d", path, len(all))); err != nil {
					t.Errorf("no backup from before the upgrade: %v", err)
				}
			}
		})
	}
}

// firstFixture is the first schema with a fixture.
const firstFixture = 2
