package qemu

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"vmand/vm"
)

// SetForwards implements [vm.Plugger]. It compares with the present forwards of
// QEMU, so a repetition finishes an interrupted attempt. If one forward is
// refused, all are as before.
func (d *Driver) SetForwards(ctx context.Context, vmID string, slot int, had, want []vm.PortForward) error {
	had, want = onePortEach(had), onePortEach(want)
	for _, f := range slices.Concat(had, want) {
		if _, err := forwardRule(f); err != nil {
			return err
		}
	}
	s, err := d.live(vmID)
	if err != nil {
		return err
	}
	present, err := s.forwards(ctx, slot)
	if err != nil {
		return err
	}
	var drop, add []vm.PortForward
	for _, f := range present {
		if contains(had, f) && !contains(want, f) {
			drop = append(drop, f)
		}
	}
	for _, f := range want {
		if !contains(present, f) {
			add = append(add, f)
		}
	}
	return s.changeForwards(ctx, slot, drop, add)
}

// onePortEach returns the same forwards as forwards of one port: QEMU knows no other ones.
func onePortEach(all []vm.PortForward) []vm.PortForward {
	var ones []vm.PortForward
	for _, f := range all {
		ones = slices.AppendSeq(ones, f.Each())
	}
	return ones
}

// changeForwards removes forwards and then adds others, which may use a port that
// became free. If one cannot be added, it undoes everything.
func (s *session) changeForwards(ctx context.Context, slot int, drop, add []vm.PortForward) error {
	for _, f := range drop {
		if err := s.removeForward(ctx, slot, f); err != nil {
			return err
		}
	}
	for i, f := range add {
		if err := s.addForward(ctx, slot, f); err != nil {
			s.restoreForwards(ctx, slot, add[:i], drop)
			return err
		}
	}
	return nil
}

// restoreForwards undoes a change of forwards. It is best effort.
func (s *session) restoreForwards(ctx context.Context, slot int, added, dropped []vm.PortForward) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
	defer cancel()
	for _, f := range added {
		if err := s.removeForward(ctx, slot, f); err != nil {
			s.log.Warn("cannot remove a port forward", "port_forward", f.ID, "err", err)
		}
	}
	for _, f := range dropped {
		if err := s.addForward(ctx, slot, f); err != nil {
			s.log.Warn("cannot restore a port forward", "port_forward", f.ID, "err", err)
		}
	}
}

// sameForward reports whether two forwards have the same source and destination.
func sameForward(a, b vm.PortForward) bool {
	return a.Protocol == b.Protocol &&
		a.HostAddress == b.HostAddress &&
		a.HostPort == b.HostPort &&
		a.GuestPort == b.GuestPort
}

// contains reports whether all has a forward that is the same as f.
func contains(all []vm.PortForward, f vm.PortForward) bool {
	return slices.ContainsFunc(all, func(g vm.PortForward) bool { return sameForward(f, g) })
}

// human runs a command of QEMU's human monitor, for what QMP has no command.
// It returns the output, which is empty after most commands that succeeded. All
// parts of the command must be validated.
func (s *session) human(ctx context.Context, command string) (string, error) {
	var output string
	args := map[string]string{"command-line": command}
	err := s.execute(ctx, queryTimeout, "human-monitor-command", args, &output)
	return strings.TrimSpace(output), err
}

// addForward adds a forward to the user-mode network of a NIC.
func (s *session) addForward(ctx context.Context, slot int, f vm.PortForward) error {
	rule, err := forwardRule(f)
	if err != nil {
		return err
	}
	output, err := s.human(ctx, "hostfwd_add "+nicNetdev(slot)+" "+rule)
	switch {
	case err != nil || output == "":
		return err
	case strings.Contains(strings.ToLower(output), "could not set up host forwarding rule"):
		where := netip.AddrPortFrom(f.HostAddress, uint16(f.HostPort))
		in := fault(vm.CodeInUse, nil, "QEMU of VM %s cannot listen on %s port %s", s.id, f.Protocol, where)
		in.Hint = "choose another host_port: a program of the host listens there, the host does not have the address, " +
			"or the port is below 1024"
		return in
	}
	return fault(vm.CodeOperationFailed, nil, "QEMU of VM %s refused port forward %s: %s", s.id, rule, output)
}

// removeForward removes a forward. Open connections stay.
func (s *session) removeForward(ctx context.Context, slot int, f vm.PortForward) error {
	source, err := forwardSource(f)
	if err != nil {
		return err
	}
	output, err := s.human(ctx, "hostfwd_remove "+nicNetdev(slot)+" "+source)
	if err != nil || strings.HasSuffix(output, " removed") || strings.HasSuffix(output, " not found") {
		return err
	}
	return fault(vm.CodeOperationFailed, nil, "QEMU of VM %s did not remove port forward %s: %s", s.id, source, output)
}

// forwards returns the forwards of the user-mode network of a NIC. It fails with
// [vm.CodeState] if QEMU does not provide the NIC's network.
func (s *session) forwards(ctx context.Context, slot int) ([]vm.PortForward, error) {
	output, err := s.human(ctx, "info usernet")
	if err != nil {
		return nil, err
	}
	present, ok := parseForwards(output, nicNetdev(slot))
	if !ok {
		f := fault(vm.CodeState, nil, "the port forwards of NIC %d of VM %s cannot be changed while it runs", slot, s.id)
		f.Hint = "it takes effect at the next start of the VM"
		return nil, f
	}
	return present, nil
}

// parseForwards parses the output of "info usernet". Each user-mode network has a
// heading that ends with its name in brackets, a line of titles, and a line for
// each socket:
//
//	Hub -1 (net-0):
//	  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
//	  TCP[HOST_FORWARD]  12               *  8080       10.0.2.15    80     0     0
//
// It reports false if the network is missing.
func parseForwards(output, netdev string) (present []vm.PortForward, ok bool) {
	inside := false
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if strings.HasSuffix(line, "):") {
			inside = strings.HasSuffix(line, " ("+netdev+"):")
			ok = ok || inside
			continue
		}
		if f, is := parseForward(strings.Fields(line)); inside && is {
			present = append(present, f)
		}
	}
	return present, ok
}

// parseForward parses the fields of a line. It reports false for other sockets.
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
	f := vm.PortForward{
		Protocol:    vm.Protocol(strings.ToLower(protocol)),
		HostAddress: address,
		HostPort:    hostPort,
		GuestPort:   guestPort,
	}
	return f, is && err == nil && err1 == nil && err2 == nil
}
