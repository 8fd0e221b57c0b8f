package manager_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"vmand/vm"
)

func TestVMEdits(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	text, labels, policy, desired := "a web server\n", map[string]string{"team": "blau", "a/b.c": "x \"y\""}, vm.RestartOnFailure, vm.DesiredRunning
	start := vm.Autostart{Enabled: true, Order: 3, Delay: 5 * time.Second}
	v := w.edit("a", vm.VMEdits{Description: &text, Labels: &labels, Restart: &policy, Autostart: &start, Desired: &desired})
	if v.Description != text || v.Labels["a/b.c"] != "x \"y\"" || v.Restart != policy || v.Autostart != start || v.Desired != desired {
		t.Errorf("changed to %+v", v)
	}
	if again := w.edit("a", vm.VMEdits{Labels: &map[string]string{}}); len(again.Labels) != 0 || again.Description != text || again.Revision <= v.Revision {
		t.Errorf("changed to %+v", again)
	}
	wantCode(t, func() error {
		_, err := w.VMs.Update(t.Context(), "a", vm.VMEdits{}, vm.Match{{Seq: v.Seq, Revision: v.Revision}})
		return err
	}(), vm.CodePrecondition)
	long, control, bad := strings.Repeat("x", vm.MaxDescription+1), "a\x00b", vm.RestartPolicy("sometimes")
	late, future := vm.Autostart{Delay: 2 * time.Hour}, vm.Desired("paused")
	for field, e := range map[string]vm.VMEdits{
		"/description":     {Description: &long},
		"/description ":    {Description: &control},
		"/labels":          {Labels: &map[string]string{"UPPER": ""}},
		"/labels/k":        {Labels: &map[string]string{"k": "a\nb"}},
		"/restart_policy":  {Restart: &bad},
		"/autostart_delay": {Autostart: &late},
		"/desired_state":   {Desired: &future},
	} {
		_, err := w.VMs.Update(t.Context(), "a", e, nil)
		wantCode(t, err, vm.CodeInvalid, strings.TrimSpace(field))
	}
}

func TestEveryChangeHasAnEvent(t *testing.T) {
	w := newWorld(t)
	next := w.NextEvent()
	w.create("a")
	<-next
	w.do("a", vm.OpStart)
	d := w.disk("")
	must(t)(w.Disks.Attach(t.Context(), d.ID, "a", ""))
	w.driver.Set("a", "shutdown")
	must(t)(w.Settle(t.Context(), vm.VMResource("a")))
	must(t)(w.VMs.Delete(t.Context(), "a", nil, false))
	events, err := w.store.Events(t.Context(), vm.EventFilter{}, vm.Page{})
	must(t)(err)
	var got []string
	last := int64(0)
	for _, e := range events {
		if e.Seq <= last {
			t.Errorf("event %d follows event %d, want increasing numbers", e.Seq, last)
		}
		last = e.Seq
		if !strings.HasPrefix(e.Type, "operation.") {
			got = append(got, e.Type+" "+strings.ReplaceAll(e.Resource.String(), d.ID, "d"))
		}
	}
	want := []string{"network.created networks/vman0", "template.created templates/small", "vm.created vms/a", "vm.state vms/a", "vm.state vms/a", "disk.created disks/d", "disk.state disks/d",
		"disk.state disks/d", "disk.state disks/d", "vm.state vms/a", "vm.state vms/a", "disk.state disks/d", "vm.deleted vms/a"}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("events %q; want %q", got, want)
	}
	states, err := w.store.Events(t.Context(), vm.EventFilter{Type: "vm.", Resource: vm.VMResource("a")}, vm.Page{})
	if err != nil || len(states) != 6 {
		t.Errorf("%d events of the VM, %v", len(states), err)
	}
}

func TestIdempotencyKeyPreventsASecondEffect(t *testing.T) {
	w := newWorld(t)
	ctx := vm.WithCaller(t.Context(), vm.Caller{Name: "token:admin", Key: "k1", Fingerprint: "f1"})
	d, err := w.Disks.Create(ctx, vm.NewDisk{SizeMiB: 1})
	must(t)(err)
	_, err = w.Disks.Create(ctx, vm.NewDisk{SizeMiB: 1})
	wantCode(t, err, vm.CodeRepeated)
	op, reply, err := w.store.OperationByKey(t.Context(), "token:admin", "k1")
	if err != nil || reply != nil || op.Resource.String() != "disks/"+d.ID || op.Fingerprint != "f1" || op.State != vm.OpSucceeded {
		t.Errorf("operation by key: %+v, %v, %v", op, reply, err)
	}
	must(t)(w.store.KeepReply(t.Context(), op.ID, vm.Reply{Status: 201, Body: []byte("{}")}))
	if _, reply, err = w.store.OperationByKey(t.Context(), "token:admin", "k1"); err != nil || reply == nil || reply.Status != 201 {
		t.Errorf("reply by key: %+v, %v", reply, err)
	}
	other := vm.WithCaller(t.Context(), vm.Caller{Name: "uid:0", Key: "k1"})
	must(t)(w.Disks.Create(other, vm.NewDisk{SizeMiB: 1}))
	if s, _ := w.driver.Survey(t.Context()); len(s.DiskFiles) != 2 {
		t.Errorf("%d disk files", len(s.DiskFiles))
	}
}

func TestOrphansAreChangedOnlyOnRequest(t *testing.T) {
	w := newWorld(t)
	w.create("known")
	w.driver.AddVMFiles("web")
	w.driver.Set("web", vm.StatusRunning)
	must(t)(w.driver.CreateDisk(t.Context(), "data", vm.DiskFile{SizeMiB: 700}, nil, nil))
	must(t)(w.driver.CreateDisk(t.Context(), "junk", vm.DiskFile{SizeMiB: 1}, nil, nil))

	_, err := w.Orphans.Delete(t.Context(), vm.VMResource("web"))
	wantCode(t, err, vm.CodeState, "process")
	_, err = w.Orphans.Adopt(t.Context(), vm.VMResource("web"), "nothing")
	wantCode(t, err, vm.CodeInvalid, "/template_name")
	w.driver.AddVMFiles("forged")
	_, err = w.Orphans.Adopt(t.Context(), vm.VMResource("forged"), "small")
	wantCode(t, err, vm.CodeState, "/etc/shadow")
	must(t)(w.Orphans.Adopt(t.Context(), vm.VMResource("web"), "small"))
	w.wantVM("web", vm.Running, vm.ReasonRequested)
	must(t)(w.Orphans.Adopt(t.Context(), vm.DiskResource("data"), ""))
	if d := w.wantDisk("data", vm.DiskAvailable, "", ""); d.SizeMiB != 700 {
		t.Errorf("adopted %+v", d)
	}
	must(t)(w.Orphans.Delete(t.Context(), vm.DiskResource("junk")))
	for _, resource := range []string{"vms/known", "vms/web", "disks/data"} {
		if strings.HasPrefix(resource, "vms/") {
			_, err := w.Orphans.Terminate(t.Context(), vm.ParseResource(resource))
			wantCode(t, err, vm.CodeState, "recorded")
		}
		_, err := w.Orphans.Delete(t.Context(), vm.ParseResource(resource))
		wantCode(t, err, vm.CodeState, "recorded")
	}
	for _, resource := range []string{"vms/none", "disks/nothing", "disks/junk", "networks/x", "vms/../x", "vms"} {
		_, err := w.Orphans.Delete(t.Context(), vm.ParseResource(resource))
		wantCode(t, err, vm.CodeNotFound)
	}
	w.driver.Set("stray", vm.StatusRunning)
	must(t)(w.Orphans.Terminate(t.Context(), vm.VMResource("stray")))
	if n := w.driver.Processes(); n != 1 {
		t.Errorf("%d processes remain", n)
	}
	if calls := w.network.Calls(); !slices.Contains(calls, "Disconnect stray") {
		t.Errorf("calls of the network %q, want Disconnect", calls)
	}
}

func TestWhyExplainsTheStateOfAVM(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	w.do("a", vm.OpStart)
	y, err := w.VMs.Why(t.Context(), "a")
	if err != nil || !y.Agrees || len(y.Operations) != 2 || len(y.Events) == 0 || !strings.Contains(strings.Join(y.Words, " "), "running") {
		t.Errorf("why: %+v, %v", y, err)
	}
	w.driver.Set("a", "gone")
	y, err = w.VMs.Why(t.Context(), "a")
	if text := strings.Join(y.Words, " "); err != nil || y.Agrees || !strings.Contains(text, "The record is wrong") || !strings.Contains(text, "vanished") {
		t.Errorf("why: %q, %v", text, err)
	}
	_, err = w.VMs.Why(t.Context(), "b")
	wantCode(t, err, vm.CodeNotFound)
}
