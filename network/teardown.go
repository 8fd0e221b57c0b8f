package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"vmand/vm"
)

// Teardown removes everything that vmand has created on the host's network: rules, taps
// and bridges. It restores the sysctls recorded in runtimeDir. Running VMs lose their
// network. It returns the removed things in words, also with an error. It returns a fault
// of code [vm.CodeInUse] while a daemon manages the networks.
func Teardown(ctx context.Context, runtimeDir string, log *slog.Logger) ([]string, error) {
	if err := checkPrivileges(); err != nil {
		return nil, unavailable(err, "remove the networks")
	}
	owner, err := claim()
	if err != nil {
		if f, ok := errors.AsType[*vm.Fault](err); ok {
			f.Hint = "stop vmand first"
		}
		return nil, err
	}
	defer owner.Close()
	links, err := netlink.NewHandle(syscall.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer links.Close()
	steps := []func() ([]string, error){
		func() ([]string, error) { return removeLinks(links) },
		removeTables,
		(&sysctls{dir: runtimeDir}).restore,
		func() ([]string, error) { return nil, removeLogs(runtimeDir) },
	}
	var removed []string
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		things, err := step()
		for _, thing := range things {
			log.Info("removed from the host's network", "resource", thing)
		}
		removed = append(removed, things...)
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// removeLinks removes vmand's bridges and taps.
func removeLinks(links *netlink.Handle) ([]string, error) {
	all, err := links.LinkList()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b netlink.Link) int { return strings.Compare(a.Attrs().Name, b.Attrs().Name) })
	var removed []string
	for _, l := range all {
		if !isOurBridge(l) && !isTap(l) {
			continue
		}
		if err := links.LinkDel(l); err != nil && !isGone(err) {
			return removed, fmt.Errorf("remove %s: %w", l.Attrs().Name, err)
		}
		kind := "the bridge "
		if isTap(l) {
			kind = "the tap "
		}
		removed = append(removed, kind+l.Attrs().Name)
	}
	return removed, nil
}

// removeTables removes vmand's nftables tables.
func removeTables() ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	var removed []string
	for family, t := range map[string]*nftables.Table{"inet": inetTable, "bridge": bridgeTable} {
		tables, err := conn.ListTablesOfFamily(t.Family)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(tables, func(has *nftables.Table) bool { return has.Name == t.Name }) {
			conn.DelTable(t)
			removed = append(removed, "the nftables table "+family+" "+t.Name)
		}
	}
	slices.Sort(removed)
	return removed, conn.Flush()
}

// removeLogs removes the logs of passt.
func removeLogs(dir string) error {
	if dir == "" {
		return nil
	}
	names, err := filepath.Glob(filepath.Join(dir, "passt-*.log"))
	for _, name := range names {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}
