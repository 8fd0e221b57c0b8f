package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmand/openapi"
)

// failBinary returns a vmand that is built with fail points.
var failBinary = sync.OnceValues(func() (string, error) {
	if given := os.Getenv("VMAN_TEST_FAILPOINT_BINARY"); given != "" {
		return given, nil
	}
	file, err := filepath.Abs(filepath.Join("..", "build", "vmand-failpoints"))
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-tags", "failpoints", "-o", file, "vmand")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build vmand with fail points: %w\n%s", err, out)
	}
	return file, nil
})

// parallelDaemons is how many fail points are tried at the same time: most of
// the time is spent waiting, for processes and for the observer.
const parallelDaemons = 4

// TestEveryOperationSurvivesAKillAtEverySeam has the daemon killed at each seam
// of each operation, starts it again, and expects that two passes of the
// observer later everything is settled and the request can be repeated.
func TestEveryOperationSurvivesAKillAtEverySeam(t *testing.T) {
	if _, err := failBinary(); err != nil {
		t.Fatal(err)
	}
	var tried, passed atomic.Int64
	todo := make(chan operation)
	var wg sync.WaitGroup
	for range parallelDaemons {
		wg.Go(func() {
			for op := range todo {
				t.Run(op.name, func(t *testing.T) {
					for _, point := range op.points() {
						tried.Add(1)
						if op.survives(t, point) {
							passed.Add(1)
						}
					}
					op.finish()
				})
			}
		})
	}
	for _, op := range everyOperation() {
		todo <- op
	}
	close(todo)
	wg.Wait()
	fmt.Printf("fail points: %d pairs, %d passed\n", tried.Load(), passed.Load())
}

// TestEveryFailPointIsInTheMatrix looks for those in the source.
func TestEveryFailPointIsInTheMatrix(t *testing.T) {
	known := map[string]bool{}
	for _, op := range everyOperation() {
		for _, point := range op.points() {
			known[point] = true
		}
	}
	call := regexp.MustCompile(`\bfailpoint\.Hit\((?:string\(c\.kind\) \+ )?"([^"]+)"\)`)
	found := 0
	for _, dir := range []string{"vm", "qemu", "store", "server", "network", "observer"} {
		files, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range call.FindAllSubmatch(text, -1) {
				found++
				if name := string(m[1]); !known[name] && !slices.Contains(seams, name) {
					t.Errorf("%s: no operation is killed at %s", file, name)
				}
			}
		}
	}
	if found < 10 {
		t.Errorf("found only %d fail points", found)
	}
}

// A target is what an operation is done to.
type target struct {
	vm, disk string // their ids
	pid      int    // of the VM's QEMU
	n        int    // of the pair, from 1
	forward  string // id of a port forward
	image    string // name of an image
}

// An operation is one kind of change in one situation, and where in it the
// daemon is killed.
type operation struct {
	name  string   // the kind, and the situation behind a comma
	inner []string // the seams inside the act that it reaches
	once  bool     // recording the intent is all there is to do: there is no outcome
	guest string   // the variant that VMs boot; empty: none
	nat   bool     // the daemon has a host of its own, with bridges
	env   []string // of the daemon, besides the usual
	// prepare makes what is needed; the daemon is killed afterwards, and behind,
	// if there is one, changes the records meanwhile.
	prepare func(d *daemon, x *target)
	behind  func(d *daemon, x target)
	request func(x target) (method, path string, body any)
	status  int // of the answer
	// done reports whether what was asked for is so; nil if it leaves no trace.
	done func(d *daemon, x target) bool
	// refused is the status and a part of the answer to a repetition of what is
	// done; 0 if it is done again.
	refused int
	why     string
	// untold: that it is done cannot be told afterwards, it may be recorded as
	// interrupted all the same.
	untold bool
	// orphan names what may be there without a record, if it is not done.
	orphan func(x target) string

	d *daemon
	n int
}

func everyOperation() []operation {
	return slices.Concat(operations, networkOperations, imageOperations)
}

var seams = []string{".before-intent", ".after-intent", ".before-outcome", ".after-outcome"}

func (op *operation) isDone(d *daemon, x target) bool { return op.done != nil && op.done(d, x) }

func (op *operation) kind() string {
	kind, _, _ := strings.Cut(op.name, ",")
	return kind
}

// points lists the seams in the order in which they are reached. What is
// recorded in one transaction with its intent has no outcome of its own.
func (op *operation) points() []string {
	points := []string{op.kind() + seams[0], op.kind() + seams[1]}
	if op.once {
		return points
	}
	return append(append(points, op.inner...), op.kind()+seams[2], op.kind()+seams[3])
}

// begin returns the daemon that runs and can be killed, a new one if the last
// pair has failed and may have left anything.
func (op *operation) begin(t *testing.T) *daemon {
	t.Helper()
	if op.d == nil {
		op.d = newDaemon(t, append(op.env, "VMAN_OBSERVER_INTERVAL=250ms")...)
		op.d.binary, _ = failBinary()
		if op.guest != "" {
			op.d.env = append(op.d.env, bootDisk(op.guest))
		}
		if op.nat {
			op.d.host = newNamespace(t, "host")
			op.d.env = append(op.d.env, "VMAN_NETWORK_MODE=bridge")
		}
		op.d.start()
		op.d.template()
	}
	return op.d
}

// finish makes sure that nothing is left of all the pairs.
func (op *operation) finish() {
	if op.d != nil {
		op.d.clean()
		op.d.nothingLeft()
	}
}

// survives kills the daemon at a seam. It reports whether all was well.
func (op *operation) survives(group *testing.T, point string) bool {
	d := op.begin(group)
	ok := group.Run(point, func(t *testing.T) {
		defer d.tells(d.tells(t))
		op.n++
		x := target{vm: fmt.Sprintf("vm-%d", op.n), n: op.n}
		if op.prepare != nil {
			op.prepare(d, &x)
		}
		d.kill()
		if op.behind != nil {
			op.behind(d, x)
		}
		begun := time.Now().Truncate(time.Millisecond)
		d.diesAt(point, func() (answer, error) {
			method, path, body := op.request(x)
			return d.try(method, path, body, wait)
		})
		d.start()
		d.passes(2)
		op.check(d, x, point, begun)
		op.repeat(d, x)
		d.remove(x)
	})
	if !ok {
		op.d = nil
	}
	return ok
}

// tells makes t the test that the daemon's failures are of, and returns the one
// before.
func (d *daemon) tells(t testing.TB) testing.TB {
	before := d.t
	d.t = t
	if d.host != nil {
		d.host.t = t
	}
	d.client.Transport.(*checked).t = t
	return before
}

// diesAt starts the daemon with a fail point and makes a request of which the
// daemon is to die.
func (d *daemon) diesAt(point string, request func() (answer, error)) {
	d.t.Helper()
	env := d.env
	d.env = append(slices.Clone(env), "VMAN_FAILPOINT="+point)
	d.start()
	d.env = env
	if a, err := request(); err == nil {
		d.t.Fatalf("the daemon lives: %s was not reached, and the answer is %d\n%s", point, a.status, a.body)
	}
	select {
	case err := <-d.exited:
		if err == nil || err.Error() != "signal: killed" {
			d.t.Fatalf("vmand ended with %v at %s", err, point)
		}
		d.cmd = nil
	case <-time.After(10 * time.Second):
		d.t.Fatalf("the daemon did not die at %s", point)
	}
}

// check looks at what the next daemon has made of it.
func (op *operation) check(d *daemon, x target, point string, begun time.Time) {
	t := d.t
	t.Helper()
	done := op.isDone(d, x)
	var orphans []string
	if op.orphan != nil {
		orphans = []string{op.orphan(x)}
		if recorded := d.call("GET", "/"+orphans[0], nil).status == 200; recorded || done && op.kind() == "orphan.delete" {
			orphans = nil
		}
	}
	for _, v := range d.violations(orphans...) {
		t.Error(v)
	}
	var rows []openapi.Operation
	for _, row := range as[[]openapi.Operation](d.call("GET", "/operations?kind="+op.kind(), nil).want(200)) {
		if !row.CreatedAt.Before(begun) {
			rows = append(rows, row)
		}
	}
	if point == op.kind()+seams[0] {
		if len(rows) != 0 || done {
			t.Errorf("killed before the intent was recorded, there are the operations %+v, done: %t", rows, done)
		}
		return
	}
	if len(rows) != 1 {
		t.Fatalf("the operation's rows are %+v", rows)
	}
	row := rows[0]
	switch {
	case row.State == "succeeded" && (done || op.done == nil):
	case row.State == "failed" && row.Problem != nil && row.Problem.Code == "interrupted" && (!done || op.untold):
	default:
		t.Errorf("done: %t; the operation is %+v", done, row)
	}
	if (op.once || point == op.kind()+seams[3]) && row.State != "succeeded" {
		t.Errorf("killed after the outcome was recorded, the operation is %+v", row)
	}
}

// repeat makes the request again, of a daemon that lives.
func (op *operation) repeat(d *daemon, x target) {
	t := d.t
	t.Helper()
	done := op.isDone(d, x)
	method, path, body := op.request(x)
	a := d.call(method, path, body, wait)
	if done && op.refused != 0 {
		if a.status != op.refused || !strings.Contains(string(a.body), op.why) {
			t.Errorf("%s, which is done, answered %d; want %d %q\n%s", a.what, a.status, op.refused, op.why, a.body)
		}
		return
	}
	if a.status != op.status {
		t.Errorf("%s, which is not done, answered %d; want %d\n%s", a.what, a.status, op.status, a.body)
	}
	if op.done != nil && !op.done(d, x) {
		t.Errorf("%s answered %d and is not done", a.what, a.status)
	}
}

// remove deletes a target, whatever has become of it.
func (d *daemon) remove(x target) {
	d.t.Helper()
	d.call("DELETE", "/vms/"+x.vm, nil)
	d.call("DELETE", "/networks/"+x.vm, nil)
	defer d.noImages() // once nothing is made of them any more
	for _, disk := range as[[]openapi.Disk](d.call("GET", "/disks", nil).want(200)) {
		d.call("DELETE", "/disks/"+disk.ID, nil).want(204)
	}
	for _, orphan := range []string{"vms:" + x.vm, "disks:" + x.disk} {
		if orphan != "disks:" {
			d.call("POST", "/observer/orphans/"+orphan+"/terminate", nil)
			d.call("POST", "/observer/orphans/"+orphan+"/delete", nil)
		}
	}
}

// noImages deletes all images and looks whether anything is left.
func (d *daemon) noImages() {
	d.t.Helper()
	for name := range d.census().images {
		d.call("DELETE", "/images/"+name, nil).want(204)
	}
	for _, v := range d.violations() {
		d.t.Error("at the end: " + v)
	}
}
