package network

import (
	"errors"
	"fmt"
	"log/slog"

	"vmand/network/dhcp"
	"vmand/network/dns"
	"vmand/network/ndp"
	"vmand/vm"
)

// A server answers the guests of one network.
type server interface {
	Update(vm.Network)
	Err() error
	Close() error
}

// servers holds the servers of one network. A nil server does not run.
type servers struct {
	record      vm.Network // the servers follow it
	failed      error      // why a server does not run
	bridgeIndex int        // servers do not survive the replacement of their bridge
	dhcp        *dhcp.Server
	dns         *dns.Server
	ndp         *ndp.Advertiser
}

// each calls f for every server that runs.
func (s *servers) each(f func(protocol string, s server)) {
	if s.dhcp != nil {
		f("DHCP", s.dhcp)
	}
	if s.dns != nil {
		f("DNS", s.dns)
	}
	if s.ndp != nil {
		f("router advertisements", s.ndp)
	}
}

func (s *servers) close(log *slog.Logger) {
	s.each(func(protocol string, one server) {
		if err := one.Close(); err != nil {
			log.Warn("cannot close a server of a network",
				"network", s.record.Name, "server", protocol, "err", err)
		}
	})
	s.dhcp, s.dns, s.ndp = nil, nil, nil
}

// fault returns why a server does not serve on the bridge, or nil if all serve. The
// receiver may be nil.
func (s *servers) fault(bridgeIndex int) error {
	if s == nil {
		return errors.New("DHCP and DNS are not served")
	}
	if s.failed != nil {
		return s.failed
	}
	if s.bridgeIndex != bridgeIndex {
		return errors.New("DHCP and DNS are served on a bridge that was replaced")
	}
	var found error
	s.each(func(protocol string, one server) {
		if err := one.Err(); err != nil {
			found = errors.Join(found, fmt.Errorf("%s is not served: %w", protocol, err))
		}
	})
	return found
}

// needRestart reports whether a changed record needs new servers. All other changes go
// through Update.
func (s *servers) needRestart(nw vm.Network) bool {
	return s.record.Bridge != nw.Bridge || s.record.Gateway != nw.Gateway ||
		s.record.Subnet != nw.Subnet || s.record.IPv6 != nw.IPv6
}

// ensureServers starts the servers of a network, or updates those that run. It must be
// called with mu held.
func (n *Networks) ensureServers(nw vm.Network) error {
	link, err := n.activeBridge(nw)
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	s := n.serving[nw.Name]
	if s != nil && !s.needRestart(nw) && s.fault(index) == nil {
		s.record = nw
		s.each(func(_ string, one server) { one.Update(nw) })
		return nil
	}
	if s != nil {
		s.close(n.log)
	}
	s = &servers{record: nw, bridgeIndex: index}
	n.serving[nw.Name] = s
	return s.start(n)
}

// start starts every server. If one fails, the others still start, and start returns a
// fault for each that failed.
func (s *servers) start(n *Networks) error {
	nw := s.record
	log := n.log.With("network", nw.Name)
	var faults []error
	fail := func(protocol, find string, err error) {
		faults = append(faults, unavailable(err, "%s of network %s is not served: find the program that has "+
			"the port and keep it off %s: %s", protocol, nw.Name, nw.Bridge, find))
	}
	dnsmasq := " (dnsmasq: except-interface=" + nw.Bridge + ", bind-dynamic)"
	var err error
	s.dhcp, err = dhcp.New(dhcp.Options{
		Interface: nw.Bridge,
		Network:   nw,
		Directory: n.o.Directory,
		Acked:     n.acks.note,
		Log:       log,
	})
	if err != nil {
		s.dhcp = nil
		fail("DHCP", "ss -lnup 'sport = 67'"+dnsmasq, err)
	}
	s.dns, err = dns.New(dns.Options{Interface: nw.Bridge, Network: nw, Directory: n.o.Directory, Log: log})
	if err != nil {
		s.dns = nil
		fail("DNS", "ss -lnp 'sport = 53'"+dnsmasq, err)
	}
	if nw.IPv6.IsValid() {
		s.ndp, err = ndp.New(ndp.Options{Interface: nw.Bridge, Network: nw, Log: log})
		if err != nil {
			s.ndp = nil
			fail("router advertisements", "ip -6 address show dev "+nw.Bridge, err)
		}
	}
	s.failed = errors.Join(faults...)
	return s.failed
}
