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
	owner.Forwards = []vm.PortForward{makeForward("pf-all", vm.TCP, "0.0.0.0:80"), makeForward("pf-one", vm.TCP, "192.0.2.1:81")}
	ranged := func(id, listens string, ports int) vm.PortForward {
		f := makeForward(id, vm.TCP, listens)
		f.Ports = ports
		return f
	}
	owner.Forwards = append(owner.Forwards, ranged("pf-many", "192.0.2.1:2000", 1000), ranged("pf-six", "[::]:80", 1))
	apply(t, s, vm.Change{NewVM: &owner})
	other := makeVM(1)
	apply(t, s, vm.Change{NewVM: &other})
	for name, tt := range map[string]struct {
		forwards []vm.PortForward
		detail   string // empty: it is recorded
	}{
		"the same":                  {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.1:81")}, "host port tcp 192.0.2.1:81 is in use by port forward pf-one of VM vm-000000"},
		"one of all":                {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.9:80")}, "host port tcp 192.0.2.9:80 is in use by port forward pf-all of VM vm-000000, which listens on 0.0.0.0"},
		"all and all":               {[]vm.PortForward{makeForward("pf-x", vm.TCP, "0.0.0.0:80")}, "host port tcp 0.0.0.0:80 is in use by port forward pf-all of VM vm-000000"},
		"all but for one":           {[]vm.PortForward{makeForward("pf-x", vm.TCP, "0.0.0.0:81")}, "host port tcp 0.0.0.0:81 is in use by port forward pf-one of VM vm-000000, which listens on 192.0.2.1"},
		"another protocol":          {[]vm.PortForward{makeForward("pf-x", vm.UDP, "0.0.0.0:80")}, ""},
		"another port":              {[]vm.PortForward{makeForward("pf-x", vm.TCP, "0.0.0.0:82")}, ""},
		"another address":           {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.2:81")}, ""},
		"two of one VM's own":       {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.2:90"), makeForward("pf-y", vm.TCP, "0.0.0.0:90")}, "pf-x of VM vm-000001, which listens on 192.0.2.2"},
		"two that go side by side":  {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.2:90"), makeForward("pf-y", vm.TCP, "192.0.2.3:90")}, ""},
		"its own port on all of it": {[]vm.PortForward{makeForward("pf-x", vm.TCP, "0.0.0.0:90")}, ""},
		"the end of a range":        {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.1:2999")}, "host port tcp 192.0.2.1:2999 is in use by port forward pf-many of VM vm-000000"},
		"past the end of a range":   {[]vm.PortForward{makeForward("pf-x", vm.TCP, "192.0.2.1:3000")}, ""},
		"a range that runs into it": {[]vm.PortForward{ranged("pf-x", "0.0.0.0:1001", 1000)}, "host port tcp 0.0.0.0:2000 is in use by port forward pf-many of VM vm-000000, which listens on 192.0.2.1"},
		"a range that ends before":  {[]vm.PortForward{ranged("pf-x", "0.0.0.0:1000", 1000)}, ""},
		"a range with a port in it": {[]vm.PortForward{ranged("pf-x", "0.0.0.0:70", 11)}, "host port tcp 0.0.0.0:80 is in use by port forward pf-all of VM vm-000000"},
		"two ranges of one VM":      {[]vm.PortForward{ranged("pf-x", "0.0.0.0:4000", 10), ranged("pf-y", "0.0.0.0:4009", 10)}, "host port tcp 0.0.0.0:4009 is in use by port forward pf-x of VM vm-000001"},
		"ranges side by side":       {[]vm.PortForward{ranged("pf-x", "0.0.0.0:4000", 10), ranged("pf-y", "0.0.0.0:4010", 10)}, ""},
		"IPv6 beside IPv4":          {[]vm.PortForward{makeForward("pf-x", vm.TCP, "[2001:db8::1]:81")}, ""},
		"every IPv6 beside IPv4":    {[]vm.PortForward{makeForward("pf-x", vm.TCP, "[::]:81")}, ""},
		"one IPv6 of all":           {[]vm.PortForward{makeForward("pf-x", vm.TCP, "[2001:db8::1]:80")}, "host port tcp [2001:db8::1]:80 is in use by port forward pf-six of VM vm-000000, which listens on ::"},
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
			} else if f := wantFault(t, err, vm.CodeInUse); len(f.Detail) < len(tt.detail) || f.Detail[len(f.Detail)-len(tt.detail):] != tt.detail {
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
