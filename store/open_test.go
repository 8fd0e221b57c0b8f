package store

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

func TestEveryConnectionHasEveryPragma(t *testing.T) {
	s := open(t)
	common := map[string]string{"busy_timeout": "5000", "foreign_keys": "1", "trusted_schema": "0", "temp_store": "2", "journal_mode": "wal", "synchronous": "2"}
	for name, tt := range map[string]struct {
		pool      *sqlx.DB
		n         int
		queryOnly string
	}{"writer": {s.writer, 1, "0"}, "reader": {s.reader, readers, "1"}} {
		if got := tt.pool.Stats().MaxOpenConnections; got != tt.n {
			t.Errorf("the %s has up to %d connections; want %d", name, got, tt.n)
		}
		for i := range tt.n {
			c, err := tt.pool.Connx(t.Context()) // held, so that the next one is another
			must(t, err)
			defer c.Close()
			ask := func(pragma, want string) {
				var got string
				must(t, c.GetContext(t.Context(), &got, "PRAGMA "+pragma))
				if got != want {
					t.Errorf("%s %d: %s is %s; want %s", name, i, pragma, got, want)
				}
			}
			for pragma, want := range common {
				ask(pragma, want)
			}
			ask("query_only", tt.queryOnly)
		}
	}
}

func TestATransactionTakesTheWriteLockAtItsStart(t *testing.T) {
	s := open(t)
	other, err := sqlx.Open("sqlite", dataSource(s.path, []string{"busy_timeout(0)"}, "immediate", "rw"))
	must(t, err)
	defer other.Close()
	must(t, s.write(t.Context(), func(*transaction) error {
		if tx, err := other.Beginx(); err == nil {
			return fmt.Errorf("another transaction began: %w", tx.Rollback())
		}
		return nil
	}))
}

func TestOnlyTheOwnerMayReadTheDatabase(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // the umask must not matter
	path := filepath.Join(t.TempDir(), "vman.db")
	for range 2 { // a new file, and one with wider permissions
		s, err := Open(t.Context(), Options{Path: path})
		must(t, err)
		makeTemplate(t, s, fmt.Sprint(os.Getpid(), &s))
		for _, suffix := range []string{"", "-wal", "-shm"} {
			info, err := os.Stat(path + suffix)
			must(t, err)
			if info.Mode() != 0o600 {
				t.Errorf("%s has mode %v; want 0600", info.Name(), info.Mode())
			}
		}
		must(t, s.Close())
		must(t, os.Chmod(path, 0o666))
	}
}

func TestAnyPathWorks(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a b.db", "a?b=c&d#e.db", "100%41.db", "it's \"it\".db", "ü/日本.db", "_txlock=deferred"} {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		openAt(t, path)
		if info, err := os.Stat(path); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v; want the database to exist", name, err)
		}
		must(t, backup(t.Context(), path, path+".copy"))
	}
	t.Chdir(dir)
	for _, name := range []string{"plain", "with:colon", "./dot"} {
		openAt(t, name)
		if info, err := os.Stat(name); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v; want the database to exist", name, err)
		}
	}
}

func TestAnEmptyFileIsANewDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vman.db")
	must(t, os.WriteFile(path, nil, 0o600))
	makeTemplate(t, openAt(t, path), "small")
	if left, _ := filepath.Glob(path + ".before*"); left != nil {
		t.Errorf("an empty file was backed up: %q", left)
	}
}

func TestRowsPersistAfterReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vman.db")
	s, err := Open(t.Context(), Options{Path: path})
	must(t, err)
	makeTemplate(t, s, "small")
	must(t, s.Close())
	if _, err := os.Stat(path + "-wal"); err == nil {
		t.Error("the write-ahead log is left behind")
	}
	if list, err := openAt(t, path).Templates(t.Context(), vm.Page{}); err != nil || len(list) != 1 {
		t.Errorf("there are %v, %v; want one template", list, err)
	}
}

// filledBytes is the content of a closed database of many rows, created once.
var filledBytes []byte

// filled returns the path of a closed database of 2000 VMs.
func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vman.db")
	if filledBytes != nil {
		must(t, os.WriteFile(path, filledBytes, 0o600))
		return path
	}
	s, err := Open(t.Context(), Options{Path: path})
	must(t, err)
	makeTemplate(t, s, "small")
	must(t, s.write(t.Context(), func(tx *transaction) error {
		for i := range 2000 {
			_, err := insertVM(t.Context(), tx, makeVM(i), at)
			must(t, err)
		}
		return nil
	}))
	must(t, s.Close())
	filledBytes, err = os.ReadFile(path)
	must(t, err)
	return path
}

// noise returns n random bytes.
func noise(n int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

func run(t *testing.T, path, sql string) {
	t.Helper()
	db, err := sqlx.Open("sqlite", dataSource(path, nil, "", "rwc"))
	must(t, err)
	_, err = db.Exec(sql)
	must(t, err)
	must(t, db.Close())
}

func TestARefusedDatabaseIsNotChanged(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, path string)
		want  []string
	}{
		"cut off": {func(t *testing.T, path string) {
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.Truncate(path, info.Size()/2))
		}, []string{"is damaged", "replace it by a backup"}},
		"cut off within a page": {func(t *testing.T, path string) { must(t, os.Truncate(path, 5000)) }, []string{"is damaged"}},
		"noise in the middle": {func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			_, err = f.WriteAt(noise(20_000), 100_000)
			must(t, err)
			must(t, f.Close())
		}, []string{"is damaged", "none found beside it"}},
		"noise, with a backup": {func(t *testing.T, path string) {
			must(t, os.WriteFile(path, noise(50_000), 0o600))
			must(t, os.WriteFile(path+".before-v7", nil, 0o600))
		}, []string{"is damaged", "vman.db.before-v7"}},
		"a word": {func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("hello"), 0o600)) }, []string{"is damaged"}},
		"of the future": {func(t *testing.T, path string) { run(t, path, "PRAGMA user_version = 99") },
			[]string{"version 99", fmt.Sprint("up to ", version(t, 1)), "install the newer vmand", "restore the backup"}},
		"of another program": {func(t *testing.T, path string) {
			must(t, os.Remove(path))
			run(t, path, "PRAGMA user_version = 1; CREATE TABLE bookmarks (url)")
		}, []string{"database of another program"}},
		"of another program without a version": {func(t *testing.T, path string) {
			must(t, os.Remove(path))
			run(t, path, "CREATE TABLE bookmarks (url)")
		}, []string{"database of another program"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filled(t)
			tt.spoil(t, path)
			before, err := os.ReadFile(path)
			must(t, err)
			_, err = Open(t.Context(), Options{Path: path})
			f := wantFault(t, err, vm.CodeUnavailable)
			for _, want := range append(tt.want, path, "not changed") {
				if !strings.Contains(f.Error(), want) {
					t.Errorf("the error is %q; want %q in it", f, want)
				}
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the file has changed (%d bytes before, %d now, %v)", len(before), len(after), err)
			}
		})
	}
}

func TestTheLogOfARefusedDatabaseIsNotChanged(t *testing.T) {
	path := filled(t)
	run(t, path, "PRAGMA user_version = 99")
	// As after a kill, the last change is only in the write-ahead log.
	s, err := sqlx.Open("sqlite", dataSource(path, writerPragmas, "", "rw"))
	must(t, err)
	_, err = s.Exec(`UPDATE vms SET revision = revision + 1`)
	must(t, err)
	dir := t.TempDir()
	killed := filepath.Join(dir, "vman.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		must(t, err)
		must(t, os.WriteFile(killed+suffix, b, 0o600))
	}
	must(t, s.Close())
	before, err := os.ReadFile(killed + "-wal")
	must(t, err)
	_, err = Open(t.Context(), Options{Path: killed})
	wantFault(t, err, vm.CodeUnavailable)
	if after, err := os.ReadFile(killed + "-wal"); err != nil || len(before) == 0 || !bytes.Equal(before, after) {
		t.Errorf("the log has changed (%d bytes before, %d now, %v)", len(before), len(after), err)
	}
}

func TestDamageFoundByAReadIsReported(t *testing.T) {
	path := filled(t)
	s := openAt(t, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(noise(200_000), 20_000)
	must(t, err)
	must(t, f.Close())
	_, err = s.VMs(t.Context(), vm.VMFilter{}, vm.Page{})
	if f := wantFault(t, err, vm.CodeUnavailable); !strings.Contains(f.Detail, path+" is damaged") {
		t.Errorf("the detail is %q", f.Detail)
	}
}

func TestAnUnsuitablePathIsReported(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "none", "vman.db"), "/dev/null"} {
		_, err := Open(t.Context(), Options{Path: path})
		if f := wantFault(t, err, vm.CodeUnavailable); !strings.Contains(f.Error(), path) {
			t.Errorf("the error is %q; want %s in it", f, path)
		}
	}
}

// asOrdinaryUser runs f without the permission of root to write everywhere.
func asOrdinaryUser(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() == 0 {
		runtime.LockOSThread() // the user id for file access is per thread
		defer runtime.UnlockOSThread()
		must(t, syscall.Setfsuid(65534))
		defer func() { must(t, syscall.Setfsuid(0)) }()
	}
	f()
}

// ownedByOrdinaryUser makes the user of asOrdinaryUser the owner of a directory and its
// files, and its parent accessible.
func ownedByOrdinaryUser(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		must(t, err)
		return os.Chown(path, 65534, 65534)
	}))
}

func TestAReadOnlyDatabaseIsRefusedAtOpen(t *testing.T) {
	for name, tt := range map[string]struct {
		fileMode, dirMode fs.FileMode
		fresh             bool
		want              string
	}{
		"a new file in a directory":    {0, 0o500, true, "vmand must be allowed to write to it"},
		"a file in a directory":        {0o600, 0o500, false, "cannot be written"},
		"a file":                       {0o400, 0o700, false, "cannot be written"},
		"a file that is also unread":   {0, 0o700, false, "cannot be opened"},
		"a file, all in the directory": {0o400, 0o500, false, "cannot be written"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filled(t)
			dir := filepath.Dir(path)
			if tt.fresh {
				must(t, os.Remove(path))
			} else {
				must(t, os.Chmod(path, tt.fileMode))
			}
			ownedByOrdinaryUser(t, dir)
			must(t, os.Chmod(dir, tt.dirMode))
			defer os.Chmod(dir, 0o700)
			var err error
			asOrdinaryUser(t, func() { _, err = Open(t.Context(), Options{Path: path}) })
			f := wantFault(t, err, vm.CodeUnavailable)
			if !strings.Contains(f.Error(), path) || !strings.Contains(f.Error(), tt.want) {
				t.Errorf("the error is %q; want %s and %q in it", f, path, tt.want)
			}
		})
	}
}
