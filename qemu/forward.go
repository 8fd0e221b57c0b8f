package qemu

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vmand/vm"
)

// SetForwards implements [vm.Plugger]. It looks at what QEMU listens on, so
// repeating it, also after it was cut short, does what is left to do. If one
// cannot be had, all are as they were.
func (d *Driver) SetForwards(ctx context.Context, vmID string, slot int, had, want []vm.PortForward) error {
	for _, f := range slices.Concat(had, want) {
		if _, err := forwardRule(f); err != nil {
			return err
		}
	}
	s, err := d.live(vmID)
	if err != nil {
		return err
	}
	there, err := s.forwards(ctx, slot)
	if err != nil {
		return err
	}
	var drop, add []vm.PortForward
	for _, f := range there {
		if contains(had, f) && !contains(want, f) {
			drop = append(drop, f)
		}
	}
	for _, f := range want {
		if !contains(there, f) {
			add = append(add, f)
		}
	}
	return s.changeForwards(ctx, slot, drop, add)
}

// changeForwards removes first: what is added may be in the place of it.
func (s *session) changeForwards(ctx context.Context, slot int, drop, add []vm.PortForward) error {
	for _, f := range drop {
		if err := s.removeForward(ctx, slot, f); err != nil {
			return err
		}
	}
	for i, f := range add {
		err := s.addForward(ctx, slot, f)
		if err == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
		defer cancel()
		for _, f := range add[:i] {
			if e := s.removeForward(ctx, slot, f); e != nil {
				s.log.Warn("a port forward stays", "port_forward", f.ID, "error", e)
			}
		}
		for _, f := range drop {
			if e := s.addForward(ctx, slot, f); e != nil {
				s.log.Warn("a port forward is lost", "port_forward", f.ID, "error", e)
			}
		}
		return err
	}
	return nil
}

// sameForward reports whether two forwards lead from the same to the same.
func sameForward(a, b vm.PortForward) bool {
	return a.Protocol == b.Protocol && a.HostAddress == b.HostAddress && a.HostPort == b.HostPort && a.GuestPort == b.GuestPort
}

func contains(all []vm.PortForward, f vm.PortForward) bool {
	return slices.ContainsFunc(all, func(g vm.PortForward) bool { return sameForward(f, g) })
}

// human runs a command of QEMU's human monitor, the only one that knows of
// forwards, and returns what it says: nothing if all went well. The command must
// be made of checked parts.
func (s *session) human(ctx context.Context, command string) (string, error) {
	var said string
	args := map[string]string{"command-line": command}
	err := s.execute(ctx, queryTimeout, "human-monitor-command", args, &said)
	return strings.TrimSpace(said), err
}

// addForward makes QEMU listen.
func (s *session) addForward(ctx context.Context, slot int, f vm.PortForward) error {
	rule, err := forwardRule(f)
	if err != nil {
		return err
	}
	said, err := s.human(ctx, "hostfwd_add "+nicNetdev(slot)+" "+rule)
	switch {
	case err != nil || said == "":
		return err
	case strings.Contains(strings.ToLower(said), "could not set up host forwarding rule"):
		where := netip.AddrPortFrom(f.HostAddress, uint16(f.HostPort))
		in := fault(vm.CodeInUse, nil, "QEMU of VM %s cannot listen on %s port %s", s.id, f.Protocol, where)
		in.Hint = "choose another host_port: a program of the host listens there, the host does not have the address, or the port is below 1024"
		return in
	}
	return fault(vm.CodeOperationFailed, nil, "QEMU of VM %s refused port forward %s: %s", s.id, rule, said)
}

// removeForward makes QEMU listen no more. Connections that are open go on.
func (s *session) removeForward(ctx context.Context, slot int, f vm.PortForward) error {
	source, err := forwardSource(f)
	if err != nil {
		return err
	}
	said, err := s.human(ctx, "hostfwd_remove "+nicNetdev(slot)+" "+source)
	if err != nil || strings.HasSuffix(said, " removed") || strings.HasSuffix(said, " not found") {
		return err
	}
	return fault(vm.CodeOperationFailed, nil, "QEMU of VM %s did not remove port forward %s: %s", s.id, source, said)
}

// forwards returns what the user-mode network of a NIC listens on. It fails with
// [vm.CodeState] if QEMU is not the NIC's network.
func (s *session) forwards(ctx context.Context, slot int) ([]vm.PortForward, error) {
	said, err := s.human(ctx, "info usernet")
	if err != nil {
		return nil, err
	}
	there, ok := parseForwards(said, nicNetdev(slot))
	if !ok {
		f := fault(vm.CodeState, nil, "the port forwards of NIC %d of VM %s cannot be changed while it runs", slot, s.id)
		f.Hint = "it takes effect at the next start of the VM"
		return nil, f
	}
	return there, nil
}

// parseForwards reads "info usernet": for each user-mode network a heading that
// ends with its name in brackets, a line of titles, and a line for each socket.
//
//	Hub -1 (net-0):
//	  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
//	  TCP[HOST_FORWARD]  12               *  8080       10.0.2.15    80     0     0
//
// It reports false if the network is not among them.
func parseForwards(said, netdev string) (there []vm.PortForward, ok bool) {
	inside := false
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if strings.HasSuffix(line, "):") {
			inside = strings.HasSuffix(line, " ("+netdev+"):")
			ok = ok || inside
			continue
		}
		if f, is := parseForward(strings.Fields(line)); inside && is {
			there = append(there, f)
		}
	}
	return there, ok
}

func parseForward(fields []string) (vm.PortForward, bool) {
	if len(fields) < 6 {
		return vm.PortForward{}, false
	}
	protocol, is := strings.CutSuffix(fields[0], "[HOST_FORWARD]")
	address, err := netip.ParseAddr(fields[2])
	if fields[2] == "*" {
		address, err = netip.IPv4Unspecified(), nil
	}
	hostPort, err1 := strconv.Atoi(fields[3])
	guestPort, err2 := strconv.Atoi(fields[5])
	f := vm.PortForward{Protocol: vm.Protocol(strings.ToLower(protocol)), HostAddress: address, HostPort: hostPort, GuestPort: guestPort}
	return f, is && err == nil && err1 == nil && err2 == nil
}
