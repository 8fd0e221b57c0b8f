package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"vmand/vm"
)

func TestAnUpdateReplacesAllMutableFields(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	apply(t, s, vm.Change{NewVM: &v})
	before, err := s.VM(t.Context(), v.ID)
	must(t, err)

	u := vm.VM{ID: v.ID, UUID: "other", Template: vm.Template{Name: "other", CPUCount: 9, RAMMiB: 9}, State: vm.Paused, Reason: vm.ReasonIOError,
		ReasonDetail: "disk", Desired: vm.DesiredStopped, Root: vm.DiskFile{SizeMiB: 77}, CreatedAt: at.AddDate(1, 0, 0), Revision: 99, Seq: 99,
		Description: "d", Labels: map[string]string{"a": "b"}, Restart: vm.RestartAlways, Restarts: 1, RestartAt: at, Autostart: vm.Autostart{Order: 1}, BootDevice: vm.BootNetwork}
	apply(t, s, vm.Change{VM: &vm.VMUpdate{From: vm.Running, VM: u}})
	got, err := s.VM(t.Context(), v.ID)
	must(t, err)
	want := u
	want.Seq, want.UUID, want.Template, want.CreatedAt, want.Revision = before.Seq, v.UUID, v.Template, v.CreatedAt, 2
	want.UpdatedAt = got.UpdatedAt
	if !reflect.DeepEqual(got, want) || got.UpdatedAt.Before(before.UpdatedAt) {
		t.Errorf("after the update: %+v; want %+v", got, want)
	}

	d := makeDisk("d")
	apply(t, s, vm.Change{NewDisk: &d})
	d.MountPoint, d.State, d.Reason, d.VMID = "/dev/vdb", vm.DiskAttaching, "why", v.ID
	d.DiskFile = madeOf("debian", someSum)
	apply(t, s, vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskAvailable, Disk: d}}})
	gotDisk, err := s.Disk(t.Context(), "d")
	must(t, err)
	d.Seq, d.Revision, d.UpdatedAt = 1, 2, gotDisk.UpdatedAt
	if gotDisk != d {
		t.Errorf("after the update: %+v; want %+v", gotDisk, d)
	}
}

func TestARefusedChangeWritesNothing(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v, w := makeVM(1), makeVM(2)
	d, e := makeDisk("d"), makeDisk("e")
	e.State, e.VMID, e.MountPoint = vm.DiskAttached, v.ID, "/dev/sdb"
	apply(t, s, vm.Change{NewVM: &v, NewDisk: &d})
	apply(t, s, vm.Change{NewDisk: &e})
	orphan, homeless, second, rival := w, makeDisk("h"), d, makeDisk("r")
	orphan.Template.Name = "none"
	homeless.VMID = "none"
	second.State, second.VMID, second.MountPoint = vm.DiskAttached, v.ID, "/dev/xvdb" // the slot of e, spelled differently
	rival.VMID, rival.MountPoint = v.ID, "/dev/vdb"
	strange := w
	strange.State = "flying"
	wilful := w
	wilful.Restart = "sometimes"
	stray := d
	stray.VMID = "none"

	for name, tt := range map[string]struct {
		change vm.Change
		code   vm.Code // empty: a defect
		detail string
	}{
		"a VM that is there":              {vm.Change{NewVM: &v}, vm.CodeExists, `VM vm-000001 already exists`},
		"a VM of no template":             {vm.Change{NewVM: &orphan}, vm.CodeNotFound, `template none not found`},
		"a VM of no known state":          {vm.Change{NewVM: &strange}, "", "CHECK constraint failed"},
		"a VM in another state":           {vm.Change{VM: &vm.VMUpdate{From: vm.Stopped, VM: v}}, vm.CodeBusy, "VM vm-000001 is no longer stopped"},
		"an update of a deleted VM":       {vm.Change{VM: &vm.VMUpdate{From: vm.Running, VM: w}}, vm.CodeBusy, "VM vm-000002 is no longer running"},
		"a VM with a disk is deleted":     {vm.Change{DeleteVM: v.ID}, vm.CodeInUse, "still has data disks"},
		"no VM is deleted":                {vm.Change{DeleteVM: "none"}, vm.CodeNotFound, `VM none not found`},
		"a disk that is there":            {vm.Change{NewDisk: &d}, vm.CodeExists, `disk d already exists`},
		"a disk of no VM":                 {vm.Change{NewDisk: &homeless}, vm.CodeNotFound, `VM none not found`},
		"a new disk in a taken slot":      {vm.Change{NewDisk: &rival}, vm.CodeInUse, "mount point /dev/vdb of VM vm-000001 is in use"},
		"a disk in another state":         {vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskError, Disk: d}}}, vm.CodeBusy, "disk d is no longer error"},
		"a disk to no VM":                 {vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskAvailable, Disk: stray}}}, vm.CodeNotFound, `VM none not found`},
		"a disk to a taken slot":          {vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskAvailable, Disk: second}}}, vm.CodeInUse, "mount point /dev/xvdb"},
		"an existing template":            {vm.Change{NewTemplate: &vm.Template{Name: "small", CPUCount: 1, RAMMiB: 1}}, vm.CodeExists, `template small already exists`},
		"a template in use":               {vm.Change{DeleteTemplate: "small"}, vm.CodeInUse, `template small is in use by 1 VM(s)`},
		"no template is deleted":          {vm.Change{DeleteTemplate: "none"}, vm.CodeNotFound, `template none not found`},
		"a VM of no known policy":         {vm.Change{NewVM: &wilful}, "", "CHECK constraint failed"},
		"an event that is not JSON":       {vm.Change{Events: []vm.Event{{Type: "vm.state", Data: json.RawMessage("{")}}}, "", "CHECK constraint failed"},
		"no disk is deleted":              {vm.Change{DeleteDisk: "none"}, vm.CodeNotFound, `disk none not found`},
		"the last of several has changed": {vm.Change{NewDisk: &homeless, Disks: []vm.DiskUpdate{{From: vm.DiskAvailable, Disk: d}}}, vm.CodeNotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			tt.change.Operation = &vm.Operation{ID: name, Kind: vm.VMCreate, Resource: vm.VMResource("a"), State: vm.OpRunning}
			tt.change.Events = append([]vm.Event{vm.NewEvent("vm.created", vm.VMResource("a"), struct{}{})}, tt.change.Events...)
			err := s.applyErr(t.Context(), tt.change)
			if err == nil || !strings.Contains(err.Error(), tt.detail) {
				t.Fatalf("got %v; want %q in it", err, tt.detail)
			}
			if tt.code != "" {
				wantFault(t, err, tt.code)
			} else if errors.As(err, new(*vm.Fault)) {
				t.Errorf("got the fault %v; want an error of no class", err)
			}
			if _, err := s.Operation(t.Context(), name); !errors.Is(err, vm.ErrNotFound) {
				t.Errorf("the operation of the refused change: %v; want it not recorded", err)
			}
		})
	}
	if got, err := s.VM(t.Context(), v.ID); err != nil || got.Revision != 1 {
		t.Errorf("the VM is at revision %d, %v; want it unchanged", got.Revision, err)
	}
	if events, err := s.Events(t.Context(), vm.EventFilter{}, vm.Page{}); err != nil || len(events) != 0 {
		t.Errorf("events of the refused change: %+v, %v; want none", events, err)
	}
}

func TestOneChangeDetachesDisksAndDeletesTheirVM(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	var off []vm.DiskUpdate
	c := vm.Change{NewVM: &v}
	for _, letter := range "bcd" {
		d := makeDisk(string(letter))
		d.State, d.VMID, d.MountPoint = vm.DiskAttached, v.ID, "/dev/sd"+string(letter)
		c.NewDisk = &d
		apply(t, s, c)
		c.NewVM = nil
		d.State, d.VMID, d.MountPoint = vm.DiskAvailable, "", ""
		off = append(off, vm.DiskUpdate{From: vm.DiskAttached, Disk: d})
	}
	op := vm.Operation{ID: "op", Kind: vm.VMDelete, Resource: vm.VMResource(v.ID), State: vm.OpSucceeded}
	apply(t, s, vm.Change{Operation: &op, Disks: off, DeleteVM: v.ID})
	if _, err := s.VM(t.Context(), v.ID); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("the VM still exists: %v", err)
	}
	free, err := s.Disks(t.Context(), vm.DiskFilter{State: vm.DiskAvailable}, vm.Page{})
	if err != nil || len(free) != 3 || free[0].VMID != "" || free[0].MountPoint != "" {
		t.Errorf("the disks are %+v, %v; want three available ones", free, err)
	}
}

func TestADiskGetsTheSlotOfADiskDetachedBeforeIt(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	apply(t, s, vm.Change{NewVM: &v})
	d, e := makeDisk("d"), makeDisk("e")
	d.State, d.VMID, d.MountPoint = vm.DiskAttached, v.ID, "/dev/sdb"
	apply(t, s, vm.Change{NewDisk: &d})
	apply(t, s, vm.Change{NewDisk: &e})
	e.State, e.VMID, e.MountPoint = d.State, d.VMID, d.MountPoint
	d.State, d.VMID, d.MountPoint = vm.DiskAvailable, "", "/dev/sdb" // still requested
	apply(t, s, vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskAttached, Disk: d}, {From: vm.DiskAvailable, Disk: e}}})
	if got, err := s.Disk(t.Context(), "e"); err != nil || got.VMID != v.ID {
		t.Errorf("the second disk is %+v, %v; want it on the VM", got, err)
	}
}

func TestOneOfManyConcurrentUpdatesSucceeds(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	v.State = vm.Stopped
	apply(t, s, vm.Change{NewVM: &v})
	const clients, rounds = 64, 10
	for round := range rounds {
		from, to := vm.Stopped, vm.Starting
		if round%2 == 1 {
			from, to = to, from
		}
		var won atomic.Int32
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() {
				u := v
				u.State, u.ReasonDetail = to, fmt.Sprint(i)
				err := s.applyErr(t.Context(), vm.Change{VM: &vm.VMUpdate{From: from, VM: u},
					Operation: &vm.Operation{ID: fmt.Sprint(round, i), Kind: vm.VMStart, Resource: vm.VMResource("a"), State: vm.OpRunning}})
				switch {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, vm.ErrBusy):
					t.Errorf("a refused caller got %v; want a fault of class busy", err)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d of %d changed the state from %s; want one", won.Load(), clients, from)
		}
	}
	got, err := s.VM(t.Context(), v.ID)
	if err != nil || got.Revision != rounds+1 {
		t.Errorf("the VM is at revision %d, %v; want %d", got.Revision, err, rounds+1)
	}
	if ops, err := s.Operations(t.Context(), vm.OperationFilter{}, vm.Page{}); err != nil || len(ops) != rounds {
		t.Errorf("%d operations are recorded, %v; want the %d that succeeded", len(ops), err, rounds)
	}
}

func TestReadersAndWritersDoNotDisturbEachOther(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			v := makeVM(i)
			must := func(err error) {
				if err != nil {
					t.Error(err)
				}
			}
			must(s.applyErr(ctx, vm.Change{NewVM: &v}))
			for n := range 5 {
				got, err := s.VM(ctx, v.ID)
				must(err)
				if got.Revision != int64(n+1) {
					t.Errorf("read revision %d just after %d was written", got.Revision, n+1)
				}
				must(s.applyErr(ctx, vm.Change{VM: &vm.VMUpdate{From: vm.Running, VM: got}}))
				_, err = s.VMs(ctx, vm.VMFilter{State: vm.Running}, vm.Page{})
				must(err)
			}
			must(s.applyErr(ctx, vm.Change{DeleteVM: v.ID}))
		})
	}
	all.Wait()
}

func TestApplyReturnsTheRowsItWrote(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeNetwork(t, s, "lan")
	// wantApplied checks that each row in done is the one that is read now.
	wantApplied := func(done, want vm.Applied) {
		t.Helper()
		read := func(err error) { t.Helper(); must(t, err) }
		var err error
		if want.Template != nil {
			*want.Template, err = s.Template(t.Context(), want.Template.Name)
			read(err)
		}
		if want.VM != nil {
			*want.VM, err = s.VM(t.Context(), want.VM.ID)
			read(err)
		}
		for i := range want.Disks {
			want.Disks[i], err = s.Disk(t.Context(), want.Disks[i].ID)
			read(err)
		}
		if want.Image != nil {
			*want.Image, err = s.Image(t.Context(), want.Image.Name)
			read(err)
		}
		if want.Network != nil {
			*want.Network, err = s.Network(t.Context(), want.Network.Name)
			read(err)
		}
		for i := range want.Learned {
			want.Learned[i], err = s.VM(t.Context(), want.Learned[i].ID)
			read(err)
		}
		if !reflect.DeepEqual(done, want) {
			t.Errorf("applied %+v; want %+v", done, want)
		}
	}

	v, d, e, i, n := makeVM(1), makeDisk("d"), makeDisk("e"), fullImage(), fullNetwork()
	v.NICs, v.Labels = []vm.NIC{makeNIC(0, "lan", "10.0.0.7")}, map[string]string{"a": "b"}
	big := vm.Template{Name: "big", CPUCount: 8, RAMMiB: 8}
	done := apply(t, s, vm.Change{NewTemplate: &big, NewVM: &v, NewDisk: &d, NewImage: &i, NewNetwork: &n})
	wantApplied(done, vm.Applied{Template: &big, VM: &vm.VM{ID: v.ID}, Disks: []vm.Disk{d}, Image: &i, Network: &n})
	if done.VM.Seq != 1 || done.VM.Revision != 1 || done.VM.UpdatedAt.IsZero() {
		t.Errorf("applied %+v; want the fields that the store sets", done.VM)
	}
	done.VM.NICs[0].Network = "changed"
	if v.NICs[0].Network != "lan" || s.mustVM(t, v.ID).NICs[0].Network != "lan" {
		t.Error("the applied VM shares its NICs with the change or with readers")
	}

	// An update keeps what never changes, and Learned counts as well.
	apply(t, s, vm.Change{NewDisk: &e})
	u := v
	u.UUID, u.Description = "other", "changed"
	known := []vm.LearnedAddress{{IP: netip.MustParseAddr("10.0.0.9"), Source: vm.SourceNeighbour, At: at}}
	done = apply(t, s, vm.Change{
		VM:      &vm.VMUpdate{From: v.State, VM: u},
		Disks:   []vm.DiskUpdate{{From: e.State, Disk: e}, {From: d.State, Disk: d}},
		Image:   &vm.ImageUpdate{From: vm.ImageError, Image: i},
		Network: &n,
		Learned: []vm.Learned{{VMID: "gone"}, {VMID: v.ID, Addresses: &known}},
	})
	wantApplied(done, vm.Applied{VM: &vm.VM{ID: v.ID}, Disks: []vm.Disk{e, d}, Image: &i, Network: &n, Learned: []vm.VM{{ID: v.ID}}})
	if done.VM.UUID != v.UUID || done.VM.Revision != 3 || len(done.VM.Learned) != 1 {
		t.Errorf("applied %+v; want UUID %s, revision 3 and the learned facts", done.VM, v.UUID)
	}

	// A row that the change deletes is not returned, nor is a VM of which nothing new
	// was learned.
	off := vm.DiskUpdate{From: d.State, Disk: d}
	done = apply(t, s, vm.Change{Disks: []vm.DiskUpdate{off}, DeleteDisk: d.ID, VM: &vm.VMUpdate{From: v.State, VM: u}, DeleteVM: v.ID})
	wantApplied(done, vm.Applied{})
	wantApplied(apply(t, s, vm.Change{Learned: []vm.Learned{{VMID: v.ID, Addresses: &known}}}), vm.Applied{})
	done, err := s.Apply(t.Context(), vm.Change{NewDisk: &d, NewTemplate: &big})
	if err == nil || !reflect.DeepEqual(done, vm.Applied{}) {
		t.Errorf("a refused change: applied %+v, %v; want only an error", done, err)
	}
}
