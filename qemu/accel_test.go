package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmand/host"
	"vmand/vm"
)

// greets is the part of a fake QEMU that answers the QMP handshake on descriptor 3.
const greets = `echo '{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}' >&3
read line <&3
echo '{"return": {}, "id": 1}' >&3
read line <&3
echo '{"return": {}, "id": 2}' >&3
`

func TestAccelProbeOfABrokenKVM(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(kvmDevice); err != nil {
		t.Logf("without %s every case ends there", kvmDevice)
	}
	for name, c := range map[string]struct {
		script, want string
		unproved     bool
	}{
		"aborts":           {"echo 'failed to set MSR 0x10a' >&2; kill -ABRT $$", "failed to set MSR 0x10a", false},
		"hangs":            {"exec sleep 100", "did not start within", true},
		"aborts when run":  {greets + "echo 'KVM: entry failed' >&2; kill -ABRT $$", "KVM: entry failed", false},
		"hangs when run":   {greets + "exec sleep 100", "did not start within", true},
		"refuses to start": {"echo 'Could not access KVM kernel module: Permission denied' >&2; exit 1", "Permission denied", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDriver(t, Options{Accel: accelTCG}) // so that no other probe runs
			v := d.probeAccel(t.Context(), fakeTool(t, c.script), "host")
			if _, err := os.Stat(kvmDevice); err != nil {
				c.want, c.unproved = "does not exist", false
			}
			if v.Accel != vm.TCG || v.Unproved != c.unproved || !strings.Contains(v.Why, c.want) {
				t.Errorf("got %+v, want %q, unproved %t", v, c.want, c.unproved)
			}
		})
	}
	d := newDriver(t, Options{Accel: accelTCG})
	if v := d.probeAccel(t.Context(), "/no/such/qemu", "host"); v.Accel != vm.TCG || v.Why == "" {
		t.Errorf("without a binary: %+v", v)
	}
}

// A proberHost is a host with an identity and an answer that a test changes.
type proberHost struct {
	mu     sync.Mutex
	id     string
	answer accelVerdict // without the identity
	takes  time.Duration
	probes int
	saved  []accelVerdict
}

func (h *proberHost) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// start returns a prober that runs until the test ends.
func (h *proberHost) start(ctx context.Context, saved accelVerdict) *accelProber {
	p := newAccelProber(saved)
	p.identity = func() string {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.id
	}
	p.probe = func(ctx context.Context, id string) accelVerdict {
		h.mu.Lock()
		h.probes++
		v, takes := h.answer, h.takes
		h.mu.Unlock()
		select {
		case <-time.After(min(takes, accelTimeout)):
		case <-ctx.Done():
		}
		if takes > accelTimeout {
			return unproved(id, errors.New("too slow"))
		}
		v.Host = id
		return v
	}
	p.save = func(v accelVerdict) { h.set(func() { h.saved = append(h.saved, v) }) }
	go p.run(ctx)
	return p
}

var (
	works  = accelVerdict{Accel: vm.KVM}
	denied = accelVerdict{Accel: vm.TCG, Why: "Permission denied; run: chgrp kvm /dev/kvm", Fixable: true}
)

// TestAccelProberFollowsTheHost changes the host as boots, udev rules, modules and upgrades
// do. After each change the next start gets the right answer within its bound.
func TestAccelProberFollowsTheHost(t *testing.T) {
	for name, tt := range map[string]struct {
		saved, before accelVerdict
		change        func(h *proberHost)
		takes         time.Duration // the wait of the next start
		want          accelVerdict
	}{
		"the module is loaded late": {
			before: accelVerdict{Accel: vm.TCG, Why: "/dev/kvm does not exist; run: modprobe kvm_amd", Fixable: true},
			change: func(h *proberHost) { h.id, h.answer = "with a device", works },
			want:   works,
		},
		"the udev rule runs late, and refuses the first time": {
			before: denied,
			change: func(h *proberHost) { h.id, h.answer = "group kvm", works },
			want:   works,
		},
		"the device disappears": {
			before: works,
			change: func(h *proberHost) { h.id, h.answer = "no device", denied },
			want:   denied,
		},
		"QEMU is upgraded": {
			before: denied,
			change: func(h *proberHost) { h.id, h.answer = "qemu 11", works },
			want:   works,
		},
		"a slow host": {
			before: works,
			change: func(h *proberHost) { h.id, h.takes = "busy", 5*time.Second },
			takes:  5 * time.Second,
			want:   works,
		},
		"the saved refusal is of the same host": {
			saved:  accelVerdict{Host: "host", Accel: vm.TCG, Why: "busy"},
			before: works,
			change: func(*proberHost) {},
			want:   works,
		},
		"the saved answer is of an earlier boot": {
			saved:  accelVerdict{Host: "old boot", Accel: vm.TCG, Why: "old"},
			before: works,
			change: func(*proberHost) {},
			want:   works,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &proberHost{id: "host", answer: tt.before}
				p := h.start(t.Context(), tt.saved)
				p.current(t.Context(), accelWait)
				synctest.Wait() // the first probe has ended
				h.set(func() { tt.change(h) })
				begin := time.Now()
				got := p.current(t.Context(), accelWait)
				tt.want.Host = h.id
				if took := time.Since(begin); got != tt.want || took != tt.takes {
					t.Errorf("got %+v after %v, want %+v after %v", got, took, tt.want, tt.takes)
				}
			})
		})
	}
}

// A probe without an answer decides one start at most.
func TestAccelProberRepeatsAProbeWithoutAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &proberHost{id: "host", answer: works, takes: time.Hour}
		p := h.start(t.Context(), accelVerdict{})
		begin := time.Now()
		if v := p.current(t.Context(), accelWait); !v.Unproved || v.Accel != vm.TCG || time.Since(begin) != accelTimeout {
			t.Errorf("got %+v after %v, want no answer after %v", v, time.Since(begin), accelTimeout)
		}
		begin = time.Now()
		if v := p.current(t.Context(), accelWait); !v.Unproved || time.Since(begin) != 0 {
			t.Errorf("then %+v after %v, want no wait", v, time.Since(begin))
		}
		h.set(func() { h.takes = 0 })
		time.Sleep(accelRetry + 2*accelLook)
		if v := p.current(t.Context(), accelWait); v.Accel != vm.KVM {
			t.Errorf("after %v: %+v, want KVM", accelRetry, v)
		}
		h.set(func() {
			if len(h.saved) != 1 || h.saved[0].Accel != vm.KVM || h.probes != 2 {
				t.Errorf("saved %+v after %d probes, want one answer after 2", h.saved, h.probes)
			}
		})
	})
}

func TestAccelProberAsksAgainAfterARefusalAndNotAfterKVM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &proberHost{id: "host", answer: denied}
		p := h.start(t.Context(), accelVerdict{})
		p.current(t.Context(), accelWait)
		h.set(func() { h.answer = works })
		time.Sleep(accelRetryMax + 2*accelLook)
		if v := p.current(t.Context(), 0); v.Accel != vm.KVM {
			t.Errorf("after %v: %+v, want KVM", accelRetryMax, v)
		}
		time.Sleep(time.Hour)
		h.set(func() {
			if h.probes != 2 {
				t.Errorf("%d probes, want 2", h.probes)
			}
		})
	})
}

func TestCurrentVerdictDoesNotWaitLongerThanItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &proberHost{id: "host", answer: works, takes: accelTimeout}
		p := h.start(t.Context(), accelVerdict{})
		begin := time.Now()
		if v := p.current(t.Context(), accelReport); !v.Unproved || time.Since(begin) != accelReport {
			t.Errorf("got %+v after %v, want no answer after %v", v, time.Since(begin), accelReport)
		}
	})
}

func TestFixOfAKVMThatCannotBeUsed(t *testing.T) {
	user := host.Account{UID: fallbackID}
	for name, tt := range map[string]struct {
		cpu, kmsg string
		modules   []string
		why, want string
	}{
		"no virtualization":        {cpu: "fpu sse2", why: "does not exist", want: ""},
		"off in the firmware":      {cpu: "fpu", kmsg: "6,1,1,-;x86/cpu: VMX (outside TXT) disabled by BIOS\n", why: "does not exist", want: "firmware"},
		"off in the firmware, AMD": {cpu: "svm", kmsg: "3,1,1,-;kvm: disabled by bios\n", why: "does not exist", want: "modprobe kvm_amd"},
		"no module":                {cpu: "fpu vmx", why: "/dev/kvm does not exist", want: "run: modprobe kvm_intel"},
		"denied":                   {cpu: "svm", modules: []string{"kvm_amd"}, why: "Could not access KVM kernel module: Permission denied", want: "kvm"},
		"a control group":          {cpu: "svm", modules: []string{"kvm_amd"}, why: "Operation not permitted", want: "DeviceAllow=/dev/kvm rw"},
		"another hypervisor":       {cpu: "vmx", modules: []string{"kvm_intel"}, why: "ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy", want: "VirtualBox"},
		"unknown":                  {cpu: "vmx", modules: []string{"kvm_intel"}, why: "KVM: entry failed", want: "dmesg"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for _, dir := range []string{"proc", "dev", "sys/module"} {
				must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
			}
			must(t, os.WriteFile(filepath.Join(root, "proc/cpuinfo"), []byte("processor\t: 0\nflags\t\t: "+tt.cpu+"\n"), 0o644))
			must(t, os.WriteFile(filepath.Join(root, "dev/kmsg"), []byte(tt.kmsg), 0o644))
			for _, m := range tt.modules {
				must(t, os.Mkdir(filepath.Join(root, "sys/module", m), 0o755))
			}
			got := lookAtHost(root).fix(errors.New(tt.why), user)
			if !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
				t.Errorf("the fix is %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAutoChoosesAnAcceleratorThatWorks(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{Accel: accelAuto})
	p, err := d.Platform(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if (p.Accel == vm.TCG) == (p.Warning == "") {
		t.Errorf("got %+v; want a warning with TCG and with nothing else", p)
	}
	begin := time.Now()
	again, err := d.Platform(t.Context())
	if took := time.Since(begin); again != p || err != nil || took > 2*time.Second {
		t.Errorf("then %+v, %v after %v", again, err, took)
	}
}

func TestExplicitKVMIsNeverReplaced(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{Accel: "kvm"})
	v := d.accel.current(t.Context(), accelWait)
	p, err := d.Platform(t.Context())
	if err != nil || p.Accel != vm.KVM || (p.Warning == "") != (v.Accel == vm.KVM) {
		t.Errorf("got %+v, %v; the verdict is %+v", p, err, v)
	}
	if got := d.wouldUse(); got != "" {
		t.Errorf("a VM would use %s, want no report", got)
	}
}
