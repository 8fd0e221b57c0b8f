package test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmand/openapi"
)

func TestVMsOutliveTheDaemon(t *testing.T) {
	for name, end := range map[string]func(*daemon){"killed": (*daemon).kill, "stopped": (*daemon).stop} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t, bootDisk("normal"))
			d.template()
			d.create("a")
			disk := d.newDisk(0.25)
			d.do("a", "start")
			g := d.guest("a")
			g.says("VMT: ready")
			pid := d.pid("a")
			end(d)
			d.start()
			if v := d.vm("a"); v.State != "running" || d.pid("a") != pid {
				t.Errorf("found again: %+v, process %d; it was %d", v, d.pid("a"), pid)
			}
			ops := as[[]openapi.Operation](d.call("GET", "/operations?resource=vms/a&kind=vm.start", nil).want(200))
			if len(ops) != 1 || ops[0].State != "succeeded" {
				t.Errorf("the start's record: %+v", ops)
			}
			// It is controllable, and its console is heard.
			d.attach(disk.ID, "a")
			g.says("VMT: disk-add .*serial=" + disk.ID)
			d.do("a", "pause")
			d.do("a", "resume")
			d.do("a", "stop")
			g.says("VMT: power-button")
		})
	}
}

// TestAKillInTheMiddle kills the daemon while an operation is on its way, at
// different times, and looks at what the next daemon makes of it.
func TestAKillInTheMiddle(t *testing.T) {
	d := startDaemon(t)
	d.template()
	for i := range 12 {
		id := fmt.Sprintf("vm-%d", i)
		delay := time.Duration(i) * 12 * time.Millisecond
		d.create(id)
		disk := d.newDisk(0.25)
		requests := []func(){
			func() { d.try("POST", "/vms/"+id+"/actions/start", nil, wait) },
			func() { d.try("POST", "/vms", map[string]any{"template_name": "small", "name": id + "-2"}) },
			func() { d.try("POST", "/disks", map[string]any{"size": 1}) },
			func() { d.try("POST", "/disks/"+disk.ID+"/attach", map[string]any{"vm_id": id}) },
		}
		var wg sync.WaitGroup
		for _, request := range requests {
			wg.Go(request)
		}
		<-time.After(delay)
		d.kill()
		wg.Wait()
		d.start()
		d.settled()
		if v := d.vm(id); v.State != "running" {
			d.do(id, "start")
		}
		d.call("POST", "/vms/"+id+"/actions/stop", map[string]any{"force": true}, wait).want(200)
		d.call("DELETE", "/vms/"+id, nil).want(204)
	}
	d.clean()
	d.nothingLeft()
}

// settled waits until no operation is open and all states are settled ones.
func (d *daemon) settled() {
	d.t.Helper()
	eventually(d.t, 15*time.Second, "everything to be settled", func() error {
		for _, state := range []string{"pending", "running"} {
			if a := d.call("GET", "/operations?state="+state, nil).want(200); strings.TrimSpace(string(a.body)) != "[]" {
				return fmt.Errorf("open operations: %s", a.body)
			}
		}
		for _, v := range as[[]openapi.VM](d.call("GET", "/vms", nil).want(200)) {
			if v.State == "starting" || v.State == "stopping" {
				return fmt.Errorf("VM %s is %s", v.ID, v.State)
			}
			if alive := d.pid(v.ID) != 0; alive != (v.State == "running" || v.State == "paused") {
				return fmt.Errorf("VM %s is %s, and its process lives: %t", v.ID, v.State, alive)
			}
		}
		for _, disk := range as[[]openapi.Disk](d.call("GET", "/disks", nil).want(200)) {
			if disk.State != "available" && disk.State != "attached" {
				return fmt.Errorf("disk %s is %s", disk.ID, disk.State)
			}
			if _, err := os.Stat(filepath.Join(d.state, "disks", disk.ID+".qcow2")); err != nil {
				return err
			}
		}
		return nil
	})
}

// clean deletes every VM, disk and template.
func (d *daemon) clean() {
	d.t.Helper()
	for _, v := range as[[]openapi.VM](d.call("GET", "/vms", nil).want(200)) {
		d.call("DELETE", "/vms/"+v.ID, nil).want(204)
	}
	for _, disk := range as[[]openapi.Disk](d.call("GET", "/disks", nil).want(200)) {
		d.call("DELETE", "/disks/"+disk.ID, nil).want(204)
	}
	for _, tmpl := range as[[]openapi.Template](d.call("GET", "/templates", nil).want(200)) {
		d.call("DELETE", "/templates/"+tmpl.Name, nil).want(204)
	}
	for name := range d.census().networks {
		if name != "vman0" {
			d.call("DELETE", "/networks/"+name, nil).want(204)
		}
	}
}

// TestManyClientsOnEightVMs has 64 clients do what they like on the same VMs.
func TestManyClientsOnEightVMs(t *testing.T) {
	d := startDaemon(t)
	d.template()
	for i := range 8 {
		d.create(fmt.Sprintf("vm-%d", i))
	}
	disk := d.newDisk(0.25)
	actions := []string{"start", "stop", "restart", "pause", "resume", "reset"}
	counts := map[int]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	stop := make(chan struct{})
	watch := make(chan struct{})
	go func() { // never two QEMUs for one VM
		defer close(watch)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			for i := range 8 {
				if pids := processes(t, fmt.Sprintf("%s/vm-%d.", d.runtime, i)); len(pids) > 1 {
					t.Errorf("vm-%d has the QEMUs %v", i, pids)
				}
			}
		}
	}()
	over := make(chan struct{})
	go func() { // until there was enough of both to prove something
		defer close(over)
		for end := time.After(3 * time.Minute); ; {
			select {
			case <-end:
				return
			case <-time.After(100 * time.Millisecond):
			}
			mu.Lock()
			enough := counts[200]+counts[202] >= 200 && counts[409] >= 200
			mu.Unlock()
			if enough {
				return
			}
		}
	}()
	for range 64 {
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				case <-time.After(time.Duration(rand.IntN(400)) * time.Millisecond): // or the refused ones would leave no room for the others
				}
				id, action := fmt.Sprintf("vm-%d", rand.IntN(8)), actions[rand.IntN(len(actions))]
				path, body := "/vms/"+id+"/actions/"+action, map[string]any{}
				switch {
				case rand.IntN(8) == 0:
					path, body = "/disks/"+disk.ID+"/attach", map[string]any{"vm_id": id}
				case rand.IntN(8) == 0:
					path = "/disks/" + disk.ID + "/detach"
				case action == "stop" || action == "restart":
					body = map[string]any{"force": rand.IntN(2) == 0, "timeout_seconds": rand.IntN(2)}
				}
				a, err := d.try("POST", path, body, []string{wait, "Prefer: wait=0"}[rand.IntN(2)])
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				counts[a.status]++
				mu.Unlock()
				if a.status != http.StatusOK && a.status != http.StatusAccepted && a.status != http.StatusConflict {
					t.Errorf("%s answered %d: %s", path, a.status, a.body)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	<-watch
	t.Logf("answers: %v", counts)
	if counts[200]+counts[202] < 100 || counts[409] < 100 {
		t.Errorf("answers: %v; too few of a kind to prove anything", counts)
	}
	d.settled()
	d.clean()
	d.nothingLeft()
}

func TestAStateChangedByHandIsMadeTrueAgain(t *testing.T) {
	d := startDaemon(t)
	d.template()
	d.create("a")
	d.do("a", "start")
	if err := syscall.Kill(d.pid("a"), syscall.SIGSTOP); err != nil { // a mute monitor claims nothing
		t.Fatal(err)
	}
	d.pass()
	if v := d.vm("a"); v.State != "running" {
		t.Errorf("with a mute monitor: %+v", v)
	}
	if err := syscall.Kill(d.pid("a"), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.sql(`UPDATE vms SET state = 'stopped' WHERE id = 'a'`)
	d.waitVM("a", "running", "requested", 10*time.Second)
}

// pass waits until the observer has begun and ended another pass.
func (d *daemon) pass() {
	d.t.Helper()
	last := func() time.Time {
		s := as[openapi.ObserverStatus](d.call("GET", "/observer/status", nil).want(200))
		if s.LastRunAt == nil {
			return time.Time{}
		}
		return s.LastRunAt.Time
	}
	begun := time.Now()
	eventually(d.t, 15*time.Second, "the observer's next pass", func() error {
		if at := last(); !at.After(begun) {
			return fmt.Errorf("the last was at %s", at)
		}
		return nil
	})
}
