package guard

import (
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

// retryAfter is how long a reader rests after an error that may pass, such as an
// interface that is down.
const retryAfter = time.Second

// Datagrams is how datagrams of a socket are read and handled: by one reader and
// some workers. What comes while all workers have enough to do is dropped.
type Datagrams[A any] struct {
	Read    func([]byte) (int, A, error)
	Handle  func([]byte, A) // may not keep the bytes
	Size    int             // of the largest datagram that is not cut
	Workers int
	Log     *Log
}

type datagram[A any] struct {
	bytes []byte
	from  A
}

// Serve reads until ctx is done, which whoever ends it has to follow up by
// closing the socket, or until the socket fails: then it returns why. It returns
// when all workers have ended.
func (d Datagrams[A]) Serve(ctx context.Context) error {
	queue := 16 * d.Workers
	work := make(chan datagram[A], queue)
	free := make(chan []byte, queue+d.Workers)
	for range cap(free) {
		free <- make([]byte, 0, d.Size)
	}
	var workers sync.WaitGroup
	for range d.Workers {
		workers.Go(func() {
			for g := range work {
				d.handle(g)
				free <- g.bytes[:0]
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
			if err := rest(ctx, err); err != nil {
				return err
			}
			continue
		}
		select {
		case b := <-free: // there are as many as fit in the queue, so this send does not block
			work <- datagram[A]{append(b, buffer[:n]...), from}
		default:
		}
	}
}

func (d Datagrams[A]) handle(g datagram[A]) {
	defer d.Log.Recover()
	d.Handle(g.bytes, g.from)
}

// rest returns err if a socket is of no use after it. Otherwise it waits, so that
// a socket which fails again and again costs nothing, and returns nil.
func rest(ctx context.Context, err error) error {
	passes := errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
	if !passes {
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

// InterfaceIndex returns the index that an interface has in the network
// namespace of a socket.
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
	if err := raw.Control(func(fd uintptr) { failed = unix.IoctlIfreq(int(fd), unix.SIOCGIFINDEX, request) }); err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, fmt.Errorf("interface %s: %w", name, failed)
	}
	return int(request.Uint32()), nil
}

// StillThere returns nil if the interface of a name is the one it was when it had
// the index: a socket stays bound to an interface that is gone, and hears nothing.
func StillThere(socket syscall.Conn, name string, index int) error {
	now, err := InterfaceIndex(socket, name)
	switch {
	case errors.Is(err, net.ErrClosed):
		return nil // whoever closed it says why
	case err != nil:
		return err
	case now != index:
		return fmt.Errorf("interface %s was replaced by another of its name", name)
	}
	return nil
}

// LinkAddress returns the Ethernet address that an interface has in the network
// namespace of a socket.
func LinkAddress(socket syscall.Conn, name string) (net.HardwareAddr, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	// struct ifreq: the name, then a struct sockaddr with the address after its family.
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
