package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// ownerName is a unix socket in the abstract name space, of which each network
// namespace has its own: whoever listens on it manages the namespace's networks.
// It vanishes with its process, however that ends.
const ownerName = "@vmand-networks"

const tunDevice = "/dev/net/tun"

// claim makes this process the one that manages the networks. Nobody connects
// to the listener.
func claim() (net.Listener, error) {
	l, err := net.Listen("unix", ownerName)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &vm.Fault{Code: vm.CodeInUse, Detail: "another vmand manages the networks of this host"}
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", ownerName, err)
	}
	return l, nil
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
