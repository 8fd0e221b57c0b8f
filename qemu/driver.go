// Package qemu runs virtual machines with QEMU: it implements [vm.Driver].
//
// Every VM is one QEMU process in a session of its own, which survives the end and
// the upgrade of vmand. Any vmand can query the identity and state of the process:
// it lives while it holds a lock on its pidfile (pidfile.go), it is the right one
// if its monitor names the VM's UUID, and its run state is QEMU's. There is no
// other record that could be wrong.
//
// The command line is a pure function of the VM (cmdline.go). layout.go names all
// paths. QEMU and qemu-img have no rights but those to the VM's files (user.go,
// package host).
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"vmand/host"
	"vmand/vm"
)

// Options configures a [Driver].
type Options struct {
	StateDir   string // disks and logs; absolute, or relative to the working directory
	RuntimeDir string // sockets and pidfiles
	Binary     string // of QEMU: a path, or a name to look up in PATH; default qemu-system-x86_64
	ImgBinary  string // of qemu-img, the same way
	Accel      string // auto, kvm or tcg; default auto
	User       string // user that QEMU runs as, if vmand is root; default vman-qemu if it exists, else a fixed free uid
	Nice       int    // nice value of QEMU, if that is higher than vmand's
	Images     ImageOptions
}

// Driver runs VMs with QEMU. Its methods are safe for concurrent use, as far as
// [vm.Driver] allows.
type Driver struct {
	*contents
	*news
	opts    Options
	log     *slog.Logger
	layout  layout
	account host.Account
	state   *os.Root // file access under the state directory
	files   *fileSurvey
	watch   *serialWatch

	probing chan struct{} // held while a binary is probed; guards probed
	probed  probes
	accel   *accelProber // nil if guests never run under KVM
	started time.Time    // no later than the driver's first change of a file
	tidied  sync.Once    // has called tidyVMs

	ctx    context.Context // done when the driver closes
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the sessions' goroutines

	mu         sync.Mutex // guards everything that follows; held over the start of a process, never over a QMP command
	sessions   map[string]*session
	img        fileIdentity // of the qemu-img that was asked for its version
	imgVersion string

	// known is a lock-free copy of sessions for readers, so observing one VM never
	// waits while another starts.
	known sync.Map
}

var _ vm.Driver = (*Driver)(nil)

// New prepares the directories and finds the running VMs. It succeeds without QEMU;
// only methods that need QEMU fail then. It fails if the user that QEMU runs as
// cannot reach the files of its VM; the error has a hint.
//
// As a side effect vmand leaves no core dumps, which would hold secrets or the
// memory of guests, and passes on no descriptor that it inherited ([host.Confine]).
func New(ctx context.Context, o Options, log *slog.Logger) (*Driver, error) {
	d, err := prepare(o, log)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	if d.state, err = os.OpenRoot(d.layout.state); err != nil {
		return nil, fmt.Errorf("qemu: open state directory: %w", err)
	}
	if d.contents, err = openContents(d.layout, d.account, o.Images); err != nil {
		d.state.Close()
		return nil, fmt.Errorf("qemu: %w", err)
	}
	d.probed = d.loadProbes()
	d.files = newFileSurvey(d.state, func(id string) (int64, error) { return d.DiskSize(context.Background(), id) })
	if err := host.Confine(); err != nil {
		d.contents.close()
		d.state.Close()
		return nil, fmt.Errorf("qemu: %w", err)
	}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.watch = newSerialWatch(d.log)
	d.wg.Go(func() { d.watch.run(d.ctx) })
	d.startProber()
	d.started = time.Now().Add(-fileTimeStep)
	if err := errors.Join(d.removeTemps(), d.adoptWithStrays(), d.removeStale()); err != nil {
		d.Close()
		return nil, fmt.Errorf("qemu: %w", err)
	}
	return d, nil
}

// prepare checks the options and creates the directories.
func prepare(o Options, log *slog.Logger) (*Driver, error) {
	if o.Binary == "" {
		o.Binary = "qemu-system-x86_64"
	}
	if o.ImgBinary == "" {
		o.ImgBinary = "qemu-img"
	}
	switch o.Accel {
	case "":
		o.Accel = accelAuto
	case accelAuto, accelKVM, accelTCG:
	default:
		return nil, fmt.Errorf("qemu.accel is %q: use auto, kvm or tcg", o.Accel)
	}
	l, err := newLayout(o.StateDir, o.RuntimeDir)
	if err != nil {
		return nil, err
	}
	a, err := newAccount(o.User)
	if err != nil {
		return nil, err
	}
	if err := l.create(a); err != nil {
		return nil, err
	}
	return &Driver{
		news:     newNews(),
		opts:     o,
		log:      log,
		layout:   l,
		account:  a,
		probing:  make(chan struct{}, 1),
		sessions: make(map[string]*session),
	}, nil
}

// program returns a program that runs as QEMU's account, with the guests' nice
// value.
func (d *Driver) program(argv ...string) host.Program {
	return host.Program{Argv: argv, Account: d.runAs(), Nice: d.opts.Nice}
}

// Close releases all VMs without touching them and waits for its goroutines.
func (d *Driver) Close() error {
	d.mu.Lock() // no session is being opened, and none will be
	d.cancel()
	d.mu.Unlock()
	d.wg.Wait()
	return errors.Join(d.contents.close(), d.state.Close())
}

// Platform implements [vm.Machines].
func (d *Driver) Platform(ctx context.Context) (vm.Platform, error) {
	platform, _, err := d.platform(ctx, accelWait)
	return platform, err
}

// platform returns the platform, and whether the host has hardware virtualization that
// cannot be used. It waits for limit for the first answer about KVM.
func (d *Driver) platform(ctx context.Context, limit time.Duration) (platform vm.Platform, fixable bool, err error) {
	p, err := d.probe(ctx)
	if err != nil {
		return platform, false, err
	}
	platform = vm.Platform{Version: p.Capabilities.Version, Machine: p.Capabilities.Machine, Accel: vm.TCG}
	switch d.opts.Accel {
	case accelAuto:
		v := d.accel.current(ctx, limit)
		if platform.Accel = v.Accel; v.Why != "" {
			platform.Warning = "KVM cannot be used, so guests run in software emulation (TCG) and are slow: " + v.Why
		}
		return platform, v.Fixable, nil
	case accelKVM:
		platform.Accel = vm.KVM
		if v, _ := d.accel.known(); v.Why != "" {
			platform.Warning = "KVM cannot be used, so VMs cannot start: " + v.Why
		}
		return platform, platform.Warning != "", nil
	}
	return platform, false, nil
}

// Tools describes the installed programs of QEMU, for a health report.
type Tools struct {
	QEMU  Tool
	Img   Tool
	Accel vm.Accel // empty if QEMU is missing
	// Warning says why guests cannot run under KVM, and how to change that.
	Warning string
	// Fixable reports that the host has hardware virtualization that cannot be used.
	Fixable bool
}

// A Tool describes a program.
type Tool struct {
	Version string // empty if it cannot be used
	Err     error  // why it cannot be used; of class [vm.ErrUnavailable]
}

// CheckTools checks the installed programs. It runs a program only if that has
// changed since the last check.
func (d *Driver) CheckTools(ctx context.Context) Tools {
	var t Tools
	p, fixable, err := d.platform(ctx, accelReport)
	t.QEMU = Tool{Version: p.Version, Err: err}
	t.Accel, t.Warning, t.Fixable = p.Accel, p.Warning, fixable
	t.Img.Version, t.Img.Err = d.askImgVersion(ctx)
	return t
}
