package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"vmand/vm"
)

var networkTable = newTable("networks",
	column[vm.Network]{"seq", readOnly, func(n *vm.Network) any { return (*integer64)(&n.Seq) }},
	column[vm.Network]{"name", fixed, func(n *vm.Network) any { return &n.Name }},
	column[vm.Network]{"mode", fixed, func(n *vm.Network) any { return (*string)(&n.Mode) }},
	column[vm.Network]{"bridge", mutable, func(n *vm.Network) any { return (*text)(&n.Bridge) }},
	column[vm.Network]{"subnet", mutable, func(n *vm.Network) any { return (*prefix)(&n.Subnet) }},
	column[vm.Network]{"gateway", mutable, func(n *vm.Network) any { return (*address)(&n.Gateway) }},
	column[vm.Network]{"ipv6", mutable, func(n *vm.Network) any { return (*prefix)(&n.IPv6) }},
	column[vm.Network]{"dns", mutable, func(n *vm.Network) any { return (*jsonList[netip.Addr])(&n.DNS) }},
	column[vm.Network]{"ntp", mutable, func(n *vm.Network) any { return (*jsonList[netip.Addr])(&n.NTP) }},
	column[vm.Network]{"routes", mutable, func(n *vm.Network) any { return (*jsonList[vm.Route])(&n.Routes) }},
	column[vm.Network]{"domain", mutable, func(n *vm.Network) any { return (*text)(&n.Domain) }},
	column[vm.Network]{"mtu", mutable, func(n *vm.Network) any { return (*integer)(&n.MTU) }},
	column[vm.Network]{"vlan", mutable, func(n *vm.Network) any { return (*integer)(&n.VLAN) }},
	column[vm.Network]{"isolate_vms", mutable, func(n *vm.Network) any { return &n.IsolateVMs }},
	column[vm.Network]{"restricted", mutable, func(n *vm.Network) any { return &n.Restrict }},
	column[vm.Network]{"search_domains", mutable, func(n *vm.Network) any { return (*jsonList[string])(&n.SearchDomains) }},
	column[vm.Network]{"dhcp_options", mutable, func(n *vm.Network) any {
		return (*jsonList[vm.DHCPOption])(&n.DHCPOptions)
	}},
	column[vm.Network]{"pxe", mutable, func(n *vm.Network) any { return &jsonPointer[vm.PXE]{&n.PXE} }},
	column[vm.Network]{"dns_records", mutable, func(n *vm.Network) any { return (*jsonList[vm.DNSRecord])(&n.DNSRecords) }},
	column[vm.Network]{"dns_forwarders", mutable, func(n *vm.Network) any {
		return (*jsonList[vm.DNSForwarder])(&n.DNSForwarders)
	}},
	column[vm.Network]{"created_at", fixed, func(n *vm.Network) any { return (*instant)(&n.CreatedAt) }},
	column[vm.Network]{"updated_at", mutable, func(n *vm.Network) any { return (*instant)(&n.UpdatedAt) }},
	column[vm.Network]{"revision", counter, func(n *vm.Network) any { return (*integer64)(&n.Revision) }},
)

// Network returns one network.
func (s *Store) Network(ctx context.Context, name string) (vm.Network, error) {
	return one(ctx, s, "network", name, networkTable.all+" WHERE name = ?", networkTable.scan)
}

// Networks returns a page of the networks.
func (s *Store) Networks(ctx context.Context, p vm.Page) ([]vm.Network, error) {
	q := from("networks")
	query, args := q.sql(networkTable.list, p)
	return list(ctx, s, query, args, p.Limit, networkTable.scanner())
}

func insertNetwork(ctx context.Context, tx *transaction, n vm.Network, now time.Time) (vm.Network, error) {
	if n.CreatedAt.IsZero() {
		n.CreatedAt = now
	}
	n.UpdatedAt = now
	row, err := networkTable.insertRow(ctx, tx, n)
	if duplicate(err) {
		return row, &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("network %s already exists", n.Name), Err: err}
	}
	return row, err
}

func updateNetwork(ctx context.Context, tx *transaction, n vm.Network, now time.Time) (vm.Network, error) {
	n.UpdatedAt = now
	row, err := networkTable.updateRow(ctx, tx, n, "name = ?", n.Name)
	if errors.Is(err, errNoRow) {
		return row, vm.NotFound("network", n.Name)
	}
	return row, err
}

func deleteNetwork(ctx context.Context, tx *transaction, name string) error {
	var users int
	const query = `SELECT count(DISTINCT vm_id) FROM vm_addresses WHERE network = ?`
	if err := tx.GetContext(ctx, &users, query, name); err != nil {
		return err
	}
	if users > 0 {
		return &vm.Fault{
			Code:   vm.CodeInUse,
			Detail: fmt.Sprintf("network %s is in use by %d VM(s)", name, users),
			Hint:   "first delete their NICs on it, or the VMs",
		}
	}
	err := change(ctx, tx, `DELETE FROM networks WHERE name = ?`, name)
	if errors.Is(err, errNoRow) {
		return vm.NotFound("network", name)
	}
	return err
}
