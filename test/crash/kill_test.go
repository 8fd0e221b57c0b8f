package crash

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

func TestVMsSurviveTheDaemon(t *testing.T) {
	ends := map[string]func(*harness.Daemon){"killed": (*harness.Daemon).Kill, "stopped": (*harness.Daemon).Stop}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			d := harness.StartDaemon(t, harness.BootDisk("normal"))
			d.CreateTemplate()
			d.CreateVM("a")
			disk := d.CreateDisk(0.25)
			d.Action("a", "start")
			serial := d.Serial("a")
			serial.Expect("VMT: ready")
			pid := d.VMPID("a")
			end(d)
			d.Start()
			if v := d.VM("a"); v.State != "running" || d.VMPID("a") != pid {
				t.Errorf("VM a is %+v with process %d, want running with process %d", v, d.VMPID("a"), pid)
			}
			ops := harness.Get[[]openapi.Operation](d, "/operations?resource=vms/a&kind=vm.start")
			if len(ops) != 1 || ops[0].State != "succeeded" {
				t.Errorf("the operations are %+v, want one that succeeded", ops)
			}
			// The daemon controls the VM and reads its console.
			d.AttachDisk(disk.ID, "a")
			serial.Expect("VMT: disk-add .*serial=" + disk.ID)
			d.Action("a", "pause")
			d.Action("a", "resume")
			d.Action("a", "stop")
			serial.Expect("VMT: power-button")
		})
	}
}

// TestKillDuringOperations kills the daemon at different times after the begin of four
// operations. The next daemon must settle them.
func TestKillDuringOperations(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	for i := range 12 {
		id := fmt.Sprintf("vm-%d", i)
		delay := time.Duration(i) * 12 * time.Millisecond
		d.CreateVM(id)
		disk := d.CreateDisk(0.25)
		requests := []func(){
			func() { d.Try("POST", "/vms/"+id+"/actions/start", nil, harness.Wait) },
			func() { d.Try("POST", "/vms", map[string]any{"template_name": "small", "name": id + "-2"}) },
			func() { d.Try("POST", "/disks", map[string]any{"size": 1}) },
			func() { d.Try("POST", "/disks/"+disk.ID+"/attach", map[string]any{"vm_id": id}) },
		}
		var wg sync.WaitGroup
		for _, request := range requests {
			wg.Go(request)
		}
		<-time.After(delay)
		d.Kill()
		wg.Wait()
		d.Start()
		d.WaitSettled()
		if v := d.VM(id); v.State != "running" {
			d.Action(id, "start")
		}
		d.ForceStop(id)
		d.Call("DELETE", "/vms/"+id, nil).Want(204)
	}
	d.DeleteAll()
	d.AssertEmpty()
}

// TestManyClientsOnEightVMs sends random requests of 64 clients to the same VMs.
func TestManyClientsOnEightVMs(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	for i := range 8 {
		d.CreateVM(fmt.Sprintf("vm-%d", i))
	}
	disk := d.CreateDisk(0.25)
	actions := []string{"start", "stop", "restart", "pause", "resume", "reset"}
	counts := map[int]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	stop := make(chan struct{})
	watch := make(chan struct{})
	go func() { // looks for VMs with two QEMUs
		defer close(watch)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			for i := range 8 {
				if pids := harness.QEMUProcesses(t, fmt.Sprintf("%s/vm-%d.", d.RuntimeDir, i)); len(pids) > 1 {
					t.Errorf("VM vm-%d has the QEMUs %v", i, pids)
				}
			}
		}
	}()
	over := make(chan struct{})
	go func() { // ends the test after 200 successes and 200 conflicts, or 3 minutes
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
				case <-time.After(time.Duration(rand.IntN(400)) * time.Millisecond): // so that not all requests are refused
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
				a, err := d.Try("POST", path, body, []string{harness.Wait, "Prefer: wait=0"}[rand.IntN(2)])
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				counts[a.Status]++
				mu.Unlock()
				if a.Status != http.StatusOK && a.Status != http.StatusAccepted && a.Status != http.StatusConflict {
					t.Errorf("%s answered %d: %s", path, a.Status, a.Body)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	<-watch
	t.Logf("number of answers by status: %v", counts)
	if counts[200]+counts[202] < 100 || counts[409] < 100 {
		t.Errorf("the answers are %v, want at least 100 successes and 100 conflicts", counts)
	}
	d.WaitSettled()
	d.DeleteAll()
	d.AssertEmpty()
}

func TestManualStateChangeIsRepaired(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	d.CreateVM("a")
	d.Action("a", "start")
	// A QEMU that does not answer is no reason to change the state.
	if err := syscall.Kill(d.VMPID("a"), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	d.WaitNewPass()
	if v := d.VM("a"); v.State != "running" {
		t.Errorf("with a QEMU that does not answer, VM a is %+v, want running", v)
	}
	if err := syscall.Kill(d.VMPID("a"), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.SQL(`UPDATE vms SET state = 'stopped' WHERE id = 'a'`)
	d.WaitVM("a", "running", "requested", 10*time.Second)
}
