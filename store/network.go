package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

const networkColumns = `seq, name, mode, bridge, subnet, gateway, ipv6, dns, ntp, routes, domain, mtu, vlan, isolate_vms, restricted,
	created_at, updated_at, revision`

type networkRow struct {
	Seq        int64                `db:"seq"`
	Name       string               `db:"name"`
	Mode       string               `db:"mode"`
	Bridge     text                 `db:"bridge"`
	Subnet     prefix               `db:"subnet"`
	Gateway    address              `db:"gateway"`
	IPv6       prefix               `db:"ipv6"`
	DNS        jsonList[netip.Addr] `db:"dns"`
	NTP        jsonList[netip.Addr] `db:"ntp"`
	Routes     jsonList[vm.Route]   `db:"routes"`
	Domain     text                 `db:"domain"`
	MTU        int                  `db:"mtu"`
	VLAN       int                  `db:"vlan"`
	IsolateVMs bool                 `db:"isolate_vms"`
	Restricted bool                 `db:"restricted"`
	CreatedAt  instant              `db:"created_at"`
	UpdatedAt  instant              `db:"updated_at"`
	Revision   int64                `db:"revision"`
}

func networkRowOf(n vm.Network, now time.Time) networkRow {
	if n.CreatedAt.IsZero() {
		n.CreatedAt = now
	}
	return networkRow{Name: n.Name, Mode: string(n.Mode), Bridge: text(n.Bridge), Subnet: prefix(n.Subnet), Gateway: address(n.Gateway),
		IPv6: prefix(n.IPv6), DNS: n.DNS, NTP: n.NTP, Routes: n.Routes, Domain: text(n.Domain), MTU: n.MTU, VLAN: n.VLAN,
		IsolateVMs: n.IsolateVMs, Restricted: n.Restrict, CreatedAt: instant(n.CreatedAt), UpdatedAt: instant(now)}
}

func (r networkRow) network() vm.Network {
	return vm.Network{Seq: r.Seq, Name: r.Name, Mode: vm.NetworkMode(r.Mode), Bridge: string(r.Bridge), Subnet: netip.Prefix(r.Subnet),
		Gateway: netip.Addr(r.Gateway), IPv6: netip.Prefix(r.IPv6), DNS: r.DNS, NTP: r.NTP, Routes: r.Routes, Domain: string(r.Domain),
		MTU: r.MTU, VLAN: r.VLAN, IsolateVMs: r.IsolateVMs, Restrict: r.Restricted,
		CreatedAt: time.Time(r.CreatedAt), UpdatedAt: time.Time(r.UpdatedAt), Revision: r.Revision}
}

const networkByName = `SELECT ` + networkColumns + ` FROM networks WHERE name = ?`

func scanNetwork(row scanner) (vm.Network, error) {
	var r networkRow
	err := row.StructScan(&r)
	return r.network(), err
}

// Network returns one network.
func (s *Store) Network(ctx context.Context, name string) (vm.Network, error) {
	return one(ctx, s, "network", name, networkByName, scanNetwork)
}

// Networks returns a page of the networks.
func (s *Store) Networks(ctx context.Context, p vm.Page) ([]vm.Network, error) {
	q := after(p)
	query, args := q.sql(networkColumns, "networks", p)
	return list(ctx, s, query, args, p.Limit, scanNetwork)
}

// applyNetworks makes and replaces the networks of c; they come before the VMs
// that may be on them, as the deletion of one comes after.
func applyNetworks(ctx context.Context, tx *sqlx.Tx, c vm.Change, now time.Time) error {
	if c.NewNetwork != nil {
		if err := insertNetwork(ctx, tx, *c.NewNetwork, now); err != nil {
			return err
		}
	}
	if c.Network != nil {
		return updateNetwork(ctx, tx, *c.Network, now)
	}
	return nil
}

func insertNetwork(ctx context.Context, tx *sqlx.Tx, n vm.Network, now time.Time) error {
	_, err := tx.NamedExecContext(ctx, `
		INSERT INTO networks (name, mode, bridge, subnet, gateway, ipv6, dns, ntp, routes, domain, mtu, vlan, isolate_vms, restricted,
			created_at, updated_at, revision)
		VALUES (:name, :mode, :bridge, :subnet, :gateway, :ipv6, :dns, :ntp, :routes, :domain, :mtu, :vlan, :isolate_vms, :restricted,
			:created_at, :updated_at, 1)`, networkRowOf(n, now))
	if duplicate(err) {
		return &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("network %q already exists", n.Name), Err: err}
	}
	return err
}

func updateNetwork(ctx context.Context, tx *sqlx.Tx, n vm.Network, now time.Time) error {
	err := changeNamed(ctx, tx, `
		UPDATE networks SET bridge = :bridge, subnet = :subnet, gateway = :gateway, ipv6 = :ipv6, dns = :dns, ntp = :ntp, routes = :routes,
			domain = :domain, mtu = :mtu, vlan = :vlan, isolate_vms = :isolate_vms, restricted = :restricted,
			updated_at = :updated_at, revision = revision + 1
		WHERE name = :name`, networkRowOf(n, now))
	if errors.Is(err, errNoRow) {
		return vm.NotFound("network", n.Name)
	}
	return err
}

func deleteNetwork(ctx context.Context, tx *sqlx.Tx, name string) error {
	var users int
	if err := tx.GetContext(ctx, &users, `SELECT count(DISTINCT vm_id) FROM addresses WHERE network = ?`, name); err != nil {
		return err
	}
	if users > 0 {
		return &vm.Fault{Code: vm.CodeInUse, Detail: fmt.Sprintf("network %q is in use by %d VM(s)", name, users),
			Hint: "delete their NICs on it, or the VMs, first"}
	}
	err := change(ctx, tx, `DELETE FROM networks WHERE name = ?`, name)
	if errors.Is(err, errNoRow) {
		return vm.NotFound("network", name)
	}
	return err
}

// prefix and address are kept as text, NULL for none.
type (
	prefix  netip.Prefix
	address netip.Addr
)

// Value implements [driver.Valuer].
func (p prefix) Value() (driver.Value, error) {
	if !netip.Prefix(p).IsValid() {
		return nil, nil
	}
	return netip.Prefix(p).String(), nil
}

// Scan implements [sql.Scanner].
func (p *prefix) Scan(src any) error {
	var t text
	if err := t.Scan(src); err != nil || t == "" {
		*p = prefix{}
		return err
	}
	parsed, err := netip.ParsePrefix(string(t))
	*p = prefix(parsed)
	return err
}

// Value implements [driver.Valuer].
func (a address) Value() (driver.Value, error) {
	if !netip.Addr(a).IsValid() {
		return nil, nil
	}
	return netip.Addr(a).String(), nil
}

// Scan implements [sql.Scanner].
func (a *address) Scan(src any) error {
	var t text
	if err := t.Scan(src); err != nil || t == "" {
		*a = address{}
		return err
	}
	parsed, err := netip.ParseAddr(string(t))
	*a = address(parsed)
	return err
}

// jsonList is kept as a JSON array, NULL for none.
type jsonList[T any] []T

// Value implements [driver.Valuer].
func (l jsonList[T]) Value() (driver.Value, error) {
	if len(l) == 0 {
		return nil, nil
	}
	return encode([]T(l))
}

// Scan implements [sql.Scanner].
func (l *jsonList[T]) Scan(src any) error {
	*l = nil
	return decode(src, (*[]T)(l))
}
