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

// Teardown removes what vmand has made on the host's network: rules, taps,
// bridges, and gives back the sysctls that it remembered in the runtime
// directory. VMs that run are cut off. It returns what it has removed, in words,
// also with an error, and refuses while a daemon manages the networks.
func Teardown(ctx context.Context, runtimeDir string, log *slog.Logger) ([]string, error) {
	if err := privileged(); err != nil {
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
		said, err := step()
		for _, what := range said {
			log.Info("removed from the host's network", "what", what)
		}
		removed = append(removed, said...)
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

func removeLinks(links *netlink.Handle) ([]string, error) {
	has, err := links.LinkList()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(has, func(a, b netlink.Link) int { return strings.Compare(a.Attrs().Name, b.Attrs().Name) })
	var removed []string
	for _, l := range has {
		if !ours(l) && !isTap(l) {
			continue
		}
		if err := links.LinkDel(l); err != nil && !gone(err) {
			return removed, fmt.Errorf("remove %s: %w", l.Attrs().Name, err)
		}
		what := "the bridge "
		if isTap(l) {
			what = "the tap "
		}
		removed = append(removed, what+l.Attrs().Name)
	}
	return removed, nil
}

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
