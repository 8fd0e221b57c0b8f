package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// harmless are the signals that would end a process that does not handle them, and
// that say nothing about its end. SIGPIPE comes from a log whose reader has ended.
var harmless = []os.Signal{unix.SIGHUP, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM}

// catchHarmless returns a channel of the signals in harmless, which no longer end the
// process, and a function that restores their effects.
func catchHarmless() (signals <-chan os.Signal, release func()) {
	c := make(chan os.Signal, len(harmless))
	signal.Notify(c, harmless...)
	return c, func() { signal.Stop(c) }
}

// serveSignals reloads the tokens after SIGHUP, until ctx is done.
func (c *container) serveSignals(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if s == unix.SIGHUP {
				c.reload(ctx)
			}
		}
	}
}

// reload rereads the admin token from its file, and all tokens from the database.
func (c *container) reload(ctx context.Context) {
	err := ensureAdminToken(ctx, c.store, c.cfg.StateDir, c.log)
	if err == nil {
		err = c.server.ReloadTokens(ctx)
	}
	if err != nil {
		c.log.Error("cannot reload the tokens; the ones from before are valid", "err", err)
		return
	}
	c.log.Info("the tokens are reloaded; changed settings take effect after a restart")
}
