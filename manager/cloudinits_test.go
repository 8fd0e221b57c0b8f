package manager_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmand/vm"
)

const somePassword = "$6$salt$yQ6ZWr3nFm3dVZLcYVkjYtxPHvTMsKrEJwRHSfNKpBgFhRnZbJqS2oNwAtqmC0mKjUHwDHDjvNHHkz0qWm2X5/"

func (w *world) seeded(id string, c vm.CloudInit) vm.VM {
	w.t.Helper()
	v, err := w.VMs.Create(w.t.Context(), vm.NewVM{ID: id, Template: "small", CloudInit: &c})
	must(w.t)(err)
	return v
}

func TestSeedIsBuiltAtStart(t *testing.T) {
	w := newWorld(t)
	v := w.seeded("a", vm.CloudInit{Hostname: "host", PasswordHash: somePassword})
	if len(v.CDROMs) != 1 || v.CDROMs[0].ID != vm.SeedCDROM {
		t.Errorf("the VM has the CD-ROM drives %+v, want only the seed", v.CDROMs)
	}
	if w.driver.SeedOf("a") != nil {
		t.Error("a seed exists before the start")
	}
	w.do("a", vm.OpStart)
	files := w.driver.SeedOf("a")
	for name, words := range map[string][]string{"meta-data": {v.UUID, "host"}, "vendor-data": {somePassword}, "network-config": {v.NICs[0].MAC}} {
		for _, word := range words {
			if !strings.Contains(string(files[name]), word) {
				t.Errorf("%s does not contain %q:\n%s", name, word, files[name])
			}
		}
	}
	view, err := w.CloudInits.Get(t.Context(), "a")
	must(t)(err)
	if view.InstanceID != v.UUID || !view.Attached || view.Spec.PasswordHash != somePassword || !strings.Contains(view.Files["vendor-data"], "hashed_passwd: "+somePassword) || view.Guest != nil {
		t.Errorf("Get returns %+v", view)
	}
	if seen := w.driver.Observe(t.Context(), "a"); len(seen.CDROMs) != 1 {
		t.Errorf("QEMU has the drives %q", seen.CDROMs)
	}
	w.create("b")
	_, err = w.CloudInits.Get(t.Context(), "b")
	wantCode(t, err, vm.CodeNotFound)
	_, err = w.CloudInits.Get(t.Context(), "c")
	wantCode(t, err, vm.CodeNotFound)
}

func TestInvalidCloudInitDataIsRefused(t *testing.T) {
	w := newWorld(t)
	bad := vm.CloudInit{UserData: "#cloud-config\na: [1\n"}
	_, err := w.VMs.Create(t.Context(), vm.NewVM{ID: "a", Template: "small", CloudInit: &bad})
	wantCode(t, err, vm.CodeInvalid, "/cloud_init/user_data", "line ")
	w.create("a")
	_, err = w.CloudInits.Set(t.Context(), "a", bad, false, nil)
	if f := wantCode(t, err, vm.CodeInvalid); f.Fields[0].Field != "/user_data" {
		t.Errorf("fault %+v", f)
	}
}

func TestCloudInitDataIsEdited(t *testing.T) {
	w := newWorld(t)
	w.create("a")
	v := w.vm("a")
	view, err := w.CloudInits.Set(t.Context(), "a", vm.CloudInit{Hostname: "one"}, false, nil)
	must(t)(err)
	if !view.Attached || view.InstanceID != v.UUID {
		t.Errorf("first data of a VM: %+v", view)
	}
	view, err = w.CloudInits.Set(t.Context(), "a", vm.CloudInit{Hostname: "two"}, false, nil)
	must(t)(err)
	if view.InstanceID != v.UUID || !strings.Contains(view.Files["meta-data"], "two") {
		t.Errorf("edited data: %+v", view)
	}
	view, err = w.CloudInits.Set(t.Context(), "a", vm.CloudInit{Hostname: "two"}, true, nil)
	must(t)(err)
	if view.InstanceID != v.UUID+"-1" {
		t.Errorf("data with reprovision: %+v", view)
	}
	must(t)(w.CDROMs.Eject(t.Context(), "a", vm.SeedCDROM, nil))
	if view, err = w.CloudInits.Get(t.Context(), "a"); err != nil || view.Attached {
		t.Errorf("data after the eject: %+v, %v", view, err)
	}
	w.do("a", vm.OpStart)
	if w.driver.SeedOf("a") != nil {
		t.Error("a seed was built without a drive for it")
	}
	// Insert the seed again while the VM runs.
	view, err = w.CloudInits.Set(t.Context(), "a", vm.CloudInit{Hostname: "three"}, false, nil)
	must(t)(err)
	if seen := w.driver.Observe(t.Context(), "a"); !view.Attached || len(seen.CDROMs) != 1 || !strings.Contains(string(w.driver.SeedOf("a")["meta-data"]), "three") {
		t.Errorf("data after the second insertion: %+v, QEMU has the drives %q", view, seen.CDROMs)
	}
	_, err = w.CloudInits.Set(t.Context(), "a", vm.CloudInit{}, false, vm.Match{{Seq: 1, Revision: 1}})
	wantCode(t, err, vm.CodePrecondition)
	w.driver.Hook = func(_ context.Context, m, _ string) error {
		if m == "WriteSeed" {
			return &vm.Fault{Code: vm.CodeInsufficientStorage, Detail: "the disk is full"}
		}
		return nil
	}
	_, err = w.CloudInits.Set(t.Context(), "a", vm.CloudInit{Hostname: "four"}, false, nil)
	wantCode(t, err, vm.CodeInsufficientStorage)
	if view, err = w.CloudInits.Get(t.Context(), "a"); err != nil || !strings.Contains(view.Files["meta-data"], "three") {
		t.Errorf("data after a failed edit: %+v, %v", view, err)
	}
}

func TestCloudInitStatusOfTheGuestIsRecorded(t *testing.T) {
	w := newWorld(t)
	says := "running\n{\"v1\": {\"stage\": \"modules-config\"}}"
	w.driver.Run = func(string, vm.GuestCommand) vm.GuestResult {
		return vm.GuestResult{Exited: true, Stdout: []byte(says)}
	}
	w.seeded("a", vm.CloudInit{})
	w.do("a", vm.OpStart)
	w.driver.SetAgent("a", vm.Agent{State: vm.AgentConnected, LastSeenAt: time.Now()})
	view, err := w.CloudInits.Get(t.Context(), "a")
	must(t)(err)
	if view.Guest == nil || view.Guest.Status != "running" {
		t.Errorf("the guest reports %+v", view.Guest)
	}
	says = "result\n{\"v1\": {\"errors\": [\"no\\u001b luck\"]}}"
	view, err = w.CloudInits.Get(t.Context(), "a")
	must(t)(err)
	if view.Guest == nil || view.Guest.Status != "error" || len(view.Guest.Errors) != 1 || view.Guest.Errors[0] != "no luck" {
		t.Errorf("the guest reports %+v", view.Guest)
	}
	_, err = w.VMs.Await(t.Context(), "a", vm.Condition{CloudInit: true})
	wantCode(t, err, vm.CodeGuestRefused, "no luck")
	w.noted("a", func(b vm.Boot) bool { return !b.CloudInitFailed.IsZero() && b.CloudInit.IsZero() })
}

// noted waits until the observations of a guest are recorded.
func (w *world) noted(id string, holds func(vm.Boot) bool) {
	w.t.Helper()
	for {
		news := w.NextEvent()
		if holds(w.vm(id).Boot) {
			return
		}
		select {
		case <-news:
		case <-time.After(10 * time.Second):
			w.t.Fatalf("recorded boot marks %+v", w.vm(id).Boot)
		}
	}
}

func TestCloudInitStatusIsReadWithoutAWaitingClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		says := "running\n{\"v1\": {\"stage\": \"modules-config\"}}"
		asked := 0
		w.driver.Run = func(string, vm.GuestCommand) vm.GuestResult {
			asked++
			return vm.GuestResult{Exited: true, Stdout: []byte(says)}
		}
		w.seeded("a", vm.CloudInit{})
		w.create("b") // without a seed
		pass := func() {
			must(t)(w.Networks.Reconcile(t.Context(), []vm.VM{w.vm("a"), w.vm("b")}, true))
			synctest.Wait()
		}
		for _, id := range []string{"a", "b"} {
			w.do(id, vm.OpStart)
			w.driver.SetAgent(id, vm.Agent{State: vm.AgentConnected, LastSeenAt: time.Now()})
		}
		pass()
		pass()
		if asked != 1 {
			t.Fatalf("%d commands in two passes without a pause, want one", asked)
		}
		says = "result\n{\"v1\": {\"datasource\": \"DataSourceNoCloud\", \"errors\": []}}"
		time.Sleep(time.Minute)
		pass()
		time.Sleep(time.Minute)
		pass()
		if b := w.vm("a").Boot; asked != 2 || b.CloudInit.IsZero() || !b.CloudInitFailed.IsZero() {
			t.Errorf("%d commands; recorded boot marks %+v", asked, b)
		}
	})
}
