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

// awaitReaders sees to it that nobody has a file open that could change it still: who
// opened it while it was his keeps the right to. The kernel grants a lease to read
// only then. f is open to read alone. A child between fork and exec may have the
// descriptor that the file was made with for a moment. Where the file system knows no
// leases (NFS), nothing can be said.
func awaitReaders(ctx context.Context, f *os.File) error {
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
			return fmt.Errorf("somebody has the file that is to be an image open to write: %w", context.Cause(ctx))
		}
	}
}
