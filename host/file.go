package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// tempSuffix ends the name of a file that is being written.
const tempSuffix = ".tmp"

// ErrNotDurable is matched by an error of [WriteFile] and [Publish] after which the
// file has its name and its new content, but a power failure may undo that.
var ErrNotDurable = errors.New("the directory cannot be flushed")

// TempName returns the name that the file name has until it is complete: a dot
// file beside it. No VM, disk or image has such a name.
func TempName(name string) string {
	return path.Join(path.Dir(name), "."+path.Base(name)+tempSuffix)
}

// IsTempName reports whether name is one that [TempName] returns.
func IsTempName(name string) bool {
	base := path.Base(name)
	return strings.HasPrefix(base, ".") && strings.HasSuffix(base, tempSuffix)
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
// On an error the temporary file is removed and the old file is unchanged, unless
// the error is [ErrNotDurable].
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
	if err := Sync(root, path.Dir(name)); err != nil {
		return fmt.Errorf("%w: %w", ErrNotDurable, err)
	}
	return nil
}

// Sync flushes the file name under root or, of a directory, the names in it: files
// that were created, renamed or removed there stay so after a power failure.
func Sync(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// removeFile removes a file under root. It returns nil if there is none.
func removeFile(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
