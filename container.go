package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

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
	// recoverTimeout ends the settling of what was on its way when the daemon last
	// ended; the observer goes on with what is left.
	recoverTimeout = time.Minute
	// closeTimeout is how long operations on their way may take to end by
	// themselves when vmand stops.
	closeTimeout = 5 * time.Second

	databaseFile = "vman.db" // in the state directory
	// databaseReserve is how many bytes are kept for the database to record what
	// is stopped and deleted when the file system is full.
	databaseReserve = 8 << 20

	dryRunDir = "dry-run" // in the state and the runtime directory

	// bootIDFile holds a word that is another one after each boot of the host
	// (random(4)).
	bootIDFile = "/proc/sys/kernel/random/boot_id"
)

// container holds every part of vmand, each built once, in the order in which
// they need one another. No package but this one knows more than one of them.
type container struct {
	cfg       Config
	log       *slog.Logger
	store     *store.Store
	driver    driver
	engine    *manager.Engine
	observer  *observer.Observer
	server    *server.Server
	listeners []net.Listener
	tools     func(context.Context) qemu.Tools // what of QEMU is installed
	networks  *network.Networks

	closers []func() error // of the parts, in the order they were built
}

// A driver is what VMs run on.
type driver interface {
	vm.Driver
	observer.Host
	Close() error
	CheckTools(context.Context) qemu.Tools
}

// serve is the daemon's life: it builds everything and runs it until it is told
// to stop.
func serve(ctx context.Context, cfg Config) (err error) {
	log, flush := cfg.logger(os.Stderr)
	defer flush()
	c, err := newContainer(ctx, cfg, log)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // told to stop before it had started
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return c.run(ctx)
}

// newContainer builds everything and settles what the last vmand left behind.
// When it returns, the API's doors are open and nobody answers yet.
func newContainer(ctx context.Context, cfg Config, log *slog.Logger) (*container, error) {
	c := &container{cfg: cfg, log: log}
	tuneMemory()
	c.cfg.QEMU.Nice = host.RaisePriority()
	c.cfg.Network.Nice = c.cfg.QEMU.Nice
	c.cfg.StateDir, c.cfg.RuntimeDir = cfg.directories()
	for _, build := range []func(context.Context) error{c.openState, c.openDriver, c.openNetworks, c.openManager, c.openDoors} {
		if err := build(ctx); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

// openState takes the directories and opens what is recorded.
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
	for _, dir := range dirs { // others may pass through to the socket, which has its own mode
		if err := makeDir(dir, 0o711); err != nil {
			return fmt.Errorf("runtime_dir: %w", err)
		}
	}
	if err := c.lockDirs(); err != nil {
		return err
	}
	var err error
	c.store, err = store.Open(ctx, store.Options{Path: filepath.Join(c.cfg.StateDir, databaseFile), Log: c.log, Reserve: databaseReserve})
	if err != nil {
		return err
	}
	c.closers = append(c.closers, c.store.Close)
	return ensureAdminToken(ctx, c.store, c.cfg.StateDir, c.log)
}

// lockDirs keeps every other vmand out of both directories: one that shared only
// the runtime directory would take the VMs of this one for its own of that name.
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

// makeDir makes a directory with the ones above it. One that exists stays as it is.
func makeDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err == nil {
		return os.Chmod(dir, mode) // whatever the umask is
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	if info, err := os.Stat(dir); err != nil {
		return err
	} else if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	return nil
}

// checkWritable finds out by doing it: mode bits say nothing about root, nor
// about a file system that is mounted read-only.
func checkWritable(dir string) error {
	f, err := os.CreateTemp(dir, ".write-test-*")
	if err != nil {
		return fmt.Errorf("state_dir: vmand (uid %d) cannot write to %s: make it writable or set state_dir to another directory: %w", os.Geteuid(), dir, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// openDriver builds what VMs run on.
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

// openNetworks builds what VMs are connected to.
func (c *container) openNetworks(context.Context) error {
	o := c.cfg.Network
	o.RuntimeDir, o.Directory = c.cfg.RuntimeDir, c.store
	if c.cfg.DryRun {
		o.Mode = network.ModeUser // which makes nothing on the host
	}
	var err error
	if c.networks, err = network.New(o, c.log); err != nil {
		return err
	}
	c.closers = append(c.closers, c.networks.Close)
	return nil
}

// watch delivers what a part of the host notices to the observer and to the engine,
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

// A sink receives what the driver and the networks notice.
type sink struct{ c *container }

// Nudge implements [vm.Sink].
func (s sink) Nudge(vmID string) { s.c.observer.Nudge(vmID) }

// Mark implements [vm.Sink].
func (s sink) Mark(vmID string, mark vm.BootMark, at time.Time) {
	s.c.engine.Guests.Mark(vmID, mark, at)
}

// probeBase looks once at the image that root disks are overlays of. What is
// recorded is the file itself: a link may lead elsewhere tomorrow, and every
// overlay would be lost.
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
	return vm.DiskFile{SizeMiB: size, Base: path, BaseFormat: format}, nil
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
	if err := engine.VMs.AfterBoot(ctx, c.boot()); err != nil {
		return err
	}
	if err := engine.Networks.Prepare(ctx); err != nil {
		return err
	}
	built := make(chan error, 1)
	go func() { built <- c.buildServer(ctx) }() // which computes, while this waits for QEMUs
	if err := errors.Join(engine.Recover(ctx), <-built); err != nil {
		return err
	}
	c.event(ctx, "daemon.started", map[string]any{"version": version, "pid": os.Getpid(), "interrupted_operations": len(open)})
	return nil
}

// services returns the use cases of an engine as the API names them.
func services(e *manager.Engine) server.Services {
	return server.Services{Templates: e.Templates, VMs: e.VMs, Disks: e.Disks, Images: e.Images, Networks: e.Networks, NICs: e.NICs,
		Forwards: e.Forwards, CDROMs: e.CDROMs, CloudInits: e.CloudInits, Guests: e.Guests, Consoles: e.Consoles,
		Orphans: e.Orphans, Operations: e.Operations, Events: e}
}

// event records one of the daemon's own. That it cannot be is no reason not to
// go on.
func (c *container) event(ctx context.Context, kind string, data map[string]any) {
	if err := c.engine.Tell(ctx, vm.NewEvent(kind, vm.Resource{Kind: vm.DaemonKind}, data)); err != nil {
		c.log.Warn("cannot record an event", "type", kind, "err", err)
	}
}

// buildServer builds the API.
func (c *container) buildServer(ctx context.Context) error {
	o := c.cfg.Server
	o.Version, o.DryRun = version, c.cfg.DryRun
	var err error
	c.server, err = server.New(ctx, o, server.Deps{Services: services(c.engine), Reader: c.store, Tokens: c.store,
		Health: c.health, Observer: c.observerStatus, Log: c.log})
	return err
}

// openDoors has the API's addresses listen.
func (c *container) openDoors(context.Context) error {
	if c.cfg.Socket != "" {
		l, err := server.ListenUnix(c.cfg.Socket, c.cfg.Server.Group)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		c.addListener(l)
	}
	if c.cfg.Listen != "" {
		l, err := server.ListenTCP(c.cfg.Listen)
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("listen: %w: another program uses the address: stop it, or set listen to another", err)
		}
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		c.addListener(l)
	}
	return nil
}

func (c *container) addListener(l net.Listener) {
	c.listeners = append(c.listeners, l)
	c.closers = append(c.closers, func() error {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) { // the server has closed it, if it came that far
			return err
		}
		return nil
	})
}

// run serves the API and observes the host until ctx ends. The VMs do not notice.
func (c *container) run(ctx context.Context) error {
	observing, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { c.observer.Run(observing) })
	wg.Go(func() { c.introduce(observing) })
	wg.Go(func() { c.autostart(observing) })
	wg.Go(func() { c.takeLeave(observing) })
	c.tell(notifyReady)
	context.AfterFunc(ctx, func() { c.tell(notifyStopping) })
	err := c.server.Serve(ctx, c.listeners...)
	c.log.Info("vmand stops; the VMs go on")
	return err
}

// boot returns the word for the host's present boot.
func (c *container) boot() string {
	id, err := os.ReadFile(bootIDFile)
	if err != nil { // a host without it is one that has never been booted anew
		c.log.Warn("cannot tell one boot of the host from another", "err", err)
	}
	return strings.TrimSpace(string(id))
}

// autostart starts the VMs that want to be started with the host, if it was
// booted since the last time.
func (c *container) autostart(ctx context.Context) {
	if err := c.engine.VMs.Autostart(ctx, c.boot()); err != nil && ctx.Err() == nil {
		c.log.Error("cannot start the VMs that start with the host", "err", err)
	}
}

// takeLeave records the end when it begins, so that who follows the events is
// told before the doors close.
func (c *container) takeLeave(ctx context.Context) {
	<-ctx.Done()
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer stop()
	c.event(ctx, "daemon.stopping", map[string]any{"version": version, "pid": os.Getpid()})
}

func (c *container) tell(state string) {
	if err := notify(state); err != nil {
		c.log.Warn("cannot tell the service manager", "state", state, "err", err)
	}
}

// introduce logs what vmand works with. The first look at QEMU takes up to a
// second, and nobody waits for it.
func (c *container) introduce(ctx context.Context) {
	doors := make([]string, len(c.listeners))
	for i, l := range c.listeners {
		doors[i] = l.Addr().String()
	}
	c.log.Info("vmand serves", "version", version, "listen", doors, "state_dir", c.cfg.StateDir, "config", c.cfg.File, "dry_run", c.cfg.DryRun)
	if mode, why := c.networks.Mode(); mode == network.ModeUser && !c.cfg.DryRun {
		c.log.Info("VMs are connected in user mode: they are reached by port forwards alone", "why", why)
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
		c.log.Warn("guests run in slow software emulation", "why", t.Warning)
	}
}

// close takes the parts down in reverse.
func (c *container) close() error {
	var errs []error
	for i := len(c.closers) - 1; i >= 0; i-- {
		errs = append(errs, c.closers[i]())
	}
	c.closers = nil
	return errors.Join(errs...)
}
