package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// ownerAddress is a UDP port of loopback, of which each network namespace has its
// own: whoever has it manages the namespace's networks. It vanishes with its
// process, however that ends, and only root can have it, so that no user of the
// host can keep vmand from its networks. The address is "vma" in ASCII, and nobody
// listens on the port of POP2 any more.
var ownerAddress = netip.MustParseAddrPort("127.118.109.97:109")

const tunDevice = "/dev/net/tun"

// claim makes this process the one that manages the networks. Nobody sends to
// the socket. Loopback may be down, so the address is taken without it.
func claim() (io.Closer, error) {
	bind := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(err, failed)
	}}
	s, err := bind.ListenPacket(context.Background(), "udp4", ownerAddress.String())
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &vm.Fault{Code: vm.CodeInUse, Detail: "another vmand manages the networks of this host"}
	}
	if err != nil {
		return nil, fmt.Errorf("take UDP port %s: %w", ownerAddress, err)
	}
	return s, nil
}

// privileged reports why this process may not administer the network; nil if it may.
func privileged() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("vmand has not the capability CAP_NET_ADMIN")
	}
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("taps cannot be made: %w", err)
	}
	return f.Close()
}
