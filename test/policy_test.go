package test

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmand/openapi"
)

func TestACrashedVMIsRestartedByItsPolicyAndAStopWins(t *testing.T) {
	d := startDaemon(t)
	d.template()
	d.call("POST", "/vms", map[string]any{"template_name": "small", "name": "a", "restart_policy": "on-failure"}).want(201)
	d.do("a", "start")
	for n := range 2 {
		old := d.pid("a")
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, "the restart", func() error {
			v := d.vm("a")
			if pid := d.pid("a"); v.State != "running" || pid == 0 || pid == old || v.RestartCount != n+1 {
				return fmt.Errorf("it is %s with process %d, after %d restarts", v.State, pid, v.RestartCount)
			}
			return nil
		})
	}
	ops := as[[]openapi.Operation](d.call("GET", "/operations?resource=vms/a&kind=vm.start", nil).want(200))
	if len(ops) != 3 || ops[1].RequestedBy != "restart-policy" {
		t.Errorf("starts: %+v", ops)
	}
	d.kill() // the daemon, too, and meanwhile QEMU
	if err := syscall.Kill(d.pid("a"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.start()
	d.waitVM("a", "running", "requested", 30*time.Second)
	if err := syscall.Kill(d.pid("a"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.waitVM("a", "error", "crashed", 10*time.Second)
	d.call("POST", "/vms/a/actions/stop", map[string]any{"force": true}, wait).want(200)
	if v := d.vm("a"); v.State != "stopped" || v.NextRestartAt != nil || v.RestartCount != 0 {
		t.Errorf("stopped: %+v", v)
	}
	d.pass()
	d.pass()
	if v := d.vm("a"); v.State != "stopped" {
		t.Errorf("an explicit stop was undone: %+v", v)
	}
}

func TestEventsAreHeardAcrossAKillAndNoneIsMissed(t *testing.T) {
	d := startDaemon(t)
	d.template()
	heard := map[int64]bool{}
	last := int64(0)
	listen := func(until string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://vmand/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "text/event-stream")
		req.Header.Set("Last-Event-ID", fmt.Sprint(last))
		resp, err := d.client.Transport.(*checked).next.RoundTrip(req)
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
				heard[last] = true
			}
			if strings.Contains(lines.Text(), until) {
				return
			}
		}
		t.Fatalf("the stream ended before %q: %v", until, lines.Err())
	}
	d.create("a")
	listen(`"resource":"vms/a"`)
	d.do("a", "start")
	d.kill()
	d.start()
	d.create("b")
	listen(`"resource":"vms/b"`)
	all := as[[]openapi.Event](d.call("GET", fmt.Sprintf("/events?limit=1000&since=%d", 0), nil).want(200))
	for _, e := range all {
		if e.Seq <= last && !heard[e.Seq] {
			t.Errorf("event %d (%s %s) was not heard", e.Seq, e.Type, e.Resource)
		}
	}
}

func TestARequestRepeatedAfterAKillHasOneEffect(t *testing.T) {
	d := startDaemon(t)
	for i := range 8 {
		key := fmt.Sprintf("Idempotency-Key: disk-%d", i)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = d.try("POST", "/disks", map[string]any{"size": 1}, key) // the daemon dies meanwhile
		}()
		<-time.After(time.Duration(3*i) * time.Millisecond)
		d.kill()
		<-sent
		d.start()
		first := d.call("POST", "/disks", map[string]any{"size": 1}, key).want(201)
		again := d.call("POST", "/disks", map[string]any{"size": 1}, key).want(201)
		if string(first.body) != string(again.body) || again.header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("repeated: %s; first %s", again.body, first.body)
		}
		d.call("POST", "/disks", map[string]any{"size": 2}, key).problem(422, "idempotency-mismatch")
		if disks := as[[]openapi.Disk](d.call("GET", "/disks", nil).want(200)); len(disks) != i+1 {
			t.Fatalf("%d disks after %d keys: %+v", len(disks), i+1, disks)
		}
	}
	d.settled()
}

func TestARestoredDatabaseLosesNoNewerVM(t *testing.T) {
	d := startDaemon(t)
	d.template()
	d.create("old")
	d.do("old", "start")
	backup := filepath.Join(t.TempDir(), "backup.db")
	vmand := func(args ...string) {
		t.Helper()
		cmd := exec.Command(binary, args...)
		cmd.Env = append(os.Environ(), d.env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("vmand %q: %v\n%s", args, err, out)
		}
	}
	vmand("backup", backup)
	d.create("new")
	d.do("new", "start")
	disk := d.newDisk(0.5)
	d.stop()
	vmand("restore", backup)
	d.start()
	if v := d.vm("old"); v.State != "running" {
		t.Errorf("the old VM: %+v", v)
	}
	orphans := func() (types []string) {
		for _, i := range as[openapi.ObserverStatus](d.call("GET", "/observer/status", nil).want(200)).LastIssues {
			types = append(types, string(i.IssueType)+" "+i.ResourceID)
		}
		return types
	}
	eventually(t, 10*time.Second, "the orphans to be reported", func() error {
		got := strings.Join(orphans(), ", ")
		for _, want := range []string{"orphan_process new", "orphan_disk " + disk.ID} {
			if !strings.Contains(got, want) {
				return fmt.Errorf("reported: %s", got)
			}
		}
		return nil
	})
	pid := d.pid("new")
	if pid == 0 {
		t.Fatal("the newer VM's process is gone")
	}
	d.call("POST", "/observer/orphans/vms:new/adopt", map[string]any{"template_name": "small"}).want(200)
	d.call("POST", "/observer/orphans/disks:"+disk.ID+"/adopt", nil).want(200)
	if v := d.vm("new"); v.State != "running" || d.pid("new") != pid {
		t.Errorf("adopted: %+v, process %d; it was %d", v, d.pid("new"), pid)
	}
	d.attach(disk.ID, "new")
	why := d.call("GET", "/vms/new/why", nil).want(200)
	if text := string(why.body); !strings.Contains(text, "running") || !strings.Contains(text, "device_add") {
		t.Errorf("why: %s", text)
	}
}
