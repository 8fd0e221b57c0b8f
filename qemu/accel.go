package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/vm"
)

// The values of the setting qemu.accel.
const (
	accelAuto = "auto"
	accelKVM  = string(vm.KVM)
	accelTCG  = string(vm.TCG)
)

// Times of the KVM probe.
const (
	// accelTimeout is the longest run of the test machine. On an idle host it takes less
	// than a second, on a busy one several.
	accelTimeout = 10 * time.Second
	// accelRuns is how long the vCPU of the test machine must run.
	accelRuns = 100 * time.Millisecond
	// accelWait is the longest wait of a start for the first answer.
	accelWait = 15 * time.Second
	// accelReport is the longest wait of a health report for the first answer.
	accelReport = time.Second
	// accelLook is how often the prober looks for a change of the host.
	accelLook = 5 * time.Second
	// accelRetry is the first wait after a probe without an answer. It doubles up to
	// accelRetryMax, which is also the wait after a refusal.
	accelRetry    = 30 * time.Second
	accelRetryMax = 5 * time.Minute
)

// An accelVerdict says whether guests can run under KVM on a host.
type accelVerdict struct {
	Host  string   `json:"host"` // see hostIdentity
	Accel vm.Accel `json:"accel"`
	Why   string   `json:"why,omitempty"` // not KVM, and the fix
	// Fixable reports that the host has hardware virtualization that cannot be used.
	Fixable bool `json:"fixable,omitempty"`
	// Unproved reports that the probe had no answer. Such a verdict is not saved.
	Unproved bool `json:"-"`
}

// An accelProber keeps a verdict up to date. It probes at its start, when the identity of
// the host changes, and again as long as the answer is not KVM. It is safe for concurrent
// use.
type accelProber struct {
	identity func() string
	probe    func(ctx context.Context, host string) accelVerdict
	save     func(accelVerdict)
	wake     chan struct{} // holds one: somebody waits for a verdict

	mu      sync.Mutex
	verdict accelVerdict  // of another host or none: there is no answer yet
	answers chan struct{} // closed at the next answer
}

// newAccelProber returns a prober that starts with a saved verdict.
func newAccelProber(saved accelVerdict) *accelProber {
	return &accelProber{verdict: saved, wake: make(chan struct{}, 1), answers: make(chan struct{})}
}

// run probes until ctx is done.
func (p *accelProber) run(ctx context.Context) {
	var again time.Time // not before
	retry := accelRetry
	for ctx.Err() == nil {
		host := p.identity()
		v, _ := p.known()
		if v.Host != host {
			again, retry = time.Time{}, accelRetry
		}
		if v.Host != host || v.Accel != vm.KVM && !time.Now().Before(again) {
			v = p.probe(ctx, host)
			if ctx.Err() != nil {
				return
			}
			p.answer(v)
			again = time.Now().Add(accelRetryMax)
			if v.Unproved {
				again = time.Now().Add(retry)
				retry = min(2*retry, accelRetryMax)
			}
		}
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-time.After(accelLook):
		}
	}
}

func (p *accelProber) known() (accelVerdict, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.verdict, p.answers
}

// answer records a verdict, and saves it if it is a new one that is proved.
func (p *accelProber) answer(v accelVerdict) {
	p.mu.Lock()
	changed := v != p.verdict
	p.verdict = v
	close(p.answers)
	p.answers = make(chan struct{})
	p.mu.Unlock()
	if changed && !v.Unproved {
		p.save(v)
	}
}

// current returns the verdict for the host as it is now. Without one it waits for the
// answer, at most for limit and until ctx is done. If none comes, it returns a verdict
// with Unproved set.
func (p *accelProber) current(ctx context.Context, limit time.Duration) accelVerdict {
	host := p.identity()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		v, answers := p.known()
		if v.Host == host {
			return v
		}
		select {
		case p.wake <- struct{}{}:
		default:
		}
		select {
		case <-answers:
		case <-ctx.Done():
			return unproved(host, errors.New("vmand does not know yet whether KVM works"))
		}
	}
}

// unproved returns the verdict of a probe without an answer.
func unproved(host string, why error) accelVerdict {
	v := refused(host, why, "")
	v.Unproved = true
	return v
}

// refused returns the verdict on a host where KVM does not work. fix is the command or
// setting that makes it work.
func refused(host string, why error, fix string) accelVerdict {
	text := why.Error()
	if fix != "" {
		text += "; " + fix
	}
	return accelVerdict{Host: host, Accel: vm.TCG, Why: text, Fixable: fix != ""}
}

// hostIdentity returns a text that changes whenever KVM may begin or cease to work: with a
// boot, the device, the kernel modules, the account that QEMU runs as, its cgroup and the
// binary.
func (d *Driver) hostIdentity() string {
	boot, _ := host.BootID()
	cgroup, _ := os.ReadFile("/proc/self/cgroup")
	device := "none"
	var st unix.Stat_t
	if err := unix.Stat(kvmDevice, &st); err == nil {
		device = fmt.Sprintf("%o %d:%d %x", st.Mode, st.Uid, st.Gid, st.Rdev)
	}
	binary := "none"
	if path, err := host.LookPath(d.opts.Binary); err == nil {
		if id, err := identify(path); err == nil {
			binary = fmt.Sprintf("%s %d %d", id.Path, id.ModTime.UnixNano(), id.Size)
		}
	}
	a := d.runAs()
	return fmt.Sprintf("boot %s, %s %s, modules %s, uid %d, groups %v, cgroup %s, binary %s",
		boot, kvmDevice, device, strings.Join(kvmModules(), " "), a.UID, a.Groups,
		strings.TrimSpace(string(cgroup)), binary)
}

// probeAccel finds out whether guests can run under KVM by running one.
func (d *Driver) probeAccel(ctx context.Context, binary, host string) accelVerdict {
	ctx, cancel := context.WithTimeoutCause(ctx, accelTimeout,
		fmt.Errorf("a test machine under KVM did not start within %v, which vmand tries again", accelTimeout))
	defer cancel()
	why := d.tryKVM(ctx, binary)
	switch {
	case why == nil:
		return accelVerdict{Host: host, Accel: vm.KVM}
	case ctx.Err() != nil:
		return unproved(host, context.Cause(ctx))
	case errors.Is(why, errCannotStart):
		return unproved(host, why)
	}
	return refused(host, why, lookAtHost("/").fix(why, d.runAs()))
}

// tryKVM runs an empty machine with a vCPU like the host's under KVM for a moment, and
// returns why that does not work. Opening /dev/kvm would not be enough: the vCPU may still
// not work.
func (d *Driver) tryKVM(ctx context.Context, binary string) error {
	if _, err := os.Stat(kvmDevice); err != nil {
		return fmt.Errorf("%s does not exist", kvmDevice)
	}
	x, err := d.examine(ctx, binary, "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "16M")
	if err != nil {
		return err
	}
	defer x.end()
	if err := x.conn.Execute(ctx, "cont", nil, nil); err != nil {
		return x.explain(err)
	}
	if x.proc.Wait(ctx.Done(), accelRuns) {
		return x.explain(errors.New("it ended at once"))
	}
	var st struct {
		Status vm.RunStatus `json:"status"`
	}
	if err := x.conn.Execute(ctx, "query-status", nil, &st); err != nil {
		return x.explain(err)
	}
	if st.Status != vm.StatusRunning {
		return fmt.Errorf("a test machine under KVM went to the run state %q", st.Status)
	}
	return nil
}

// wouldUse returns the accelerator with which a VM would start now, empty if that is
// unknown or the setting names one. It does not block.
func (d *Driver) wouldUse() vm.Accel {
	if d.opts.Accel != accelAuto {
		return ""
	}
	v, _ := d.accel.known()
	if v.Unproved {
		return ""
	}
	return v.Accel
}

// startProber starts the prober of a driver that may use KVM. It must be called before
// anything probes.
func (d *Driver) startProber() {
	if d.opts.Accel == accelTCG {
		return
	}
	var saved accelVerdict
	if d.probed.Accel != nil {
		saved = *d.probed.Accel
	}
	d.accel = newAccelProber(saved)
	d.accel.identity = d.hostIdentity
	d.accel.probe = func(ctx context.Context, id string) accelVerdict {
		path, err := host.LookPath(d.opts.Binary)
		if err != nil {
			return unproved(id, err)
		}
		return d.probeAccel(ctx, path, id)
	}
	d.accel.save = d.saveAccel
	d.wg.Go(func() { d.accel.run(d.ctx) })
}
