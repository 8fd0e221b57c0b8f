package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"slices"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"vmand/config"
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

// serveSignals reloads the settings and the tokens after SIGHUP, until ctx is done.
func (c *container) serveSignals(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if s == unix.SIGHUP {
				c.notify(notifyReloading())
				c.reload(ctx)
				c.notify(daemon.SdNotifyReady)
			}
		}
	}
}

// settings are the sources of the settings and what is in effect of them.
type settings struct {
	read    func() (config.Config, error)
	current config.Config // as last read
	level   *slog.LevelVar
}

// reloaded are the settings that take effect without a restart.
var reloaded = []string{"log.level"}

// reload rereads the settings, the admin token from its file, and all tokens from the
// database. The log says what was reread, what takes effect only after a restart, and what
// could not be read.
func (c *container) reload(ctx context.Context) {
	c.reloadSettings()
	err := ensureAdminToken(ctx, c.store, c.cfg.StateDir, c.log)
	if err == nil {
		err = c.server.ReloadTokens(ctx)
	}
	if err != nil {
		c.log.Error("cannot reload the tokens; the ones from before are valid", "err", err)
		return
	}
	c.log.Info("the tokens are reloaded")
}

func (c *container) reloadSettings() {
	s := &c.settings
	cfg, err := s.read()
	if err != nil {
		c.log.Error("cannot reload the settings; the ones from before are in effect", "err", err)
		return
	}
	// Each reload compares with what is in effect, so a change that needs a restart is
	// reported until it is made or taken back.
	var applied, pending []string
	for _, key := range config.Changed(s.current, cfg) {
		if slices.Contains(reloaded, key) {
			applied = append(applied, key)
		} else {
			pending = append(pending, key)
		}
	}
	s.level.Set(cfg.LogLevel)
	s.current.LogLevel = cfg.LogLevel
	c.log.Info("the settings are reloaded", "config", cfg.File, "settings", applied)
	if len(pending) > 0 {
		c.log.Warn("changed settings take effect only after a restart of vmand", "settings", pending)
	}
}
