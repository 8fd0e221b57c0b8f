package store

import (
	"reflect"
	"testing"

	"vmand/vm"
)

func TestASeedIsKeptWithItsVM(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v, w := makeVM(0), makeVM(1)
	full := vm.Seed{VMID: v.ID, Instance: 3, CloudInit: vm.CloudInit{Hostname: "web",
		SSHAuthorizedKeys: []string{"ssh-ed25519 AAAA a@b", ""},
		Users: []vm.CloudUser{{Name: "ann", SSHAuthorizedKeys: []string{"k"}, PasswordHash: "$6$x",
			Sudo: "ALL=(ALL) NOPASSWD:ALL", Groups: []string{"adm", "lp"}, Shell: "/bin/sh"}, {Name: "bo"}},
		PasswordHash: "$y$", UserData: "#cloud-config\n\"'<&>\u2028\x00", VendorData: "v", NetworkConfig: "version: 2\n"}}
	wantSeed := func(want vm.Seed) {
		t.Helper()
		if got, err := s.Seed(t.Context(), want.VMID); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("read %+v, %v; want %+v", got, err, want)
		}
	}
	apply(t, s, vm.Change{NewVM: &v, Seed: &full}) // in one change
	wantSeed(full)
	_, err := s.Seed(t.Context(), w.ID)
	if f := wantFault(t, err, vm.CodeNotFound); f.Detail != `cloud-init data of vm "vm-000001" not found` {
		t.Errorf("the detail is %q", f.Detail)
	}
	bare := vm.Seed{VMID: w.ID}
	f := wantFault(t, s.applyErr(t.Context(), vm.Change{Seed: &bare}), vm.CodeNotFound)
	if f.Detail != `vm "vm-000001" not found` {
		t.Errorf("the detail is %q", f.Detail)
	}
	apply(t, s, vm.Change{NewVM: &w})
	apply(t, s, vm.Change{Seed: &bare})
	wantSeed(bare)
	wantSeed(full)

	again := vm.Seed{VMID: v.ID, Instance: 4, CloudInit: vm.CloudInit{UserData: "u"}}
	apply(t, s, vm.Change{Seed: &again, VM: &vm.VMUpdate{From: v.State, VM: v}})
	wantSeed(again)
	wantFault(t, s.applyErr(t.Context(), vm.Change{Seed: &full, VM: &vm.VMUpdate{From: vm.Stopping, VM: v}}), vm.CodeBusy)
	wantSeed(again)

	// It is deleted with its VM and not inherited by a later VM with the id.
	apply(t, s, vm.Change{DeleteVM: v.ID})
	apply(t, s, vm.Change{NewVM: &v})
	_, err = s.Seed(t.Context(), v.ID)
	wantFault(t, err, vm.CodeNotFound)
	wantSeed(bare)
}
