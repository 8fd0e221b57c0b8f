package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

// notifyReloading is the state of the service while it reloads its settings
// (sd_notify(3)). READY=1 ends it.
func notifyReloading() string {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail with this clock
	return fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000)
}

// notify reports a state to systemd. It is a no-op if systemd did not start vmand.
func (c *container) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		c.log.Warn("cannot notify systemd", "state", state, "err", err)
	}
}

// passed holds the listeners of the API that systemd opened and passed to vmand, nil for
// none. They replace the settings socket and listen.
type passed struct{ unix, tcp net.Listener }

// takePassed returns the listeners that systemd passed to vmand (sd_listen_fds(3)). Their
// names are only used in errors: the kind of a socket says which of the two it is.
// insecure allows a TCP address beyond loopback. It must be called once.
func takePassed(insecure bool) (p passed, err error) {
	for _, f := range activation.Files(true) {
		err = errors.Join(err, p.add(f, insecure))
		_ = f.Close() // the listener has a descriptor of its own
	}
	if err != nil {
		p.close()
		return passed{}, errConfig{err}
	}
	return p, nil
}

func (p *passed) add(f *os.File, insecure bool) error {
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("socket %s passed by systemd: it must be a listening stream socket (ListenStream=): %w", f.Name(), err)
	}
	at := &p.unix
	switch address := l.Addr().(type) {
	case *net.UnixAddr:
	case *net.TCPAddr:
		at = &p.tcp
		if !isLoopback(address.AddrPort()) && !insecure {
			_ = l.Close()
			return fmt.Errorf("socket %s passed by systemd: %s is beyond loopback, where plain HTTP exposes tokens: "+
				"use 127.0.0.1 in ListenStream=, or accept the risk by setting listen_insecure to true", f.Name(), address)
		}
	}
	if *at != nil {
		_ = l.Close()
		return fmt.Errorf("socket %s passed by systemd: %s is the second %s socket, vmand serves one of each kind",
			f.Name(), l.Addr(), l.Addr().Network())
	}
	*at = l
	return nil
}

func isLoopback(a netip.AddrPort) bool { return a.Addr().Unmap().IsLoopback() }

func (p passed) close() {
	for _, l := range []net.Listener{p.unix, p.tcp} {
		if l != nil {
			_ = l.Close()
		}
	}
}

// watchdogNote is the note that the watchdog writes.
const watchdogNote = "watchdog"

// watchdog tells systemd that vmand works, until ctx is done. It does so only while the
// observer makes progress and the database takes a write, so that systemd restarts a vmand
// in which one of them hangs. It is a no-op without WatchdogSec= in the unit.
//
// A full or read-only file system is not a hang: a restart does not cure it, and a vmand that
// runs can still report it and stop VMs.
func (c *container) watchdog(ctx context.Context) {
	limit, err := daemon.SdWatchdogEnabled(true)
	if err != nil {
		c.log.Warn("the watchdog of systemd is not served", "err", err)
	}
	if limit <= 0 {
		return
	}
	c.watchdogEvery(ctx, limit/3)
}

func (c *container) watchdogEvery(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := c.works(ctx, now, interval); err == nil {
				c.notify(daemon.SdNotifyWatchdog)
			} else if ctx.Err() == nil {
				c.log.Error("vmand does not work and withholds the watchdog's signal", "err", err)
			}
		}
	}
}

// works returns why vmand does not work, nil if it does.
func (c *container) works(ctx context.Context, now time.Time, patience time.Duration) error {
	if !c.observer.Works() {
		return errors.New("the observer makes no progress")
	}
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	err := c.store.SetNote(ctx, watchdogNote, now.UTC().Format(time.RFC3339))
	var f *vm.Fault
	if errors.As(err, &f) && (f.Code == vm.CodeInsufficientStorage || isReadOnly(c.cfg.StateDir)) {
		return nil
	}
	return err
}

// isReadOnly reports whether a directory is on a file system that is mounted read-only.
func isReadOnly(dir string) bool {
	var s unix.Statfs_t
	return unix.Statfs(dir, &s) == nil && s.Flags&unix.ST_RDONLY != 0
}
