package crash

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

// failBinary returns the path of a vmand that is built with fail points.
var failBinary = sync.OnceValues(func() (string, error) {
	if given := os.Getenv("VMAN_TEST_FAILPOINT_BINARY"); given != "" {
		return given, nil
	}
	file := harness.File("build", "vmand-failpoints")
	return file, harness.Build(file, "-tags", "failpoints")
})

const (
	// parallelDaemons is how many daemons are killed at the same time: most of the
	// time is spent waiting for processes and for the observer.
	parallelDaemons = 4
	// chainLength is how many points one daemon is killed at, unless its guests boot
	// Linux, which takes seconds: then it is one.
	chainLength = 5
)

// TestEveryOperationSurvivesAKillAtEverySeam kills the daemon at each seam of each
// operation and starts it again. Two passes of the observer later, everything must be
// settled, and it must be possible to repeat the request.
func TestEveryOperationSurvivesAKillAtEverySeam(t *testing.T) {
	if _, err := failBinary(); err != nil {
		t.Fatal(err)
	}
	var tried, passed atomic.Int64
	todo := make(chan *chain)
	var wg sync.WaitGroup
	for range parallelDaemons {
		wg.Go(func() {
			for c := range todo {
				t.Run(c.name, func(t *testing.T) {
					for _, point := range c.points {
						tried.Add(1)
						if c.survives(t, point) {
							passed.Add(1)
						}
					}
					c.finish()
				})
			}
		})
	}
	for _, c := range everyChain() {
		todo <- c
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
	call := regexp.MustCompile(`\bfailpoint\.Hit\((?:[^"\n]* \+ )?(?:"([^"]+)")?`)
	found := 0
	for _, file := range harness.GoFiles(t) {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, harness.File("failpoint")) {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllSubmatch(text, -1) {
			found++
			if name := string(m[1]); !known[name] && !slices.Contains(seams, name) {
				t.Errorf("%s: no operation is killed at %q", file, name)
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
	prepare func(d *harness.Daemon, x *target)
	behind  func(d *harness.Daemon, x target)
	request func(x target) (method, path string, body any)
	status  int // of the answer
	// done reports whether what was asked for is so; nil if it leaves no trace.
	done func(d *harness.Daemon, x target) bool
	// refused is the status and a part of the answer to a repetition of what is
	// done; 0 if it is done again.
	refused int
	why     string
	// untold: that it is done cannot be told afterwards, it may be recorded as
	// interrupted all the same.
	untold bool
	// orphan names what may be there without a record, if it is not done.
	orphan func(x target) string
}

func everyOperation() []operation {
	return slices.Concat(operations, networkOperations, imageOperations)
}

var seams = []string{".before-intent", ".after-intent", ".before-outcome", ".after-outcome"}

func (op *operation) isDone(d *harness.Daemon, x target) bool { return op.done != nil && op.done(d, x) }

func (op *operation) kind() string {
	kind, _, _ := strings.Cut(op.name, ",")
	return kind
}

// points returns the seams in the order in which they are reached. An operation whose
// outcome is recorded in the transaction of its intent has no seam after its act.
func (op *operation) points() []string {
	points := []string{op.kind() + seams[0], op.kind() + seams[1]}
	if op.once {
		return points
	}
	return append(append(points, op.inner...), op.kind()+seams[2], op.kind()+seams[3])
}

// A chain is a part of the points of an operation, at which one daemon is killed, one
// after the other.
type chain struct {
	operation
	points []string
	d      *harness.Daemon // nil before the first point, and after one that has failed
	n      int             // how many targets were made
}

// everyChain splits the matrix into chains, those that take longest first, so that
// none is left alone at the end.
func everyChain() []*chain {
	var long, short []*chain
	for _, op := range everyOperation() {
		list, length := &short, chainLength
		if op.guest != "" {
			list, length = &long, 1
		}
		for points := range slices.Chunk(op.points(), length) {
			*list = append(*list, &chain{operation: op, points: points})
		}
	}
	return slices.Concat(long, short)
}

// begin returns the daemon to kill. It is a new one if the last point has failed,
// because that may have left anything.
func (c *chain) begin(t *testing.T) *harness.Daemon {
	t.Helper()
	if c.d == nil {
		c.d = harness.NewDaemon(t, append(slices.Clone(c.env), "VMAN_OBSERVER_INTERVAL=250ms")...)
		c.d.Binary, _ = failBinary()
		if c.guest != "" {
			c.d.Env = append(c.d.Env, harness.BootDisk(c.guest))
		}
		if c.nat {
			c.d.Host = harness.NewNamespace(t, "host")
			c.d.Env = append(c.d.Env, "VMAN_NETWORK_MODE=bridge")
		}
		c.d.Start()
		c.d.CreateTemplate()
	}
	return c.d
}

// finish fails the test if anything is left of the points.
func (c *chain) finish() {
	if c.d != nil {
		c.d.DeleteAll()
		c.d.AssertEmpty()
	}
}

// survives kills the daemon at a point and reports whether all was well afterwards.
func (c *chain) survives(group *testing.T, point string) bool {
	d := c.begin(group)
	ok := group.Run(point, func(t *testing.T) {
		defer d.SetT(d.SetT(t))
		c.n++
		x := target{vm: fmt.Sprintf("vm-%d", c.n), n: c.n}
		if c.prepare != nil {
			c.prepare(d, &x)
		}
		d.Kill()
		if c.behind != nil {
			c.behind(d, x)
		}
		begun := time.Now().Truncate(time.Millisecond)
		dieAt(d, point, func() (harness.Answer, error) {
			method, path, body := c.request(x)
			return d.Try(method, path, body, harness.Wait)
		})
		d.Start()
		d.WaitPasses(2)
		c.check(d, x, point, begun)
		c.repeat(d, x)
		removeTarget(d, x)
	})
	if !ok {
		c.d = nil
	}
	return ok
}

// dieAt starts the daemon with a fail point and makes a request of which the
// daemon is to die.
func dieAt(d *harness.Daemon, point string, request func() (harness.Answer, error)) {
	d.T.Helper()
	env := d.Env
	d.Env = append(slices.Clone(env), "VMAN_FAILPOINT="+point)
	d.Start()
	d.Env = env
	if a, err := request(); err == nil {
		d.T.Fatalf("the daemon lives: %s was not reached, and the answer is %d\n%s", point, a.Status, a.Body)
	}
	d.WaitKilled()
}

// check looks at what the next daemon has made of it.
func (op *operation) check(d *harness.Daemon, x target, point string, begun time.Time) {
	t := d.T
	t.Helper()
	done := op.isDone(d, x)
	var orphans []string
	if op.orphan != nil {
		orphans = []string{op.orphan(x)}
		if recorded := d.Call("GET", "/"+orphans[0], nil).Status == 200; recorded || done && op.kind() == "orphan.delete" {
			orphans = nil
		}
	}
	for _, v := range d.Violations(orphans...) {
		t.Error(v)
	}
	var rows []openapi.Operation
	for _, row := range harness.As[[]openapi.Operation](d.Call("GET", "/operations?kind="+op.kind(), nil).Want(200)) {
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
func (op *operation) repeat(d *harness.Daemon, x target) {
	t := d.T
	t.Helper()
	done := op.isDone(d, x)
	method, path, body := op.request(x)
	a := d.Call(method, path, body, harness.Wait)
	if done && op.refused != 0 {
		if a.Status != op.refused || !strings.Contains(string(a.Body), op.why) {
			t.Errorf("%s, which is done, answered %d; want %d %q\n%s", a.Request, a.Status, op.refused, op.why, a.Body)
		}
		return
	}
	if a.Status != op.status {
		t.Errorf("%s, which is not done, answered %d; want %d\n%s", a.Request, a.Status, op.status, a.Body)
	}
	if op.done != nil && !op.done(d, x) {
		t.Errorf("%s answered %d and is not done", a.Request, a.Status)
	}
}

// removeTarget deletes a target, whatever has become of it.
func removeTarget(d *harness.Daemon, x target) {
	d.T.Helper()
	d.Call("DELETE", "/vms/"+x.vm, nil)
	d.Call("DELETE", "/networks/"+x.vm, nil)
	defer removeImages(d) // once nothing is made of them any more
	for _, disk := range harness.As[[]openapi.Disk](d.Call("GET", "/disks", nil).Want(200)) {
		d.Call("DELETE", "/disks/"+disk.ID, nil).Want(204)
	}
	for _, orphan := range []string{"vms:" + x.vm, "disks:" + x.disk} {
		if orphan != "disks:" {
			d.Call("POST", "/observer/orphans/"+orphan+"/terminate", nil)
			d.Call("POST", "/observer/orphans/"+orphan+"/delete", nil)
		}
	}
}

// removeImages deletes all images and looks whether anything is left.
func removeImages(d *harness.Daemon) {
	d.T.Helper()
	for name := range d.Census().Images {
		d.Call("DELETE", "/images/"+name, nil).Want(204)
	}
	for _, v := range d.Violations() {
		d.T.Error("at the end: " + v)
	}
}
