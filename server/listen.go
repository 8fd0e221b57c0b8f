package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// maxSocketPath is the maximum length in bytes of the path of a unix socket: 108 in
// sun_path with the final NUL (unix(7)).
const maxSocketPath = 107

// ListenTCP listens on a TCP address such as 127.0.0.1:8000.
func ListenTCP(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

// ListenUnix listens on a unix socket at path. The owner and the members of group (a
// name or a number; empty for the group of the process) may connect. A socket file
// without a listener is left over from a killed daemon and is replaced. Closing the
// listener removes the file.
func ListenUnix(path, group string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on %s: the path has %d bytes, the maximum for a unix socket is %d", path,
			len(path),
			maxSocketPath)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := openTo(path, group); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// openTo allows the members of group to connect. authenticate checks the credentials
// of each connection as well.
func openTo(path, group string) error {
	dir, err := os.OpenRoot(filepath.Dir(path)) // a link in the place of the socket must not lead elsewhere
	if err != nil {
		return fmt.Errorf("open the directory of %s: %w", path, err)
	}
	defer dir.Close()
	name := filepath.Base(path)
	if group != "" {
		gid, err := groupID(group)
		if err != nil {
			return fmt.Errorf("give %s to the group %s: %w", path, group, err)
		}
		if err := dir.Lchown(name, -1, gid); err != nil {
			return fmt.Errorf("give %s to the group %s: %w", path, group, err)
		}
	}
	if err := dir.Chmod(name, 0o660); err != nil {
		return fmt.Errorf("set the mode of %s: %w", path, err)
	}
	return nil
}

// removeStale removes a socket file that no process listens on. It fails if path is
// another file or a process listens.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen on %s: the file exists and is not a socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("listen on %s: another process is listening", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("listen on %s: cannot connect to the existing socket: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the stale socket %s: %w", path, err)
	}
	return nil
}
