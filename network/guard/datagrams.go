package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// retryAfter is the pause of a reader after a temporary error, such as an interface that is
// down.
const retryAfter = time.Second

// Datagrams reads the datagrams of a socket with one reader and handles them with several
// workers. It drops datagrams while the queue of the workers is full.
type Datagrams[A any] struct {
	Read    func([]byte) (int, A, error)
	Handle  func([]byte, A) // must not keep the bytes; safe for concurrent use
	Size    int             // longer datagrams are truncated
	Workers int
	Queue   int // datagrams that wait for a worker; 0: 16 for each worker
	Log     *Log
}

type datagram[A any] struct {
	bytes []byte
	from  A
}

// Serve blocks until ctx is done or the socket fails, and until all workers have ended. It
// returns nil in the first case. The caller that cancels ctx must then close the socket, which
// unblocks the reader.
func (d Datagrams[A]) Serve(ctx context.Context) error {
	work := make(chan datagram[A], cmp.Or(d.Queue, 16*d.Workers))
	var workers sync.WaitGroup
	for range d.Workers {
		workers.Go(func() {
			for g := range work {
				d.handle(g)
			}
		})
	}
	defer workers.Wait()
	defer close(work)
	buffer := make([]byte, d.Size)
	for {
		n, from, err := d.Read(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if err := pause(ctx, err); err != nil {
				return err
			}
			continue
		}
		select {
		case work <- datagram[A]{append([]byte(nil), buffer[:n]...), from}:
		default:
		}
	}
}

func (d Datagrams[A]) handle(g datagram[A]) {
	defer d.Log.Recover()
	d.Handle(g.bytes, g.from)
}

// pause returns an error if err is permanent. Otherwise it waits for retryAfter and returns
// nil, so a socket that keeps failing costs nothing.
func pause(ctx context.Context, err error) error {
	temporary := errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
	if !temporary {
		return fmt.Errorf("read from the network: %w", err)
	}
	timer := time.NewTimer(retryAfter)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// InterfaceIndex returns the index of an interface in the network namespace of a socket.
func InterfaceIndex(socket syscall.Conn, name string) (int, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("interface %q: %w", name, err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.IoctlIfreq(int(fd), unix.SIOCGIFINDEX, request) })
	if err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, fmt.Errorf("interface %s: %w", name, failed)
	}
	return int(request.Uint32()), nil
}

// CheckInterface returns an error if the interface with a name is gone or has another index.
// A socket stays bound to an interface that is gone, and receives nothing. CheckInterface
// returns nil for a closed socket.
func CheckInterface(socket syscall.Conn, name string, index int) error {
	now, err := InterfaceIndex(socket, name)
	switch {
	case errors.Is(err, net.ErrClosed):
		return nil // its owner knows why
	case err != nil:
		return err
	case now != index:
		return fmt.Errorf("interface %s was replaced by another with the same name", name)
	}
	return nil
}

// LinkAddress returns the Ethernet address of an interface in the network namespace of a
// socket.
func LinkAddress(socket syscall.Conn, name string) (net.HardwareAddr, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	// struct ifreq: the name, then a struct sockaddr: the family and the address.
	var request struct {
		name   [unix.IFNAMSIZ]byte
		family uint16
		data   [22]byte
	}
	if len(name) >= len(request.name) {
		return nil, fmt.Errorf("interface %q: %w", name, unix.EINVAL)
	}
	copy(request.name[:], name)
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCGIFHWADDR, uintptr(unsafe.Pointer(&request)))
	})
	if err != nil {
		return nil, err
	}
	if errno != 0 {
		return nil, fmt.Errorf("address of interface %s: %w", name, errno)
	}
	return net.HardwareAddr(request.data[:6]), nil
}
