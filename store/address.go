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

// leaseDest returns where the columns go in l.
func leaseDest(l *vm.Lease) []any {
	return []any{&l.Network, &l.VMID, (*integer)(&l.Slot), &l.MAC, (*ipv4)(&l.IP), (*address)(&l.IPv6)}
}

// Leases returns who is on a network, in order of their addresses, those that
// have none by VM and slot. It does not know what DHCP has confirmed.
func (s *Store) Leases(ctx context.Context, network string) ([]vm.Lease, error) {
	return list(ctx, s, `SELECT `+leaseColumns+` FROM vm_addresses WHERE network = ? ORDER BY ip, vm_id, slot`, []any{network}, 0,
		func(rows scanner) (vm.Lease, error) {
			var l vm.Lease
			err := rows.Scan(leaseDest(&l)...)
			l.Hostname = l.VMID
			return l, err
		})
}

// LeaseByMAC returns who has a MAC address, in lower case with colons, on a
// network.
func (s *Store) LeaseByMAC(ctx context.Context, network, mac string) (vm.Lease, error) {
	return s.lease(ctx, mac, leaseByMAC, network, mac)
}

// LeaseByName returns the NIC in the lowest slot that the VM called hostname,
// its id, has on a network.
func (s *Store) LeaseByName(ctx context.Context, network, hostname string) (vm.Lease, error) {
	return s.lease(ctx, hostname, leaseByName, hostname, network)
}

// LeaseByIP returns who was given an IPv4 or an IPv6 address on a network.
func (s *Store) LeaseByIP(ctx context.Context, network string, ip netip.Addr) (vm.Lease, error) {
	if a := ip.Unmap(); a.Is4() {
		return s.lease(ctx, ip.String(), leaseByIP, network, ipv4(a))
	}
	return s.lease(ctx, ip.String(), leaseByIPv6, network, address(ip.WithZone("")))
}

// lease reads the lease of what is wanted.
func (s *Store) lease(ctx context.Context, wanted, query string, args ...any) (vm.Lease, error) {
	var l vm.Lease
	err := s.row(ctx, query, func(row *sqlx.Row) error { return row.Scan(leaseDest(&l)...) }, args...)
	if errors.Is(err, errNoRow) {
		return vm.Lease{}, vm.NotFound("lease", wanted)
	}
	l.Hostname = l.VMID
	return l, err
}

// lowestFree looks for the lowest address that no row has from ?2 to ?3 on the
// network ?1. Where there are n rows, one of the lowest n+1 addresses is free;
// whether it is in their lower half follows from how many rows that half has,
// and so on: all in all, 2n entries of an index are counted. To look up the next
// address of each would cost several times as much.
//
// The free address is one of size from low on. A first step counts the rows of
// the lower half, a second one leaves the half that has a free one.
const lowestFree = `
	WITH RECURSIVE search (low, size, taken) AS (
		SELECT ?2, count(*) + 1, NULL FROM vm_addresses WHERE network = ?1 AND ip BETWEEN ?2 AND ?3
		UNION ALL
		SELECT
			iif(taken = size / 2, low + size / 2, low),
			CASE WHEN taken IS NULL THEN size WHEN taken = size / 2 THEN size - size / 2 ELSE size / 2 END,
			iif(taken IS NULL, (SELECT count(*) FROM vm_addresses WHERE network = ?1 AND ip BETWEEN low AND low + size / 2 - 1), NULL)
		FROM search WHERE size > 1)
	SELECT low FROM search WHERE size = 1`

// FreeIP returns the lowest address from first to last, both IPv4, that no NIC
// on the network has and that is not in except. It does not take it: who
// records it may find that somebody else was faster.
func (s *Store) FreeIP(ctx context.Context, network string, first, last netip.Addr, except []netip.Addr) (netip.Addr, error) {
	if !first.Is4() || !last.Is4() {
		return netip.Addr{}, fmt.Errorf("no range of IPv4 addresses: %s to %s", first, last)
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
		if ip := addressOf(free); !slices.Contains(except, ip) {
			return ip, nil
		}
		next = free + 1
	}
	return netip.Addr{}, &vm.Fault{Code: vm.CodeAddressesExhausted,
		Detail: fmt.Sprintf("network %q has no free address: all %d from %s to %s are taken", network, countBetween(first, last, except), first, last),
		Hint:   "delete a VM or a NIC that is on it, or make another network"}
}

// countBetween returns how many addresses there are from first to last without
// those in except.
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

// replaceAddresses records who has the addresses of the NICs of a VM, in place
// of those it had before.
func replaceAddresses(ctx context.Context, tx *sqlx.Tx, v vm.VM) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM vm_addresses WHERE vm_id = ?`, v.ID); err != nil {
		return err
	}
	for _, n := range v.NICs {
		var ip, ip6 netip.Addr
		if n.Mode.Managed() {
			ip, ip6 = n.IP, n.IPv6
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO vm_addresses (vm_id, slot, network, mac, ip, ipv6) VALUES (?, ?, ?, ?, ?, ?)`,
			v.ID, n.Slot, n.Network, n.MAC, ipv4(ip), address(ip6))
		switch {
		case duplicate(err):
			return addressTaken(ctx, tx, n, err)
		case dangling(err): // the VM is there: it is the network
			return vm.NotFound("network", n.Network)
		case err != nil:
			return err
		}
	}
	return nil
}

// addressTaken returns the fault of a NIC that has what another one has.
func addressTaken(ctx context.Context, tx *sqlx.Tx, n vm.NIC, cause error) error {
	for _, tt := range []struct {
		what, condition string
		value           any
		hint            string
	}{
		{"address " + n.IP.String(), "ip = ?", ipv4(n.IP), "leave it out to get the lowest that is free"},
		{"MAC address " + n.MAC, "mac = ?", n.MAC, "leave it out to get one that nobody has"},
		{"address " + n.IPv6.String(), "ipv6 = ?", address(n.IPv6), ""},
	} {
		var id string
		var slot int
		err := tx.QueryRowxContext(ctx, `SELECT vm_id, slot FROM vm_addresses WHERE network = ? AND `+tt.condition, n.Network, tt.value).Scan(&id, &slot)
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

// ipv4 is an IPv4 address that is kept as a number, NULL for none.
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
