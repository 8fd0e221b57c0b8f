package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmand/openapi"
	"vmand/test/harness"
)

// wipe removes every file of the runtime directory, as a clean-up of /run does.
func wipe(t *testing.T, d *harness.Daemon) {
	t.Helper()
	entries, err := os.ReadDir(d.RuntimeDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(d.RuntimeDir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

// hasIssue reports whether the observer has an issue of a type about a resource.
func hasIssue(d *harness.Daemon, kind, resource string) bool {
	issues := harness.Get[openapi.ObserverStatus](d, "/observer/status").LastIssues
	return slices.ContainsFunc(issues, func(i openapi.Issue) bool {
		return string(i.IssueType) == kind && i.ResourceID == resource
	})
}

func TestARunningVMSurvivesACleanedRuntimeDirectory(t *testing.T) {
	d := harness.StartDaemon(t)
	d.CreateTemplate()
	for _, id := range []string{"a", "b", "ghost"} {
		d.CreateVM(id)
		d.Action(id, "start")
	}
	pids := []int{d.VMPID("a"), d.VMPID("b"), d.VMPID("ghost")}
	t.Cleanup(func() { // the pidfiles by which the harness finds them are gone
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
	})
	wipe(t, d)
	d.WaitPasses(3)
	if !hasIssue(d, "runtime_drift", "a") {
		t.Error("a running daemon does not report the lost files")
	}
	d.Kill()
	d.SQL("DELETE FROM vms WHERE id = 'ghost'") // an orphan
	d.Start()
	d.WaitPasses(3)
	for _, id := range []string{"a", "b"} {
		if v := d.VM(id); v.State != "running" {
			t.Errorf("VM %s is %s (%v)", id, v.State, v.StateReason)
		}
		if !hasIssue(d, "runtime_drift", id) {
			t.Errorf("the next daemon does not report the lost files of VM %s", id)
		}
	}
	why := harness.Get[openapi.Why](d, "/vms/a/why")
	if !strings.Contains(strings.Join(why.Words, " "), `stop with "force": true`) {
		t.Errorf("why does not say what works: %q", why.Words)
	}
	if !hasIssue(d, "orphan_process", "ghost") {
		t.Error("the process without a record is not reported")
	}
	d.Call("POST", "/observer/orphans/vms:ghost/terminate", nil).Want(200)
	d.ForceStop("a")
	d.Action("a", "start")
	d.ForceStop("b")
	d.Call("DELETE", "/vms/b", nil).Want(204)
	d.ForceStop("a")
	for _, pid := range pids {
		if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(args) > 0 { // no zombie
			t.Errorf("process %d lives", pid)
		}
	}
}
