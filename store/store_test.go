package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vmand/vm"
)

// at is a time with the precision of the store.
var at = time.Date(2025, 3, 4, 5, 6, 7, 89_000_000, time.UTC)

// open returns a new store that is closed at the end of the test.
func open(t testing.TB) *Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "vman.db"))
}

func openAt(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Path: path})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantFault fails the test unless err is a fault with a code. It returns the fault.
func wantFault(t testing.TB, err error, code vm.Code) *vm.Fault {
	t.Helper()
	var f *vm.Fault
	if !errors.As(err, &f) || f.Code != code {
		t.Fatalf("got error %v; want a fault of code %s", err, code)
	}
	return f
}

func makeVM(i int) vm.VM {
	return vm.VM{ID: fmt.Sprintf("vm-%06d", i), UUID: fmt.Sprintf("0190a5b2-7d1e-7cc3-98a4-%012d", i),
		Template: vm.Template{Name: "small", CPUCount: 2, RAMMiB: 2048}, State: vm.Running, Reason: vm.ReasonRequested,
		Desired: vm.DesiredRunning, Root: vm.DiskFile{SizeMiB: 10240, Base: "/var/lib/vman/images/debian-12.qcow2", BaseFormat: "qcow2"},
		Machine: "pc-q35-7.2", Accel: vm.KVM, CreatedAt: at, StartedAt: at.Add(time.Minute), Restart: vm.RestartNever}
}

func makeDisk(id string) vm.Disk {
	return vm.Disk{ID: id, DiskFile: vm.DiskFile{SizeMiB: 1024}, State: vm.DiskAvailable, CreatedAt: at}
}

func makeTemplate(t testing.TB, s *Store, name string) {
	t.Helper()
	apply(t, s, vm.Change{NewTemplate: &vm.Template{Name: name, CPUCount: 2, RAMMiB: 2048, CreatedAt: at}})
}

func apply(t testing.TB, s *Store, c vm.Change) vm.Applied {
	t.Helper()
	done, err := s.Apply(context.Background(), c)
	must(t, err)
	return done
}

// applyErr is [Store.Apply] that returns only the error.
func (s *Store) applyErr(ctx context.Context, c vm.Change) error {
	_, err := s.Apply(ctx, c)
	return err
}

func TestEveryFieldOfATemplateComesBack(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	want := vm.Template{Seq: 1, Name: "small", CPUCount: 2, RAMMiB: 2048, CreatedAt: at}
	got, err := s.Template(t.Context(), "small")
	if err != nil || got != want {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
	apply(t, s, vm.Change{NewTemplate: &vm.Template{Name: "dated", CPUCount: 1, RAMMiB: 1}})
	now, err := s.Template(t.Context(), "dated")
	if err != nil || time.Since(now.CreatedAt) > time.Minute || now.CreatedAt.Location() != time.UTC {
		t.Errorf("a template without a time got %v, %v; want now, in UTC", now.CreatedAt, err)
	}
	list, err := s.Templates(t.Context(), vm.Page{})
	if err != nil || !reflect.DeepEqual(list, []vm.Template{want, now}) {
		t.Errorf("listed %+v, %v", list, err)
	}
}

func TestTemplatesAreUniqueAndKeptWhileInUse(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	wantFault(t, s.applyErr(t.Context(), vm.Change{NewTemplate: &vm.Template{Name: "small", CPUCount: 1, RAMMiB: 1}}), vm.CodeExists)
	forget := vm.Change{DeleteTemplate: "small"}

	v, w := makeVM(1), makeVM(2)
	apply(t, s, vm.Change{NewVM: &v})
	apply(t, s, vm.Change{NewVM: &w})
	if f := wantFault(t, s.applyErr(t.Context(), forget), vm.CodeInUse); !strings.Contains(f.Detail, "in use by 2 VM(s)") {
		t.Errorf("the detail is %q; want the number of VMs in it", f.Detail)
	}
	apply(t, s, vm.Change{DeleteVM: v.ID})
	apply(t, s, vm.Change{DeleteVM: w.ID, DeleteTemplate: "small"})
	wantFault(t, s.applyErr(t.Context(), forget), vm.CodeNotFound)
	_, err := s.Template(t.Context(), "small")
	wantFault(t, err, vm.CodeNotFound)
}

func TestEveryFieldOfAVMComesBack(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	full := makeVM(1)
	full.ReasonDetail, full.Description = "QEMU's last words", "two\nlines"
	full.Labels = map[string]string{"tier": "web", "empty": ""}
	full.Restart, full.Restarts, full.RestartAt = vm.RestartOnFailure, 3, at.Add(time.Hour)
	full.Autostart = vm.Autostart{Enabled: true, Order: 7, Delay: 90 * time.Second}
	bare := vm.VM{ID: "bare", UUID: "u", Template: full.Template, State: vm.Stopped, Reason: vm.ReasonCreated, Desired: vm.DesiredStopped, CreatedAt: at,
		Restart: vm.RestartNever}
	for seq, v := range []vm.VM{full, bare} {
		apply(t, s, vm.Change{NewVM: &v})
		got, err := s.VM(t.Context(), v.ID)
		must(t, err)
		if time.Since(got.UpdatedAt) > time.Minute {
			t.Errorf("updated_at is %v; want now", got.UpdatedAt)
		}
		v.Seq, v.Revision, v.UpdatedAt = int64(seq+1), 1, got.UpdatedAt
		if !reflect.DeepEqual(got, v) {
			t.Errorf("read %+v; want %+v", got, v)
		}
		list, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{After: int64(seq)})
		if err != nil || len(list) != 1 || !reflect.DeepEqual(list[0], v) {
			t.Errorf("listed %+v, %v; want %+v", list, err, v)
		}
	}
	_, err := s.VM(t.Context(), "none")
	if f := wantFault(t, err, vm.CodeNotFound); !strings.Contains(f.Detail, `VM none not found`) {
		t.Errorf("the detail %q does not name the VM", f.Detail)
	}
}

func TestEveryFieldOfADiskComesBack(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	apply(t, s, vm.Change{NewVM: &v})
	for seq, d := range []vm.Disk{
		{ID: "full", DiskFile: vm.DiskFile{SizeMiB: 16 << 20, Image: "debian", Base: vm.ContentBase(someSum), BaseFormat: "qcow2"}, MountPoint: "/dev/vdc", State: vm.DiskDetaching, Reason: "the guest is mute", VMID: v.ID, CreatedAt: at},
		makeDisk("bare"),
	} {
		apply(t, s, vm.Change{NewDisk: &d})
		got, err := s.Disk(t.Context(), d.ID)
		must(t, err)
		d.Seq, d.Revision, d.UpdatedAt = int64(seq+1), 1, got.UpdatedAt
		if got != d {
			t.Errorf("read %+v; want %+v", got, d)
		}
	}
	_, err := s.Disk(t.Context(), "none")
	wantFault(t, err, vm.CodeNotFound)
}

func TestEveryFieldOfAnOperationComesBack(t *testing.T) {
	s := open(t)
	percent, slot := 40, 0
	full := vm.Operation{ID: "op-1", Kind: vm.VMStart, Resource: vm.VMResource("a"),
		Target: vm.Target{NIC: &slot, Forward: "pf-1", CDROM: "cd-1", Content: someSum, Recorded: true},
		State:  vm.OpFailed, Step: "launch", Progress: &percent,
		Problem: &vm.Problem{Code: vm.CodeOperationFailed, Detail: `it said "no"`, Hint: "ask again"}, RequestedBy: "token:admin", RequestID: "r1",
		CreatedAt: at, StartedAt: at.Add(time.Second), FinishedAt: at.Add(time.Minute),
		Log: []vm.LogLine{{At: at, Step: "launch", Message: "line\nwith <&> \u2028"}}, Key: "k'1", Fingerprint: "sha256:0"}
	bare := vm.Operation{ID: "op-2", Kind: vm.DiskCreate, Resource: vm.DiskResource("d"), State: vm.OpPending, CreatedAt: at, Log: []vm.LogLine{}}
	for seq, o := range []vm.Operation{full, bare} {
		apply(t, s, vm.Change{Operation: &o})
		got, err := s.Operation(t.Context(), o.ID)
		must(t, err)
		o.Seq = int64(seq + 1)
		if !reflect.DeepEqual(got, o) {
			t.Errorf("read %+v; want %+v", got, o)
		}
	}
	_, err := s.Operation(t.Context(), "none")
	wantFault(t, err, vm.CodeNotFound)

	var whole bool
	must(t, s.reader.Get(&whole, `SELECT target IS NULL FROM operations WHERE id = 'op-2'`))
	if !whole {
		t.Error("the target of an operation on a whole resource is not NULL")
	}
	full.Target = vm.Target{CDROM: "cd-2"}
	apply(t, s, vm.Change{Operation: &full})
	if got, err := s.Operation(t.Context(), "op-1"); err != nil || got.Target != full.Target {
		t.Errorf("read target %+v, %v; want %+v", got.Target, err, full.Target)
	}
}

func TestAnOperationIsReplacedUnderItsID(t *testing.T) {
	s := open(t)
	o := vm.Operation{ID: "a", Kind: vm.VMStart, Resource: vm.VMResource("a"), State: vm.OpPending}
	apply(t, s, vm.Change{Operation: &o})
	first, err := s.Operation(t.Context(), "a")
	must(t, err)
	for _, state := range []vm.OpState{vm.OpRunning, vm.OpSucceeded} {
		o.State, o.FinishedAt = state, at
		apply(t, s, vm.Change{Operation: &o})
	}
	got, err := s.Operation(t.Context(), "a")
	must(t, err)
	if got.State != vm.OpSucceeded || !got.FinishedAt.Equal(at) || got.Seq != first.Seq || !got.CreatedAt.Equal(first.CreatedAt) {
		t.Errorf("read %+v; want the last state with the number and creation time of the first, %+v", got, first)
	}
	next := vm.Operation{ID: "b", Kind: vm.VMStart, Resource: vm.VMResource("a"), State: vm.OpPending}
	apply(t, s, vm.Change{Operation: &next})
	if got, err := s.Operation(t.Context(), "b"); err != nil || got.Seq != first.Seq+1 {
		t.Errorf("the next operation is number %d, %v; want %d", got.Seq, err, first.Seq+1)
	}
}

func TestOldOperationsArePruned(t *testing.T) {
	t.Parallel()
	s := open(t)
	over := []vm.OpState{vm.OpSucceeded, vm.OpFailed, vm.OpCancelled}
	const old = pruneBatch + 7 // more than one transaction deletes
	for i := range old {
		apply(t, s, vm.Change{Operation: &vm.Operation{ID: fmt.Sprint(i), Kind: vm.VMStart, Resource: vm.VMResource("a"), State: over[i%3], FinishedAt: at}})
	}
	open := vm.Operation{ID: "open", Kind: vm.VMStart, Resource: vm.VMResource("a"), State: vm.OpRunning, CreatedAt: at.Add(-time.Hour)}
	apply(t, s, vm.Change{Operation: &open})
	recent := vm.Operation{ID: "recent", Kind: vm.VMStart, Resource: vm.VMResource("a"), State: vm.OpFailed, FinishedAt: at.Add(time.Second)}
	apply(t, s, vm.Change{Operation: &recent})

	if n, err := s.PruneOperations(t.Context(), at); n != 0 || err != nil {
		t.Errorf("pruned %d, %v; want none that ended at the given time", n, err)
	}
	if n, err := s.PruneOperations(t.Context(), at.Add(time.Second)); n != old || err != nil {
		t.Errorf("pruned %d, %v; want %d", n, err, old)
	}
	left, err := s.Operations(t.Context(), vm.OperationFilter{}, vm.Page{})
	if err != nil || len(left) != 2 || left[0].ID != "open" || left[1].ID != "recent" {
		t.Errorf("%+v, %v are left; want the open one and the recent one", left, err)
	}
}

func TestTokensAreReplacedByName(t *testing.T) {
	s := open(t)
	b := vm.Token{Name: "b", Role: vm.RoleAdmin, Hash: [32]byte{1, 2, 3}, CreatedAt: at}
	a := vm.Token{Name: "a", Role: vm.RoleAdmin, Hash: [32]byte{0, 255}, CreatedAt: at}
	must(t, s.PutToken(t.Context(), vm.Token{Name: "b", Role: "viewer", Hash: [32]byte{9}}))
	must(t, s.PutToken(t.Context(), b))
	must(t, s.PutToken(t.Context(), a))
	got, err := s.Tokens(t.Context())
	if err != nil || !reflect.DeepEqual(got, []vm.Token{a, b}) {
		t.Errorf("read %+v, %v; want %+v", got, err, []vm.Token{a, b})
	}
}

func TestListsArePagedInOrderOfCreation(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	for i := range 25 {
		v := makeVM(100 - i) // so that no other order gives the same result
		apply(t, s, vm.Change{NewVM: &v})
	}
	apply(t, s, vm.Change{DeleteVM: makeVM(90).ID})
	var got []string
	p := vm.Page{Limit: 7}
	for {
		list, err := s.VMs(t.Context(), vm.VMFilter{}, p)
		must(t, err)
		for _, v := range list {
			got = append(got, v.ID)
			p.After = v.Seq
		}
		if len(list) < p.Limit {
			break
		}
	}
	var want []string
	for i := range 25 {
		if i != 10 {
			want = append(want, makeVM(100-i).ID)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("paged through %q; want %q", got, want)
	}
	if list, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{After: math.MaxInt64, Limit: 7}); err != nil || list == nil || len(list) != 0 {
		t.Errorf("after the last VM: %v, %v; want an empty list", list, err)
	}
	if list, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{Limit: math.MaxInt}); err != nil || len(list) != 24 {
		t.Errorf("the longest page has %d, %v; want 24", len(list), err)
	}
}

func TestFiltersSelect(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	makeTemplate(t, s, "big")
	for i, state := range []vm.State{vm.Running, vm.Stopped, vm.Running} {
		v := makeVM(i)
		v.State = state
		if i == 2 {
			v.Template.Name = "big"
		}
		apply(t, s, vm.Change{NewVM: &v})
	}
	for f, want := range map[vm.VMFilter]int{{}: 3, {State: vm.Running}: 2, {State: vm.Paused}: 0, {Template: "big"}: 1, {State: vm.Stopped, Template: "big"}: 0,
		{Active: true}: 2, {Active: true, State: vm.Stopped}: 0, {Active: true, Template: "big"}: 1, {Autostart: true}: 0} {
		if list, err := s.VMs(t.Context(), f, vm.Page{}); err != nil || len(list) != want {
			t.Errorf("%+v selects %d, %v; want %d", f, len(list), err, want)
		}
	}
	d, e := makeDisk("d"), makeDisk("e")
	e.State, e.VMID, e.MountPoint = vm.DiskAttached, makeVM(1).ID, "/dev/sdb"
	apply(t, s, vm.Change{NewDisk: &d})
	apply(t, s, vm.Change{NewDisk: &e})
	for f, want := range map[vm.DiskFilter]int{{}: 2, {State: vm.DiskAttached}: 1, {VMID: e.VMID}: 1, {VMID: "x"}: 0, {State: vm.DiskAvailable, VMID: e.VMID}: 0} {
		if list, err := s.Disks(t.Context(), f, vm.Page{}); err != nil || len(list) != want {
			t.Errorf("%+v selects %d, %v; want %d", f, len(list), err, want)
		}
	}
	for i, state := range []vm.OpState{vm.OpPending, vm.OpRunning, vm.OpSucceeded, vm.OpFailed, vm.OpCancelled} {
		kind, resource := vm.VMStart, vm.VMResource("a")
		if i%2 == 1 {
			kind, resource = vm.VMStop, vm.VMResource("b")
		}
		apply(t, s, vm.Change{Operation: &vm.Operation{ID: fmt.Sprint(i), Kind: kind, Resource: resource, State: state}})
	}
	for f, want := range map[vm.OperationFilter]int{{}: 5, {Open: true}: 2, {Open: true, Resource: vm.VMResource("b")}: 1, {Kind: vm.VMStart}: 3,
		{State: vm.OpFailed}: 1, {State: vm.OpFailed, Open: true}: 0, {Resource: vm.VMResource("b"), Kind: vm.VMStop}: 2} {
		if list, err := s.Operations(t.Context(), f, vm.Page{}); err != nil || len(list) != want {
			t.Errorf("%+v selects %d, %v; want %d", f, len(list), err, want)
		}
	}
}

func TestActiveAndAutostartVMsAreSelected(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	var want []vm.VMSummary
	states := []vm.State{vm.Stopped, vm.Starting, vm.Running, vm.Paused, vm.Stopping, vm.Errored, vm.Stopped, vm.Stopped,
		vm.Stopped, vm.Stopped}
	makeNetwork(t, s, "attaching")
	for i, state := range states {
		v := makeVM(i)
		v.State = state
		if i >= 8 { // a NIC of the first is detaching
			v.NICs = []vm.NIC{makeNIC(0, "attaching", fmt.Sprintf("10.0.0.%d", i))}
			v.NICs[0].State = map[int]vm.NICState{8: vm.NICDetaching, 9: vm.NICAttached}[i]
		}
		if i == 6 || i == 7 { // the first has a restart due, the second had some
			v.Restart, v.Restarts, v.Autostart.Enabled = vm.RestartAlways, 3, true
		}
		if i == 6 {
			v.RestartAt, v.Desired = at, vm.DesiredStopped
		}
		apply(t, s, vm.Change{NewVM: &v})
		want = append(want, vm.VMSummary{Seq: int64(i + 1), ID: v.ID, State: state, Reason: v.Reason, Revision: 1})
	}
	for _, tt := range []struct {
		filter vm.VMFilter
		page   vm.Page
		want   []vm.VMSummary
	}{
		{vm.VMFilter{}, vm.Page{}, want},
		{vm.VMFilter{}, vm.Page{After: 2, Limit: 3}, want[2:5]},
		{vm.VMFilter{Active: true}, vm.Page{}, slices.Concat(want[1:7], want[8:9])},
		{vm.VMFilter{Active: true}, vm.Page{After: 5, Limit: 2}, want[5:7]},
		{vm.VMFilter{Active: true, State: vm.Stopped}, vm.Page{}, []vm.VMSummary{want[6], want[8]}},
		{vm.VMFilter{Autostart: true}, vm.Page{}, want[7:8]},
		{vm.VMFilter{Autostart: true, Active: true}, vm.Page{}, []vm.VMSummary{}},
	} {
		got, err := s.VMSummaries(t.Context(), tt.filter, tt.page)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%+v %+v: %+v, %v; want %+v", tt.filter, tt.page, got, err, tt.want)
		}
		whole, err := s.VMs(t.Context(), tt.filter, tt.page)
		must(t, err)
		ids := []string{}
		for _, v := range whole {
			ids = append(ids, v.ID)
		}
		for i, w := range tt.want {
			if len(ids) != len(tt.want) || ids[i] != w.ID {
				t.Errorf("%+v %+v: VMs %q; want the same as in brief", tt.filter, tt.page, ids)
			}
		}
	}
}

func TestListsReadNoMoreThanTheyReturn(t *testing.T) {
	s := open(t)
	where := func(table, condition string) selection {
		q := from(table)
		q.only(condition != "", condition)
		return q
	}
	for _, tt := range []struct {
		query selection
		plan  string
	}{
		{where("vms", ""), "USING INTEGER PRIMARY KEY"},
		{where("vms", "state = ?"), "USING INDEX vms_state"},
		{where("vms", "template_name = ?"), "USING INDEX vms_template"},
		{where("vms", activeVM), "USING INDEX vms_active"},
		{where("vms", autostartVM), "USING INDEX vms_autostart"},
		{where("disks", "state = ?"), "USING INDEX disks_state"},
		{where("disks", "vm_id = ?"), "USING INDEX disks_vm"},
		{where("images", unavailableImage), "USING INDEX images_unavailable"},
		{where("operations", "resource = ?"), "USING INDEX operations_resource"},
		{where("operations", "state = ?"), "USING INDEX operations_state"},
		{where("operations", openOnly), "USING INDEX operations_open"},
	} {
		query, _ := tt.query.sql("*", vm.Page{Limit: 10})
		if plan := planOf(t, s, query); len(plan) != 1 || !strings.Contains(plan[0], tt.plan) {
			t.Errorf("%s: the plan is %q; want %s alone", query, plan, tt.plan)
		}
	}
}

// planOf returns the steps of the query plan of SQLite.
func planOf(t *testing.T, s *Store, query string) []string {
	t.Helper()
	args := make([]any, strings.Count(query, "?"))
	for i := range args {
		args[i] = 1
	}
	var steps []struct {
		ID, Parent, NotUsed int
		Detail              string
	}
	must(t, s.reader.Select(&steps, "EXPLAIN QUERY PLAN "+query, args...))
	var plan []string
	for _, step := range steps {
		plan = append(plan, step.Detail)
	}
	return plan
}

func TestStringsAreStoredByteForByte(t *testing.T) {
	s := open(t)
	for i, text := range []string{
		`'; DROP TABLE vms; --`, `" OR 1=1`, "?1 :id @x $y", "a\x00b\x1fc", "new\nline", "\xff\xfe not UTF-8", "名前 😀",
		strings.Repeat("x", 10_000), strings.Repeat("'", 10_000), "%_*", "\\",
	} {
		v, d := makeVM(i), makeDisk(text)
		v.ID, v.Template.Name, v.ReasonDetail, v.Root.Base = text, text, text, text
		d.Reason = text
		makeTemplate(t, s, text)
		apply(t, s, vm.Change{NewVM: &v, NewDisk: &d, Operation: &vm.Operation{ID: text, Kind: vm.VMCreate, Resource: vm.VMResource(text), State: vm.OpRunning}})
		if got, err := s.VM(t.Context(), text); err != nil || got.ID != text || got.Template.Name != text || got.ReasonDetail != text || got.Root.Base != text {
			t.Errorf("%.20q: read the VM %.200q, %v", text, fmt.Sprint(got), err)
		}
		if got, err := s.Disk(t.Context(), text); err != nil || got.ID != text || got.Reason != text {
			t.Errorf("%.20q: read the disk %.200q, %v", text, fmt.Sprint(got), err)
		}
		if got, err := s.Template(t.Context(), text); err != nil || got.Name != text {
			t.Errorf("%.20q: read the template %.200q, %v", text, fmt.Sprint(got), err)
		}
		list, err := s.Operations(t.Context(), vm.OperationFilter{Resource: vm.VMResource(text)}, vm.Page{})
		if err != nil || len(list) != 1 || list[0].ID != text {
			t.Errorf("%.20q: found %d operations, %v; want that one", text, len(list), err)
		}
	}
	if list, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{}); err != nil || len(list) != 11 {
		t.Errorf("there are %d VMs, %v; want 11", len(list), err)
	}
}

func TestACanceledContextIsNotADatabaseFault(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v := makeVM(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range map[string]func() error{
		"get":        func() error { _, err := s.VM(ctx, "a"); return err },
		"short list": func() error { _, err := s.VMs(ctx, vm.VMFilter{}, vm.Page{Limit: 1}); return err },
		"whole list": func() error { _, err := s.Disks(ctx, vm.DiskFilter{}, vm.Page{}); return err },
		"lease":      func() error { _, err := s.LeaseByMAC(ctx, "lan", "m"); return err },
		"free":       func() error { _, err := s.FreeIP(ctx, "lan", crowdedIP(0), crowdedIP(9), nil); return err },
		"write":      func() error { return s.applyErr(ctx, vm.Change{NewVM: &v}) },
		"prune":      func() error { _, err := s.PruneOperations(ctx, at); return err },
		"ping":       func() error { return s.Ping(ctx) },
		"backup":     func() error { return s.Backup(ctx, filepath.Join(t.TempDir(), "b")) },
		"open":       func() error { _, err := Open(ctx, Options{Path: filepath.Join(t.TempDir(), "x")}); return err },
	} {
		err := call()
		if !errors.Is(err, context.Canceled) || errors.Is(err, vm.ErrUnavailable) {
			t.Errorf("%s: got %v; want context.Canceled without a class", name, err)
		}
	}
	if _, err := s.VM(t.Context(), v.ID); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("got %v; want nothing written", err)
	}
}

func TestPingFailsOnceTheStoreIsClosed(t *testing.T) {
	s, err := Open(t.Context(), Options{Path: filepath.Join(t.TempDir(), "vman.db")})
	must(t, err)
	must(t, s.Ping(t.Context()))
	must(t, s.Close())
	if err := s.Ping(t.Context()); err == nil {
		t.Error("Ping of a closed store succeeds")
	}
	if _, err := s.VM(t.Context(), "a"); err == nil || errors.Is(err, vm.ErrNotFound) {
		t.Errorf("a read of a closed store: %v; want an error of no class", err)
	}
}
