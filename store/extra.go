package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

// An ipRange is a range of IPv4 addresses as numbers.
type ipRange struct{ first, last int64 }

// replaceExtraAddresses rewrites the index of the extra addresses of a VM's NICs. The new rows of
// vm_addresses must be written already: it fails with [vm.CodeInUse] if an extra address is
// assigned to another NIC, or an assigned address of v is among the extra ones of another NIC.
func replaceExtraAddresses(ctx context.Context, tx *transaction, v vm.VM) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM vm_extra_addresses WHERE vm_id = ?`, v.ID); err != nil {
		return err
	}
	for _, n := range v.NICs {
		if len(n.Extra) == 0 || !n.Mode.Managed() {
			continue
		}
		var network vm.Network
		const query = `SELECT subnet, ipv6 FROM networks WHERE name = ?`
		err := tx.QueryRowxContext(ctx, query, n.Network).Scan((*prefix)(&network.Subnet), (*prefix)(&network.IPv6))
		if err != nil {
			return err
		}
		for _, p := range n.Extra {
			if err := insertExtraAddress(ctx, tx, v.ID, n, network, p); err != nil {
				return err
			}
		}
	}
	for _, n := range v.NICs {
		if err := extraOfOther(ctx, tx, v.ID, n); err != nil {
			return err
		}
	}
	return nil
}

func insertExtraAddress(
	ctx context.Context, tx *transaction, id string, n vm.NIC, network vm.Network, p netip.Prefix,
) error {
	first, last, ok := network.AssignedIn(p)
	if !ok { // no NIC can have an address in it
		return nil
	}
	var holder string
	var slot int
	var assigned netip.Addr
	err := tx.QueryRowxContext(ctx, `
		SELECT vm_id, slot, ip FROM vm_addresses
		WHERE network = ? AND ip BETWEEN ? AND ? AND NOT (vm_id = ? AND slot = ?) ORDER BY ip LIMIT 1`,
		n.Network, ipv4(first), ipv4(last), id, n.Slot).Scan(&holder, &slot, (*ipv4)(&assigned))
	if err == nil {
		if p.Addr().Is6() {
			assigned = network.AddressIPv6(assigned)
		}
		return &vm.Fault{
			Code: vm.CodeInUse,
			Detail: fmt.Sprintf("the extra addresses %s of NIC %d contain %s, which is assigned to NIC %d of VM %s",
				p, n.Slot, assigned, slot, holder),
			Hint: "choose addresses that are not assigned",
		}
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	_, err = tx.ExecContext(ctx, `
		INSERT OR IGNORE INTO vm_extra_addresses (vm_id, slot, network, first_ip, last_ip) VALUES (?, ?, ?, ?, ?)`,
		id, n.Slot, n.Network, ipv4(first), ipv4(last))
	return err
}

// extraOfOther returns the fault of a NIC with an address that is among the extra ones of another
// NIC, nil if there is none.
func extraOfOther(ctx context.Context, tx *transaction, id string, n vm.NIC) error {
	if !n.Mode.Managed() || !n.IP.Is4() {
		return nil
	}
	var holder string
	var slot int
	err := tx.QueryRowxContext(ctx, `
		SELECT vm_id, slot FROM vm_extra_addresses
		WHERE network = ?1 AND first_ip <= ?2 AND last_ip >= ?2 AND NOT (vm_id = ?3 AND slot = ?4) LIMIT 1`,
		n.Network, ipv4(n.IP), id, n.Slot).Scan(&holder, &slot)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	return &vm.Fault{
		Code: vm.CodeInUse,
		Detail: fmt.Sprintf("address %s on network %s belongs to the extra addresses of NIC %d of VM %s",
			n.IP, n.Network, slot, holder),
		Hint: "leave it out to get the lowest free address",
	}
}

// extraRanges returns the ranges of vm_extra_addresses of a network in order, those that overlap
// or adjoin as one.
func (s *Store) extraRanges(ctx context.Context, network string) ([]ipRange, error) {
	const query = `SELECT DISTINCT first_ip, last_ip FROM vm_extra_addresses WHERE network = ? ORDER BY first_ip, last_ip`
	all, err := list(ctx, s, query, []any{network}, 0, func(row scanner) (r ipRange, err error) {
		return r, row.Scan(&r.first, &r.last)
	})
	if err != nil {
		return nil, err
	}
	var merged []ipRange
	for _, r := range all {
		if end := len(merged) - 1; end >= 0 && r.first <= merged[end].last+1 {
			merged[end].last = max(merged[end].last, r.last)
			continue
		}
		merged = append(merged, r)
	}
	return merged, nil
}

// ReservedIPs returns the number of host addresses of a network, from first to last, that no NIC
// has and that are not free, since they belong to the extra addresses of a NIC.
func (s *Store) ReservedIPs(ctx context.Context, network string, first, last netip.Addr) (int, error) {
	ranges, err := s.extraRanges(ctx, network)
	if err != nil {
		return 0, err
	}
	count := 0
	for _, r := range ranges {
		from, to := max(r.first, number(first)), min(r.last, number(last))
		if from > to {
			continue
		}
		var assigned int
		const query = `SELECT count(*) FROM vm_addresses WHERE network = ? AND ip BETWEEN ? AND ?`
		err := s.row(ctx, query, func(row *sqlx.Row) error { return row.Scan(&assigned) }, network, from, to)
		if err != nil {
			return 0, err
		}
		count += int(to-from) + 1 - assigned
	}
	return count, nil
}
