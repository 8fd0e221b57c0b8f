package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	writersPatience = 2 * time.Second
	writersPoll     = 10 * time.Millisecond
)

// awaitNoWriters waits until no process has f open for writing. Such a process could
// still change the file after a change of owner, since permissions are checked when a
// file is opened. f must be open for reading only.
//
// The kernel grants a read lease only on a file that is not open for writing. A child
// between fork and exec may hold a descriptor of the file for a moment, so the lease is
// retried for 2 s. On a file system without leases (NFS), awaitNoWriters returns nil at
// once: there the state cannot be determined.
func awaitNoWriters(ctx context.Context, f *os.File) error {
	ctx, stop := context.WithTimeout(ctx, writersPatience)
	defer stop()
	poll := time.NewTicker(writersPoll)
	defer poll.Stop()
	for {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
		if err == nil {
			_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
			return err
		}
		if !errors.Is(err, unix.EAGAIN) {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("the image file is still open for writing in a process: %w", context.Cause(ctx))
		}
	}
}
