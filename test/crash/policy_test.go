package crash

import (
	"bufio"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

func TestCrashedVMIsRestartedUntilStopped(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	d.CreateVMWith("a", map[string]any{"restart_policy": "on-failure"})
	d.Action("a", "start")
	for n := range 2 {
		old := d.VMPID("a")
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, 30*time.Second, "VM a to be restarted", func() error {
			v := d.VM("a")
			if pid := d.VMPID("a"); v.State != "running" || pid == 0 || pid == old || v.RestartCount != n+1 {
				return fmt.Errorf("it is %s with process %d after %d restarts", v.State, pid, v.RestartCount)
			}
			return nil
		})
	}
	ops := harness.Get[[]openapi.Operation](d, "/operations?resource=vms/a&kind=vm.start")
	if len(ops) != 3 || ops[1].RequestedBy != "restart-policy" {
		t.Errorf("the starts are %+v, want three, the second requested by restart-policy", ops)
	}
	// QEMU ends while no daemon runs.
	d.Kill()
	if err := syscall.Kill(d.VMPID("a"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.Start()
	d.WaitVM("a", "running", "requested", 30*time.Second)
	if err := syscall.Kill(d.VMPID("a"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.WaitVM("a", "error", "crashed", 10*time.Second)
	d.ForceStop("a")
	if v := d.VM("a"); v.State != "stopped" || v.NextRestartAt != nil || v.RestartCount != 0 {
		t.Errorf("after the stop, VM a is %+v, want stopped without a restart to come", v)
	}
	d.WaitNewPass()
	d.WaitNewPass()
	if v := d.VM("a"); v.State != "stopped" {
		t.Errorf("VM a is %+v, want stopped: the policy must not undo a requested stop", v)
	}
}

func TestNoEventIsMissedAcrossAKill(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	received := map[int64]bool{}
	last := int64(0)
	listen := func(until string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://vmand/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "text/event-stream")
		req.Header.Set("Last-Event-ID", fmt.Sprint(last))
		resp, err := d.Stream(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				if _, err := fmt.Sscan(id, &last); err != nil {
					t.Fatal(err)
				}
				received[last] = true
			}
			if strings.Contains(lines.Text(), until) {
				return
			}
		}
		t.Fatalf("the stream ended before %q: %v", until, lines.Err())
	}
	d.CreateVM("a")
	listen(`"resource":"vms/a"`)
	d.Action("a", "start")
	d.Kill()
	d.Start()
	d.CreateVM("b")
	listen(`"resource":"vms/b"`)
	for _, e := range harness.Get[[]openapi.Event](d, "/events?limit=1000&since=0") {
		if e.Seq <= last && !received[e.Seq] {
			t.Errorf("event %d (%s of %s) was not streamed", e.Seq, e.Type, e.Resource)
		}
	}
}

func TestRepeatedRequestAfterAKillHasOneEffect(t *testing.T) {
	d := harness.StartDaemon(t)
	for i := range 8 {
		key := fmt.Sprintf("Idempotency-Key: disk-%d", i)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = d.Try("POST", "/disks", map[string]any{"size": 1}, key) // the daemon is killed meanwhile
		}()
		<-time.After(time.Duration(3*i) * time.Millisecond)
		d.Kill()
		<-sent
		d.Start()
		first := d.Call("POST", "/disks", map[string]any{"size": 1}, key).Want(201)
		again := d.Call("POST", "/disks", map[string]any{"size": 1}, key).Want(201)
		if string(first.Body) != string(again.Body) || again.Header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("the repeated request answered %s, want %s, replayed", again.Body, first.Body)
		}
		d.Call("POST", "/disks", map[string]any{"size": 2}, key).Problem(422, "idempotency-mismatch")
		if disks := harness.Get[[]openapi.Disk](d, "/disks"); len(disks) != i+1 {
			t.Fatalf("%d requests with different keys made %d disks: %+v", i+1, len(disks), disks)
		}
	}
	d.WaitSettled()
}

func TestRestoredDatabaseKeepsNewerVMs(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	d.CreateVM("old")
	d.Action("old", "start")
	backup := filepath.Join(t.TempDir(), "backup.db")
	vmand := func(args ...string) {
		t.Helper()
		if out, err := d.Command(args...).CombinedOutput(); err != nil {
			t.Fatalf("vmand %q: %v\n%s", args, err, out)
		}
	}
	vmand("backup", backup)
	d.CreateVM("new")
	d.Action("new", "start")
	disk := d.CreateDisk(0.5)
	d.Stop()
	vmand("restore", backup)
	d.Start()
	if v := d.VM("old"); v.State != "running" {
		t.Errorf("VM old is %+v, want running", v)
	}
	orphans := func() (types []string) {
		for _, i := range harness.Get[openapi.ObserverStatus](d, "/observer/status").LastIssues {
			types = append(types, string(i.IssueType)+" "+i.ResourceID)
		}
		return types
	}
	harness.Eventually(t, 10*time.Second, "the orphans to be reported", func() error {
		got := strings.Join(orphans(), ", ")
		for _, want := range []string{"orphan_process new", "orphan_disk " + disk.ID} {
			if !strings.Contains(got, want) {
				return fmt.Errorf("the observer reports %s", got)
			}
		}
		return nil
	})
	pid := d.VMPID("new")
	if pid == 0 {
		t.Fatal("the process of VM new has ended")
	}
	d.Call("POST", "/observer/orphans/vms:new/adopt", map[string]any{"template_name": "small"}).Want(200)
	d.Call("POST", "/observer/orphans/disks:"+disk.ID+"/adopt", nil).Want(200)
	if v := d.VM("new"); v.State != "running" || d.VMPID("new") != pid {
		t.Errorf("the adopted VM is %+v with process %d, want running with process %d", v, d.VMPID("new"), pid)
	}
	d.AttachDisk(disk.ID, "new")
	why := d.Call("GET", "/vms/new/why", nil).Want(200)
	if text := string(why.Body); !strings.Contains(text, "running") || !strings.Contains(text, "device_add") {
		t.Errorf("GET /vms/new/why answered %s, want the state running and the command device_add", text)
	}
}
