package store

import (
	"errors"
	"reflect"
	"testing"

	"vmand/vm"
)

func TestTwoForwardsCannotListenOnOneHostPort(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	owner := makeVM(0)
	owner.Forwards = []vm.PortForward{makeForward("pf-all", vm.TCP, "0.0.0.0:80"),
		makeForward("pf-one", vm.TCP, "192.0.2.1:81")}
	apply(t, s, vm.Change{NewVM: &owner})
	other := makeVM(1)
	apply(t, s, vm.Change{NewVM: &other})
	for name, tt := range map[string]struct {
		forwards []vm.PortForward
		detail   string // empty: it is recorded
	}{
		"the same": {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.1:81")},
			"host port tcp 192.0.2.1:81 is in use by port forward pf-one of VM vm-000000"},
		"one of all": {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.9:80")},
			"host port tcp 192.0.2.9:80 is in use by port forward pf-all of VM vm-000000, which listens on 0.0.0.0"},
		"all and all": {[]vm.PortForward{makeForward("pf-x", vm.TCP, "0.0.0.0:80")},
			"host port tcp 0.0.0.0:80 is in use by port forward pf-all of VM vm-000000"},
		"all but for one": {[]vm.PortForward{makeForward("pf-x", vm.TCP, "0.0.0.0:81")},
			"host port tcp 0.0.0.0:81 is in use by port forward pf-one of VM vm-000000, which listens on 192.0.2.1"},
		"another protocol": {[]vm.PortForward{makeForward("pf-x", vm.UDP, "0.0.0.0:80")}, ""},
		"another port":     {[]vm.PortForward{makeForward("pf-x", vm.TCP, "0.0.0.0:82")}, ""},
		"another address":  {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.2:81")}, ""},
		"two of one VM's own": {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.2:90"),
			makeForward("pf-y", vm.TCP, "0.0.0.0:90")}, "pf-x of VM vm-000001, which listens on 192.0.2.2"},
		"two that go side by side": {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.2:90"),
			makeForward("pf-y", vm.TCP, "192.0.2.3:90")}, ""},
		"its own port on all of it": {[]vm.PortForward{makeForward("pf-x", vm.TCP, "0.0.0.0:90")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := other
			v.Forwards = tt.forwards
			err := s.applyErr(t.Context(), vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
			got := s.mustVM(t, v.ID)
			if tt.detail == "" {
				if err != nil || !reflect.DeepEqual(got.Forwards, tt.forwards) {
					t.Fatalf("%v, read %+v; want it recorded", err, got.Forwards)
				}
			} else if f := wantFault(t, err, vm.CodeInUse); len(f.Detail) < len(tt.detail) ||
				f.Detail[len(f.Detail)-len(tt.detail):] != tt.detail {
				t.Errorf("the detail is %q; want %q", f.Detail, tt.detail)
			}
			apply(t, s, vm.Change{VM: &vm.VMUpdate{From: other.State, VM: other}}) // remove it again
		})
	}
	// The ports of a deleted VM are free.
	apply(t, s, vm.Change{DeleteVM: owner.ID})
	other.Forwards = owner.Forwards
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: other.State, VM: other}})
	v := makeVM(2)
	v.Forwards = owner.Forwards[:1]
	wantFault(t, s.applyErr(t.Context(), vm.Change{NewVM: &v}), vm.CodeInUse)
	if _, err := s.VM(t.Context(), v.ID); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("the refused VM exists: %v", err)
	}
}
