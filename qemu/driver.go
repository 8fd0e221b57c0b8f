// Package qemu runs virtual machines with QEMU: it implements [vm.Driver].
//
// Every VM is one QEMU process in a session of its own, which neither vmand's
// end nor its upgrade touches. What a process is and does is asked of the
// process itself, at any time and by any vmand: it lives while it holds a lock
// on its pidfile (pidfile.go), it is the right one if its monitor names the VM's UUID, and
// its run state is QEMU's own. Nothing else is remembered that could be wrong.
//
// The command line is a pure function of the VM (cmdline.go); all paths are
// named in one place (layout.go); QEMU and qemu-img run without any right but
// that to the VM's files (user.go, package host).
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"vmand/host"
	"vmand/vm"
)

// Options is how the driver is configured.
type Options struct {
	StateDir   string // disks and logs; absolute, or relative to the working directory
	RuntimeDir string // sockets and pidfiles
	Binary     string // of QEMU: a path, or a name to look up in PATH; default qemu-system-x86_64
	ImgBinary  string // of qemu-img, the same way
	Accel      string // auto, kvm or tcg; default auto
	User       string // that QEMU runs as, when vmand is root; default vman-qemu if it exists, else a fixed free uid
	Nice       int    // nice value that QEMU runs with, if that is higher than vmand's
	Images     ImageOptions
}

// Driver runs VMs with QEMU. Its methods may be called at any time by any
// goroutine, as [vm.Driver] says.
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

	probing chan struct{} // held while QEMU is asked what it can do; guards probed
	probed  probes

	ctx    context.Context // done when the driver is closed
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the sessions' goroutines

	mu       sync.Mutex // guards sessions; held over the start of a process, never over a question to one
	sessions map[string]*session
	img      fileIdentity // of the qemu-img that imgIs is the version of; guarded by mu too
	imgIs    string

	known sync.Map // the sessions again, for who only reads: nobody who looks at a VM waits for the start of another
}

var _ vm.Driver = (*Driver)(nil)

// New prepares the directories and finds the VMs that run. It succeeds without
// QEMU; what needs it fails then. It fails if the user that QEMU runs as could
// not reach the files of its VM, and says what to do.
//
// As a side effect the whole process leaves no core dumps, which would hold
// guests' memory or secrets, and no descriptor it has inherited is passed on.
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
	d.files = newFileSurvey(d.state, func(id string) (int64, error) { return d.DiskSize(context.Background(), id) })
	if err := host.Confine(); err != nil {
		d.contents.close()
		d.state.Close()
		return nil, fmt.Errorf("qemu: %w", err)
	}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.watch = newSerialWatch(d.log)
	d.wg.Go(func() { d.watch.run(d.ctx) })
	if err := errors.Join(d.removeTemps(), d.adoptAll(), d.removeStale()); err != nil {
		d.Close()
		return nil, fmt.Errorf("qemu: %w", err)
	}
	return d, nil
}

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
	return host.Program{Argv: argv, Account: d.account, Nice: d.opts.Nice}
}

// Close lets go of all VMs without touching them. It waits for its goroutines.
func (d *Driver) Close() error {
	d.mu.Lock() // no session is being opened now, and none will be
	d.cancel()
	d.mu.Unlock()
	d.wg.Wait()
	return errors.Join(d.contents.close(), d.state.Close())
}

// Platform implements [vm.Driver].
func (d *Driver) Platform(ctx context.Context) (vm.Platform, error) {
	p, err := d.probe(ctx, d.opts.Accel == accelAuto)
	if err != nil {
		return vm.Platform{}, err
	}
	platform := vm.Platform{Version: p.Capabilities.Version, Machine: p.Capabilities.Machine}
	switch d.opts.Accel {
	case accelAuto:
		platform.Accel, platform.Warning = p.Accel.Accel, p.Accel.Warning
	default:
		platform.Accel = vm.Accel(d.opts.Accel)
	}
	return platform, nil
}

// Tools is what of QEMU is installed, for a health report.
type Tools struct {
	QEMU  Tool
	Img   Tool
	Accel vm.Accel // empty if QEMU is missing
	// Warning says why guests run in software emulation although KVM was wanted.
	Warning string
}

// A Tool is one program.
type Tool struct {
	Version string // empty if it cannot be used
	Err     error  // why it cannot be used; of class [vm.ErrUnavailable]
}

// CheckTools looks at the installed programs. It runs one only if that has
// changed since it was last asked.
func (d *Driver) CheckTools(ctx context.Context) Tools {
	var t Tools
	p, err := d.Platform(ctx)
	t.QEMU = Tool{Version: p.Version, Err: err}
	t.Accel, t.Warning = p.Accel, p.Warning
	t.Img.Version, t.Img.Err = d.imgVersion(ctx)
	return t
}
