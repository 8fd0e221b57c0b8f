package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmand/observer"
	"vmand/qemu"
	"vmand/server"
	"vmand/vm"
)

const (
	// healthTimeout limits the time of all checks.
	healthTimeout = 5 * time.Second
	// minFree is the free space, in bytes, below which storage is degraded: the
	// database may soon be unable to write.
	minFree = 64 << 20
)

// health checks every part of vmand. A VM host without KVM is reported, but is not
// degraded.
func (c *container) health(ctx context.Context) server.Health {
	ctx, stop := context.WithTimeout(ctx, healthTimeout)
	defer stop()
	h := server.Health{
		Storage:  checkStorage(c.cfg.StateDir),
		Observer: checkObserver(c.observer.Status()),
		API:      c.checkListeners(),
	}
	if err := c.store.Ping(ctx); err != nil {
		h.Database = server.Check{Degraded: true, Detail: err.Error()}
	}
	h.Network = c.checkNetworks(ctx)
	t := c.tools(ctx)
	h.QEMU, h.QEMUImg = checkTool(t.QEMU), checkTool(t.Img)
	switch {
	case t.Accel == "":
		h.Accel = server.Check{Degraded: true, Detail: "unknown without QEMU"}
	case t.Warning != "":
		h.Accel = server.Check{Degraded: t.Fixable, Detail: fmt.Sprintf("%s: %s", t.Accel, t.Warning)}
	default:
		h.Accel = server.Check{Detail: string(t.Accel)}
	}
	return h
}

// checkNetworks returns the mode of networking, or the networks that are not served.
func (c *container) checkNetworks(ctx context.Context) server.Check {
	mode, reason := c.networks.Mode()
	check := server.Check{Detail: mode}
	if reason != "" {
		check.Detail += ": " + reason
	}
	networks, err := c.store.Networks(ctx, vm.Page{})
	if err != nil {
		return check // the check of the database says so
	}
	var unserved []string
	if missing, err := c.engine.Networks.DefaultMissing(ctx); err == nil && missing {
		unserved = append(unserved, fmt.Sprintf("network %s could not be made: see the log, and restart vmand",
			vm.DefaultNetwork))
	}
	for _, nw := range networks {
		if err := c.networks.Served(nw); err != nil {
			unserved = append(unserved, fmt.Sprintf("network %s: %v", nw.Name, err))
		}
	}
	if len(unserved) > 0 {
		check = server.Check{Degraded: true, Detail: strings.Join(unserved, "; ")}
	}
	return check
}

// checkListeners reports the addresses of the API that are not open.
func (c *container) checkListeners() server.Check {
	var problems, open []string
	for _, l := range c.listeners {
		if p := l.Problem(); p != "" {
			problems = append(problems, p)
		} else {
			open = append(open, l.Addr().String())
		}
	}
	if len(problems) > 0 {
		return server.Check{Degraded: true, Detail: strings.Join(problems, "; ")}
	}
	return server.Check{Detail: strings.Join(open, ", ")}
}

func checkTool(t qemu.Tool) server.Check {
	if t.Err != nil {
		return server.Check{Degraded: true, Detail: t.Err.Error()}
	}
	return server.Check{Detail: t.Version}
}

func checkStorage(dir string) server.Check {
	if err := checkWritable(dir); err != nil {
		return server.Check{Degraded: true, Detail: err.Error()}
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return server.Check{Degraded: true, Detail: fmt.Sprintf("%s: %v", dir, err)}
	}
	free := s.Bavail * uint64(s.Bsize)
	return server.Check{Degraded: free < minFree, Detail: fmt.Sprintf("%d MiB free", free>>20)}
}

func checkObserver(s observer.Status) server.Check {
	return server.Check{Degraded: s.Status == observer.StatusDegraded, Detail: s.Error}
}

// observerStatus returns the status of the observer for the API.
func (c *container) observerStatus() server.ObserverStatus {
	s := c.observer.Status()
	out := server.ObserverStatus{
		Status:        s.Status,
		RepairMode:    s.Repair,
		CheckInterval: s.CheckInterval,
		LastRunAt:     s.LastRunAt,
		LastDuration:  s.LastDuration,
	}
	for _, i := range s.Issues {
		out.Issues = append(out.Issues, server.Issue{
			Type:        string(i.Type),
			Resource:    i.Resource,
			Details:     i.Details,
			FirstSeenAt: i.FirstSeenAt,
			RepairedAt:  i.RepairedAt,
			Repair:      i.Repair,
		})
	}
	return out
}
