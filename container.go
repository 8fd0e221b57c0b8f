package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"vmand/config"
	"vmand/host"
	"vmand/manager"
	"vmand/network"
	"vmand/observer"
	"vmand/qemu"
	"vmand/server"
	"vmand/store"
	"vmand/vm"
)

const (
	// recoverTimeout limits the recovery of interrupted operations at start. The
	// observer settles the rest.
	recoverTimeout = time.Minute
	// closeTimeout is how long vmand waits for running operations when it stops.
	closeTimeout = 5 * time.Second

	databaseFile = "vman.db" // in the state directory
	// databaseReserve is how many bytes are reserved for the database, so that it
	// can record stops and deletions when the file system is full.
	databaseReserve = 8 << 20
)

// container holds every part of vmand. Each is built once, in the order of their
// dependencies. Only this package knows more than one of them.
type container struct {
	cfg       config.Config
	log       *slog.Logger
	store     *store.Store
	driver    driver
	engine    *manager.Engine
	observer  *observer.Observer
	server    *server.Server
	listeners []*server.Listener
	passed    passed                           // by systemd
	settings  settings                         // reread after SIGHUP
	tools     func(context.Context) qemu.Tools // checks the installed QEMU programs
	networks  *network.Networks

	closers []func() error // of the parts, in the order of their construction
}

// A driver runs VMs: QEMU or the dry run.
type driver interface {
	vm.Driver
	observer.Host
	Close() error
	CheckTools(context.Context) qemu.Tools
	GuestUID() int
}

// serve runs the daemon with the settings of read until ctx is done.
func serve(ctx context.Context, read func() (config.Config, error)) (err error) {
	signals, release := catchHarmless()
	defer release()
	cfg, err := read()
	if err != nil {
		return errConfig{err}
	}
	passed, err := takePassed(cfg.ListenInsecure)
	if err != nil {
		return err
	}
	defer passed.close()
	log, level, flush := newLogger(cfg, os.Stderr)
	defer flush()
	for _, warning := range cfg.Warnings {
		log.Warn("a setting needs attention", "details", warning)
	}
	c, err := newContainer(ctx, cfg, passed, log)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // stopped before the start was complete
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	c.settings = settings{read: read, current: cfg, level: level}
	serving, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { c.serveSignals(serving, signals) })
	defer wg.Wait() // before the store closes
	defer stop()
	return c.run(ctx)
}

// newContainer builds all parts and settles the operations of the previous vmand.
// When it returns, the API's sockets accept connections, but requests are answered
// only by [container.run].
func newContainer(ctx context.Context, cfg config.Config, passed passed, log *slog.Logger) (*container, error) {
	c := &container{cfg: cfg, passed: passed, log: log}
	tuneMemory()
	c.cfg.QEMU.Nice = host.RaisePriority()
	c.cfg.Network.Nice = c.cfg.QEMU.Nice
	c.cfg.StateDir, c.cfg.RuntimeDir = cfg.Directories()
	for _, build := range []func(context.Context) error{
		c.openState,
		c.openDriver,
		c.openNetworks,
		c.openManager,
		c.openListeners,
	} {
		if err := build(ctx); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

// openState creates and locks the directories and opens the database.
func (c *container) openState(ctx context.Context) error {
	if err := makeDir(c.cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	if err := checkWritable(c.cfg.StateDir); err != nil {
		return err
	}
	dirs := []string{c.cfg.RuntimeDir}
	if c.cfg.DryRun {
		dirs = []string{filepath.Dir(c.cfg.RuntimeDir), c.cfg.RuntimeDir}
	}
	for _, dir := range dirs { // other users may traverse it to reach the socket, which has its own mode
		if err := makeDir(dir, 0o711); err != nil {
			return fmt.Errorf("runtime_dir: %w", err)
		}
	}
	if err := c.lockDirs(); err != nil {
		return err
	}
	var err error
	c.store, err = store.Open(ctx, store.Options{
		Path:    filepath.Join(c.cfg.StateDir, databaseFile),
		Log:     c.log,
		Reserve: databaseReserve,
	})
	if err != nil {
		return err
	}
	c.closers = append(c.closers, c.store.Close)
	return ensureAdminToken(ctx, c.store, c.cfg.StateDir, c.log)
}

// lockDirs locks both directories. A second vmand that shared only the runtime
// directory would mistake the VMs of this one for its own VMs of the same name.
func (c *container) lockDirs() error {
	dirs := []string{c.cfg.StateDir, c.cfg.RuntimeDir}
	if sameDir(dirs[0], dirs[1]) {
		dirs = dirs[:1]
	}
	for _, dir := range dirs {
		lock, err := lockDir(dir)
		if err != nil {
			return err
		}
		c.closers = append(c.closers, lock.Close)
	}
	return nil
}

func sameDir(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// checkWritable creates a file in dir. Mode bits would not show a read-only file
// system, and do not limit root.
func checkWritable(dir string) error {
	f, err := os.CreateTemp(dir, ".write-test-*")
	if err != nil {
		return fmt.Errorf("state_dir: vmand (uid %d) cannot write to %s: make it writable or set another state_dir: %w",
			os.Geteuid(), dir, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// openDriver builds the driver.
func (c *container) openDriver(ctx context.Context) error {
	base, err := c.probeBase()
	if err != nil {
		return err
	}
	c.cfg.Manager.Base = base
	o := c.cfg.QEMU
	o.StateDir, o.RuntimeDir = c.cfg.StateDir, c.cfg.RuntimeDir
	var driver driver
	if c.cfg.DryRun {
		driver, err = qemu.NewDryRun(o)
	} else {
		driver, err = qemu.New(ctx, o, c.log)
	}
	if err != nil {
		return err
	}
	c.closers = append(c.closers, driver.Close)
	c.driver, c.tools = driver, driver.CheckTools
	return nil
}

// openNetworks builds the host side of networks.
func (c *container) openNetworks(context.Context) error {
	o := c.cfg.Network
	o.RuntimeDir, o.Directory = c.cfg.RuntimeDir, c.store
	if c.cfg.DryRun {
		o.Mode = network.ModeUser // changes nothing on the host
	}
	var err error
	if c.networks, err = network.New(o, c.log); err != nil {
		return err
	}
	c.closers = append(c.closers, c.networks.Close)
	return nil
}

// watch delivers the observations of a part of the host to the observer and to the engine,
// until the container closes.
func (c *container) watch(source func(context.Context, vm.Sink)) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { source(ctx, sink{c}) })
	c.closers = append(c.closers, func() error {
		cancel()
		wg.Wait()
		return nil
	})
}

// A sink receives the observations of the driver and the networks.
type sink struct{ c *container }

// Nudge implements [vm.Sink].
func (s sink) Nudge(vmID string) { s.c.observer.Nudge(vmID) }

// Mark implements [vm.Sink].
func (s sink) Mark(vmID string, mark vm.BootMark, at time.Time) {
	s.c.engine.Guests.Mark(vmID, mark, at)
}

// probeBase reads the header of the image that root disks are overlays of. It
// resolves symbolic links: if a link changed later, every overlay would be lost.
func (c *container) probeBase() (vm.DiskFile, error) {
	if c.cfg.BootDisk == "" {
		return vm.DiskFile{}, nil
	}
	path, err := filepath.EvalSymlinks(c.cfg.BootDisk)
	if err != nil {
		return vm.DiskFile{}, fmt.Errorf("default_boot_disk: %w", err)
	}
	format, size, err := qemu.ProbeBase(path)
	if err != nil {
		return vm.DiskFile{}, fmt.Errorf("default_boot_disk: %w", err)
	}
	base := vm.DiskFile{Base: path, BaseFormat: format}
	base.SetBytes(size)
	return base, nil
}

func (c *container) openManager(ctx context.Context) error {
	engine := manager.New(c.store, c.driver, c.networks, c.cfg.Manager, c.log)
	c.engine = engine
	c.observer = observer.New(c.cfg.Observer, observer.Deps{Host: c.driver, Records: c.store, Settler: engine,
		Restarter: engine.VMs, Networks: engine.Networks, Log: c.log})
	c.watch(c.driver.Watch)
	c.watch(c.networks.Watch)
	c.closers = append(c.closers, func() error {
		ctx, stop := context.WithTimeout(context.Background(), closeTimeout)
		defer stop()
		engine.Close(ctx)
		return nil
	})
	ctx, stop := context.WithTimeout(ctx, recoverTimeout)
	defer stop()
	open, err := c.store.Operations(ctx, vm.OperationFilter{Open: true}, vm.Page{})
	if err != nil {
		return err
	}
	if err := engine.AfterRestore(ctx); err != nil {
		return err
	}
	if err := engine.VMs.AfterBoot(ctx, c.boot()); err != nil {
		return err
	}
	if err := engine.Networks.Prepare(ctx); err != nil {
		return err
	}
	built := make(chan error, 1)
	go func() { built <- c.buildServer(ctx) }() // computes while Recover waits for QEMU
	if err := errors.Join(engine.Recover(ctx), <-built); err != nil {
		return err
	}
	c.event(ctx, "daemon.started", map[string]any{
		"version":                version,
		"pid":                    os.Getpid(),
		"interrupted_operations": len(open),
	})
	return nil
}

// services returns the services of an engine for the API server.
func services(e *manager.Engine) server.Services {
	return server.Services{
		Templates:  e.Templates,
		VMs:        e.VMs,
		Disks:      e.Disks,
		Images:     e.Images,
		Networks:   e.Networks,
		NICs:       e.NICs,
		Forwards:   e.Forwards,
		CDROMs:     e.CDROMs,
		CloudInits: e.CloudInits,
		Guests:     e.Guests,
		Consoles:   e.Consoles,
		Orphans:    e.Orphans,
		Operations: e.Operations,
		Events:     e,
	}
}

// event records an event of the daemon, best effort.
func (c *container) event(ctx context.Context, kind string, data map[string]any) {
	if err := c.engine.Tell(ctx, vm.NewEvent(kind, vm.Resource{Kind: vm.DaemonKind}, data)); err != nil {
		c.log.Warn("cannot record an event", "kind", kind, "err", err)
	}
}

// buildServer builds the API server.
func (c *container) buildServer(ctx context.Context) error {
	o := c.cfg.Server
	o.Version, o.DryRun, o.Guest = version, c.cfg.DryRun, c.fromGuest
	var err error
	c.server, err = server.New(ctx, o, server.Deps{
		Services: services(c.engine),
		Reader:   c.store,
		Tokens:   c.store,
		Health:   c.health,
		Observer: c.observerStatus,
		Log:      c.log,
	})
	return err
}

// openListeners opens the API's unix socket and TCP address. A TCP address that cannot
// be opened yet does not fail the start: the socket works meanwhile.
func (c *container) openListeners(context.Context) error {
	switch {
	case c.passed.unix != nil:
		c.addListener(server.Passed("socket", c.passed.unix, c.log))
	case c.cfg.Socket != "":
		l, err := server.KeepUnix(c.cfg.Socket, c.cfg.Server.Group, c.log)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		c.addListener(l)
	}
	switch {
	case c.passed.tcp != nil:
		c.addListener(server.Passed("listen", c.passed.tcp, c.log))
	case c.cfg.Listen != "":
		l, err := server.KeepTCP(c.cfg.Listen, c.log)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		c.addListener(l)
	}
	return nil
}

func (c *container) addListener(l *server.Listener) {
	c.listeners = append(c.listeners, l)
	c.closers = append(c.closers, func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) { // a server that ran has closed it
			return err
		}
		return nil
	})
}

// fromGuest reports whether a TCP connection to the API comes from the user-mode
// network of a guest: from QEMU, or from passt.
func (c *container) fromGuest(peer, local netip.AddrPort) bool {
	s, err := host.FindSocket(peer, local)
	if err != nil { // from another host; without the right to look, credentials must suffice
		return false
	}
	guests := c.driver.GuestUID()
	switch {
	case s.UID == guests && guests != os.Geteuid():
		return true
	case s.UID == guests, s.UID == network.PasstUID():
		return s.MayBeOf(c.guestPrograms()...)
	}
	return false
}

// guestPrograms returns the paths of the programs that open connections for guests.
func (c *container) guestPrograms() []string {
	var paths []string
	for _, name := range []string{c.cfg.QEMU.Binary, c.cfg.Network.Passt} {
		if path, err := host.LookPath(name); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

// run serves the API and observes the host until ctx is done. It never stops VMs.
func (c *container) run(ctx context.Context) error {
	observing, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { c.observer.Run(observing) })
	wg.Go(func() { c.logStart(observing) })
	wg.Go(func() { c.autostart(observing) })
	wg.Go(func() { c.announceStop(observing) })
	wg.Go(func() { c.watchdog(observing) })
	c.notify(daemon.SdNotifyReady)
	context.AfterFunc(ctx, func() { c.notify(daemon.SdNotifyStopping) })
	listeners := make([]net.Listener, len(c.listeners))
	for i, l := range c.listeners {
		listeners[i] = l
	}
	err := c.server.Serve(ctx, listeners...)
	c.log.Info("vmand stopped; VMs keep running")
	return err
}

// boot returns the identifier of the host's current boot.
func (c *container) boot() string {
	id, err := host.BootID()
	if err != nil { // "" for every boot: reboots go unnoticed
		c.log.Warn("cannot detect reboots of the host", "err", err)
	}
	return id
}

// autostart starts the VMs with autostart, if the host has booted since the last
// call.
func (c *container) autostart(ctx context.Context) {
	if err := c.engine.VMs.Autostart(ctx, c.boot()); err != nil && ctx.Err() == nil {
		c.log.Error("cannot start the VMs with autostart", "err", err)
	}
}

// announceStop records daemon.stopping before the listeners close, so that event
// subscribers see it.
func (c *container) announceStop(ctx context.Context) {
	<-ctx.Done()
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer stop()
	c.event(ctx, "daemon.stopping", map[string]any{"version": version, "pid": os.Getpid()})
}

// logStart logs the version, the main settings and problems with the host. It runs
// beside the server because checking the QEMU programs takes up to a second.
func (c *container) logStart(ctx context.Context) {
	addresses := make([]string, len(c.listeners))
	for i, l := range c.listeners {
		addresses[i] = l.Addr().String()
	}
	c.log.Info("vmand started",
		"version", version,
		"listen", addresses,
		"state_dir", c.cfg.StateDir,
		"config", c.cfg.File,
		"dry_run", c.cfg.DryRun)
	if mode, reason := c.networks.Mode(); mode == network.ModeUser && !c.cfg.DryRun {
		c.log.Info("user-mode networking: VMs are reachable only through port forwards", "reason", reason)
	}
	t := c.tools(ctx)
	if ctx.Err() != nil {
		return
	}
	for program, tool := range map[string]qemu.Tool{"qemu": t.QEMU, "qemu-img": t.Img} {
		if tool.Err != nil {
			c.log.Warn("a program is missing", "program", program, "err", tool.Err)
		}
	}
	if t.Warning != "" && !c.cfg.DryRun {
		c.log.Warn("guests run in slow software emulation", "reason", t.Warning)
	}
}

// close closes the parts in reverse order.
func (c *container) close() error {
	var errs []error
	for i := len(c.closers) - 1; i >= 0; i-- {
		errs = append(errs, c.closers[i]())
	}
	c.closers = nil
	return errors.Join(errs...)
}
