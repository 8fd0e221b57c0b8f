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

// ownerAddress is a UDP port of loopback, of which each network namespace has its own:
// the process that holds it manages the networks of the namespace. The kernel frees it
// when the process ends, however it ends. Only root can bind it, so no user of the host
// can lock vmand out. The address is "vma" in ASCII; the port is that of POP2, which is
// no longer in use.
var ownerAddress = netip.MustParseAddrPort("127.118.109.97:109")

const tunDevice = "/dev/net/tun"

// claim makes this process the owner of the namespace until the result is closed. It
// returns a fault of code [vm.CodeInUse] if another process is the owner. The socket
// receives nothing. IP_FREEBIND makes it work while loopback is down.
func claim() (io.Closer, error) {
	bind := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		})
		return errors.Join(err, failed)
	}}
	s, err := bind.ListenPacket(context.Background(), "udp4", ownerAddress.String())
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &vm.Fault{Code: vm.CodeInUse, Detail: "another vmand manages the networks of this host"}
	}
	if err != nil {
		return nil, fmt.Errorf("bind UDP port %s: %w", ownerAddress, err)
	}
	return s, nil
}

// checkPrivileges returns an error if this process may not configure the network.
func checkPrivileges() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("vmand lacks the capability CAP_NET_ADMIN")
	}
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("taps cannot be created: %w", err)
	}
	return f.Close()
}
