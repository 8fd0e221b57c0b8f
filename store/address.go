package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

const (
	leaseColumns = `network, vm_id, slot, mac, ip, ipv6`

	leaseByMAC  = `SELECT ` + leaseColumns + ` FROM vm_addresses WHERE network = ? AND mac = ?`
	leaseByName = `SELECT ` + leaseColumns + ` FROM vm_addresses WHERE vm_id = ? AND +network = ? ORDER BY slot LIMIT 1`
	leaseByIP   = `SELECT ` + leaseColumns + ` FROM vm_addresses WHERE network = ? AND ip = ?`
	leaseByIPv6 = `SELECT ` + leaseColumns + ` FROM vm_addresses WHERE network = ? AND ipv6 = ?`
)

// leaseDest returns where to scan leaseColumns.
func leaseDest(l *vm.Lease) []any {
	return []any{&l.Network, &l.VMID, (*integer)(&l.Slot), &l.MAC, (*ipv4)(&l.IP), (*address)(&l.IPv6)}
}

// Leases returns the NICs on a network in order of their addresses, those without
// an address by VM and slot. It does not know which leases DHCP has confirmed.
func (s *Store) Leases(ctx context.Context, network string) ([]vm.Lease, error) {
	const query = `SELECT ` + leaseColumns + ` FROM vm_addresses WHERE network = ? ORDER BY ip, vm_id, slot`
	return list(ctx, s, query, []any{network}, 0, func(row scanner) (vm.Lease, error) {
		var l vm.Lease
		err := row.Scan(leaseDest(&l)...)
		l.Hostname = l.VMID
		return l, err
	})
}

// LeaseByMAC returns the NIC with a MAC address, in lower case with colons, on a
// network.
func (s *Store) LeaseByMAC(ctx context.Context, network, mac string) (vm.Lease, error) {
	return s.lease(ctx, mac, leaseByMAC, network, mac)
}

// LeaseByName returns the NIC in the lowest slot that the VM with the id hostname has
// on a network.
func (s *Store) LeaseByName(ctx context.Context, network, hostname string) (vm.Lease, error) {
	return s.lease(ctx, hostname, leaseByName, hostname, network)
}

// LeaseByIP returns the NIC that was assigned an IPv4 or IPv6 address on a network.
func (s *Store) LeaseByIP(ctx context.Context, network string, ip netip.Addr) (vm.Lease, error) {
	if a := ip.Unmap(); a.Is4() {
		return s.lease(ctx, ip.String(), leaseByIP, network, ipv4(a))
	}
	return s.lease(ctx, ip.String(), leaseByIPv6, network, address(ip.WithZone("")))
}

// lease reads one lease. wanted names it in the fault if there is none.
func (s *Store) lease(ctx context.Context, wanted, query string, args ...any) (vm.Lease, error) {
	var l vm.Lease
	err := s.row(ctx, query, func(row *sqlx.Row) error { return row.Scan(leaseDest(&l)...) }, args...)
	if errors.Is(err, errNoRow) {
		return vm.Lease{}, vm.NotFound("lease", wanted)
	}
	l.Hostname = l.VMID
	return l, err
}

// lowestFree finds the lowest address from ?2 to ?3 that no row has on the network
// ?1. With n rows, one of the lowest n+1 addresses is free. The number of rows in
// the lower half of these shows whether it is in that half. The search halves the range
// until one address is left, and counts 2n entries of an index in all. A lookup of the
// next address of each row would cost several times as much.
//
// The free address is one of the size addresses from low on. The first step counts
// the rows in their lower half, the second keeps the half with a free address.
const lowestFree = `
	WITH RECURSIVE search (low, size, taken) AS (
		SELECT ?2, count(*) + 1, NULL FROM vm_addresses WHERE network = ?1 AND ip BETWEEN ?2 AND ?3
		UNION ALL
		SELECT
			iif(taken = size / 2, low + size / 2, low),
			CASE WHEN taken IS NULL THEN size WHEN taken = size / 2 THEN size - size / 2 ELSE size / 2 END,
			iif(
				taken IS NULL,
				(SELECT count(*) FROM vm_addresses WHERE network = ?1 AND ip BETWEEN low AND low + size / 2 - 1),
				NULL)
		FROM search WHERE size > 1)
	SELECT low FROM search WHERE size = 1`

// FreeIP returns the lowest address from first to last, both IPv4, that is neither
// recorded for a NIC on the network, as its address or an extra one, nor in except. It does not reserve the address:
// another VM may take it before the caller records it.
func (s *Store) FreeIP(
	ctx context.Context, network string, first, last netip.Addr, except []netip.Addr,
) (netip.Addr, error) {
	if !first.Is4() || !last.Is4() {
		return netip.Addr{}, fmt.Errorf("not a range of IPv4 addresses: %s to %s", first, last)
	}
	extra, err := s.extraRanges(ctx, network)
	if err != nil {
		return netip.Addr{}, err
	}
	for next := number(first); next <= number(last); {
		var free int64
		err := s.row(ctx, lowestFree, func(row *sqlx.Row) error { return row.Scan(&free) }, network, next, number(last))
		if err != nil {
			return netip.Addr{}, err
		}
		if free > number(last) {
			break
		}
		for len(extra) > 0 && extra[0].last < free {
			extra = extra[1:]
		}
		if len(extra) > 0 && extra[0].first <= free {
			next = extra[0].last + 1
			continue
		}
		if ip := addressOf(free); !slices.Contains(except, ip) {
			return ip, nil
		}
		next = free + 1
	}
	n := countBetween(first, last, except)
	return netip.Addr{}, &vm.Fault{
		Code:   vm.CodeAddressesExhausted,
		Detail: fmt.Sprintf("network %s has no free address: all %d from %s to %s are taken", network, n, first, last),
		Hint:   "delete a VM or a NIC on it, or create another network",
	}
}

// countBetween returns the number of addresses from first to last that are not in
// except.
func countBetween(first, last netip.Addr, except []netip.Addr) int {
	n := max(0, number(last)-number(first)+1)
	seen := make(map[netip.Addr]bool)
	for _, a := range except {
		if !seen[a] && !a.Less(first) && !last.Less(a) {
			n--
		}
		seen[a] = true
	}
	return int(n)
}

// replaceAddresses rewrites the index of a VM's addresses and MAC addresses.
func replaceAddresses(ctx context.Context, tx *transaction, v vm.VM) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM vm_addresses WHERE vm_id = ?`, v.ID); err != nil {
		return err
	}
	for _, n := range v.NICs {
		var ip, ip6 netip.Addr
		if n.Mode.Managed() {
			ip, ip6 = n.IP, n.IPv6
		}
		_, err := tx.ExecContext(ctx, `
			INSERT INTO vm_addresses (vm_id, slot, network, mac, ip, ipv6) VALUES (?, ?, ?, ?, ?, ?)`,
			v.ID, n.Slot, n.Network, n.MAC, ipv4(ip), address(ip6))
		switch {
		case duplicate(err):
			return addressTaken(ctx, tx, n, err)
		case dangling(err): // the VM exists, so it is the network
			return vm.NotFound("network", n.Network)
		case err != nil:
			return err
		}
	}
	return replaceExtraAddresses(ctx, tx, v)
}

// addressTaken returns the fault of a NIC with an address or a MAC address that
// another NIC has.
func addressTaken(ctx context.Context, tx *transaction, n vm.NIC, cause error) error {
	for _, tt := range []struct {
		what, condition string
		value           any
		hint            string
	}{
		{"address " + n.IP.String(), "ip = ?", ipv4(n.IP), "leave it out to get the lowest free address"},
		{"MAC address " + n.MAC, "mac = ?", n.MAC, "leave it out to get a unique one"},
		{"address " + n.IPv6.String(), "ipv6 = ?", address(n.IPv6), ""},
	} {
		var id string
		var slot int
		query := `SELECT vm_id, slot FROM vm_addresses WHERE network = ? AND ` + tt.condition
		err := tx.QueryRowxContext(ctx, query, n.Network, tt.value).Scan(&id, &slot)
		if err == nil {
			return &vm.Fault{
				Code:   vm.CodeInUse,
				Detail: fmt.Sprintf("%s on network %s is in use by NIC %d of VM %s", tt.what, n.Network, slot, id),
				Hint:   tt.hint,
				Err:    cause,
			}
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
	}
	return cause // two NICs in one slot: a defect
}

// ipv4 is an IPv4 address that is stored as a number, NULL for none.
type ipv4 netip.Addr

func number(a netip.Addr) int64 {
	b := a.As4()
	return int64(binary.BigEndian.Uint32(b[:]))
}

func addressOf(n int64) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}

// Value implements [driver.Valuer].
func (a ipv4) Value() (driver.Value, error) {
	ip := netip.Addr(a)
	if !ip.IsValid() {
		return nil, nil
	}
	if !ip.Is4() {
		return nil, fmt.Errorf("%s is not an IPv4 address", ip)
	}
	return number(ip), nil
}

// Scan implements [sql.Scanner].
func (a *ipv4) Scan(src any) error {
	*a = ipv4{}
	if src == nil {
		return nil
	}
	n, ok := src.(int64)
	if !ok || n != int64(uint32(n)) {
		return fmt.Errorf("%v in a column of IPv4 addresses", src)
	}
	*a = ipv4(addressOf(n))
	return nil
}
