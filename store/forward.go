package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"

	"vmand/vm"
)

// everyAddress returns the host address of a forward that listens on all addresses of the family
// of a.
func everyAddress(a netip.Addr) string {
	if a.Is6() {
		return "::"
	}
	return "0.0.0.0"
}

// replaceHostPorts rewrites the index of a VM's host ports. The transaction holds
// the write lock, so a port that portTaken finds free is still free when it is
// inserted.
func replaceHostPorts(ctx context.Context, tx *transaction, v vm.VM) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM vm_host_ports WHERE vm_id = ?`, v.ID); err != nil {
		return err
	}
	for _, f := range v.Forwards {
		if err := portTaken(ctx, tx, f); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `
			INSERT INTO vm_host_ports (vm_id, id, protocol, host_address, host_port, ports) VALUES (?, ?, ?, ?, ?, ?)`,
			v.ID, f.ID, string(f.Protocol), address(f.HostAddress), f.HostPort, f.Count())
		if err != nil {
			return err
		}
	}
	return nil
}

// portTaken returns the fault of a forward that would listen where another one
// listens, nil if its ports are free. A forward that overlaps begins at most
// [vm.MaxPorts] below the last port of f.
func portTaken(ctx context.Context, tx *transaction, f vm.PortForward) error {
	var id, forward, listens string
	var first int
	err := tx.QueryRowxContext(ctx, `
		SELECT vm_id, id, host_address, host_port FROM vm_host_ports
		WHERE protocol = ?1 AND host_port BETWEEN ?2 - ?6 + 1 AND ?2 + ?5 - 1 AND host_port + ports > ?2
			AND (host_address = ?3 OR host_address = ?4 OR ?3 = ?4 AND (instr(host_address, ':') > 0) = (instr(?3, ':') > 0))
		ORDER BY host_port LIMIT 1`,
		string(f.Protocol), f.HostPort, address(f.HostAddress), everyAddress(f.HostAddress), f.Count(), vm.MaxPorts,
	).Scan(&id, &forward, &listens, &first)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	port := netip.AddrPortFrom(f.HostAddress, uint16(max(first, f.HostPort)))
	detail := fmt.Sprintf("host port %s %s is in use by port forward %s of VM %s", f.Protocol, port, forward, id)
	if listens != f.HostAddress.String() {
		detail += ", which listens on " + listens
	}
	return &vm.Fault{Code: vm.CodeInUse, Detail: detail, Hint: "choose another host port or host address"}
}
