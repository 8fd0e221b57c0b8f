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

// servers are those of one network; nil for one that is not served.
type servers struct {
	network vm.Network
	bridge  int // its index: of a bridge that was made again, servers are dead
	dhcp    *dhcp.Server
	dns     *dns.Server
	ndp     *ndp.Advertiser
}

func (s *servers) each(f func(what string, s server)) {
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
	s.each(func(what string, one server) {
		if err := one.Close(); err != nil {
			log.Warn("a server of a network did not end well", "network", s.network.Name, "server", what, "err", err)
		}
	})
	s.dhcp, s.dns, s.ndp = nil, nil, nil
}

// fault returns why not all servers serve; nil while they do.
func (s *servers) fault(bridge int) error {
	if s == nil || s.dhcp == nil || s.dns == nil || s.network.IPv6.IsValid() && s.ndp == nil {
		return errors.New("not all of DHCP, DNS and router advertisements are served")
	}
	if s.bridge != bridge {
		return errors.New("the bridge is another one than DHCP and DNS are served on")
	}
	var found error
	s.each(func(what string, one server) {
		if err := one.Err(); err != nil {
			found = errors.Join(found, fmt.Errorf("%s is not served: %w", what, err))
		}
	})
	return found
}

// moved reports whether servers have to be made anew for what a network is now.
func (s *servers) moved(nw vm.Network) bool {
	return s.network.Bridge != nw.Bridge || s.network.Gateway != nw.Gateway || s.network.Subnet != nw.Subnet || s.network.IPv6 != nw.IPv6
}

// serve makes the servers of a network, or tells them what it is now. The
// caller holds n.mu.
func (n *Networks) serve(nw vm.Network) error {
	link, err := n.bridgeOf(nw)
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	s := n.serving[nw.Name]
	if s != nil && !s.moved(nw) && s.fault(index) == nil {
		s.network = nw
		s.each(func(_ string, one server) { one.Update(nw) })
		return nil
	}
	if s != nil {
		s.close(n.log)
	}
	s = &servers{network: nw, bridge: index}
	n.serving[nw.Name] = s
	return s.start(n)
}

// start makes the servers. One that cannot be does not keep the others from it.
func (s *servers) start(n *Networks) error {
	log := n.log.With("network", s.network.Name)
	var faults []error
	fail := func(what, rival string, err error) {
		f := unavailable(err, "serve %s on network %s", what, s.network.Name)
		f.Hint = "see who has the port, and let it leave " + s.network.Bridge + " alone: " + rival
		faults = append(faults, f)
	}
	var err error
	if s.dhcp, err = dhcp.New(dhcp.Options{Interface: s.network.Bridge, Network: s.network, Directory: n.o.Directory, Acked: n.acks.note, Log: log}); err != nil {
		s.dhcp = nil
		fail("DHCP", "ss -lnup 'sport = 67' (dnsmasq: except-interface="+s.network.Bridge+", bind-dynamic)", err)
	}
	if s.dns, err = dns.New(dns.Options{Interface: s.network.Bridge, Network: s.network, Directory: n.o.Directory, Log: log}); err != nil {
		s.dns = nil
		fail("DNS", "ss -lnp 'sport = 53' (dnsmasq: except-interface="+s.network.Bridge+", bind-dynamic)", err)
	}
	if s.network.IPv6.IsValid() {
		if s.ndp, err = ndp.New(ndp.Options{Interface: s.network.Bridge, Network: s.network, Log: log}); err != nil {
			s.ndp = nil
			fail("router advertisements", "ip -6 address show dev "+s.network.Bridge, err)
		}
	}
	return errors.Join(faults...)
}
