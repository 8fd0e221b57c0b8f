package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// The values of the setting qemu.accel.
const (
	accelAuto = "auto"
	accelKVM  = string(vm.KVM)
	accelTCG  = string(vm.TCG)
)

// accelVerdict records whether KVM works on a host.
type accelVerdict struct {
	Host    string   `json:"host"` // see hostIdentity
	Accel   vm.Accel `json:"accel"`
	Warning string   `json:"warning,omitempty"`
}

// The whole probe takes less than a second. A KVM that cannot run a vCPU either
// ends QEMU or hangs it.
const (
	accelTimeout = 900 * time.Millisecond
	accelRuns    = 100 * time.Millisecond // how long the vCPU must live
)

// hostIdentity returns a text that changes whenever KVM may begin or cease to
// work: after a boot, and with the mode of the device or the user that QEMU runs
// as.
func (d *Driver) hostIdentity() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var st unix.Stat_t
	device := "none"
	if err := unix.Stat(kvmDevice, &st); err == nil {
		device = fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
	}
	return fmt.Sprintf("boot %s, %s %s, uid %d", strings.TrimSpace(string(boot)), kvmDevice, device, d.account.UID)
}

// probeAccel finds out whether guests can run under KVM by running one.
func (d *Driver) probeAccel(ctx context.Context, binary, host string) accelVerdict {
	v := accelVerdict{Host: host, Accel: vm.KVM}
	if why := d.tryKVM(ctx, binary); why != nil {
		v.Accel = vm.TCG
		v.Warning = fmt.Sprintf("KVM cannot be used, guests run in software emulation (TCG) and are slow: %v", why)
	}
	return v
}

// tryKVM runs an empty machine with a vCPU like the host's under KVM for a
// moment, and returns why that does not work. Opening /dev/kvm would not be
// enough: the vCPU may still not work.
func (d *Driver) tryKVM(ctx context.Context, binary string) error {
	if _, err := os.Stat(kvmDevice); err != nil {
		return fmt.Errorf("%s does not exist: the CPU's virtualization is off, or the kernel module is not loaded", kvmDevice)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, accelTimeout,
		fmt.Errorf("a test machine under KVM did not start within %v", accelTimeout))
	defer cancel()
	x, err := d.examine(ctx, binary, "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "16M")
	if err != nil {
		return causeOf(ctx, err)
	}
	defer x.end()
	if err := x.conn.Execute(ctx, "cont", nil, nil); err != nil {
		return causeOf(ctx, x.explain(err))
	}
	if x.proc.Wait(ctx.Done(), accelRuns) {
		return x.explain(errors.New("it ended at once"))
	}
	var st struct {
		Status vm.RunStatus `json:"status"`
	}
	if err := x.conn.Execute(ctx, "query-status", nil, &st); err != nil {
		return causeOf(ctx, x.explain(err))
	}
	if st.Status != vm.StatusRunning {
		return fmt.Errorf("a test machine under KVM went to the run state %q", st.Status)
	}
	return nil
}

// causeOf returns the cause of the end of ctx if err is its deadline, else err.
func causeOf(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}
