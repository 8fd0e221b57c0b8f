package qemu

import (
	"os"
	"strings"
	"testing"
	"time"

	"vmand/vm"
)

// greets is the part of a fake QEMU that answers the QMP handshake on descriptor 3.
const greets = `echo '{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}' >&3
read line <&3
echo '{"return": {}, "id": 1}' >&3
read line <&3
echo '{"return": {}, "id": 2}' >&3
`

func TestBrokenKVMIsNotUsed(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(kvmDevice); err != nil {
		t.Logf("there is no %s: every case ends there", kvmDevice)
	}
	for name, c := range map[string]struct{ script, want string }{
		"it aborts":           {"echo 'failed to set MSR 0x10a' >&2; kill -ABRT $$", "failed to set MSR 0x10a"},
		"it hangs":            {"exec sleep 100", "did not start within"},
		"it aborts when run":  {greets + "echo 'KVM: entry failed' >&2; kill -ABRT $$", "KVM: entry failed"},
		"it hangs when run":   {greets + "exec sleep 100", "did not start within"},
		"it refuses to start": {"echo 'Could not access KVM kernel module: Permission denied' >&2; exit 1", "Permission denied"},
	} {
		d := newDriver(t, Options{})
		begin := time.Now()
		v := d.probeAccel(t.Context(), fakeTool(t, c.script), "host")
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		if _, err := os.Stat(kvmDevice); err != nil {
			c.want = "is not there"
		}
		if v.Accel != vm.TCG || !strings.Contains(v.Warning, c.want) {
			t.Errorf("%s: got %+v, want %q", name, v, c.want)
		}
	}
}

func TestAutoChoosesAnAcceleratorThatWorks(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{})
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

func TestAnExplicitAcceleratorIsNotProbed(t *testing.T) {
	needQEMU(t)
	d := newDriver(t, Options{Accel: "kvm"})
	if p, err := d.Platform(t.Context()); err != nil || p.Accel != vm.KVM || p.Warning != "" {
		t.Errorf("got %+v, %v", p, err)
	}
}
