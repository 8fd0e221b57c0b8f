package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
)

// tempSuffix ends the name of a file that is being written.
const tempSuffix = ".tmp"

// TempName returns the name that the file name has until it is complete: a dot
// file beside it. No VM, disk or image has such a name.
func TempName(name string) string {
	return path.Join(path.Dir(name), "."+path.Base(name)+tempSuffix)
}

// CreateTemp creates the empty file name under root, open for reading and
// writing, and replaces the file of that name that an interrupted write left.
func CreateTemp(root *os.Root, name string, mode fs.FileMode) (*os.File, error) {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
}

// WriteFile creates or replaces the file name under root durably: write fills
// the temporary file [TempName] of it, which then gets its name by [Publish].
// write may also change the owner and the mode of the file. A reader sees the
// old file or the complete new one, also after a power failure.
//
// On an error the temporary file is removed and the old file is unchanged, except
// if only the fsync of the directory failed: then the file has its new content,
// but a power failure may still undo the rename. A caller to whom an error means
// that no such file exists removes name.
//
// Two calls for the same name must not overlap.
func WriteFile(root *os.Root, name string, mode fs.FileMode, write func(f *os.File) error) error {
	temp := TempName(name)
	f, err := CreateTemp(root, temp, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := write(f); err != nil {
		return errors.Join(err, removeFile(root, temp))
	}
	return Publish(root, f, temp, name)
}

// Publish gives a complete file its name durably: it flushes f, which has the
// name temp, renames it to name and flushes the directory of name. A file that
// has that name already is replaced. The errors are those of [WriteFile].
func Publish(root *os.Root, f *os.File, temp, name string) error {
	if err := f.Sync(); err != nil {
		return errors.Join(err, removeFile(root, temp))
	}
	if err := root.Rename(temp, name); err != nil {
		return errors.Join(err, removeFile(root, temp))
	}
	return SyncDir(root, path.Dir(name))
}

// SyncDir makes the names in the directory dir under root durable: files that
// were created, renamed or removed there stay so after a power failure.
func SyncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("flush the directory: %w", err)
	}
	return nil
}

// removeFile removes a file under root. It returns nil if there is none.
func removeFile(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
