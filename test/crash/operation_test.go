package crash

import (
	"slices"
	"strings"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

// seams are the fail points of every operation, outside of its act.
var seams = []string{".before-intent", ".after-intent", ".before-outcome", ".after-outcome"}

// A target is the resource that an operation changes, and its dependent resources.
type target struct {
	vm, disk string // ids
	pid      int    // of the VM's QEMU
	n        int    // a unique number, from 1
	forward  string // the id of a port forward
	image    string // the name of an image
}

// A preparation creates a target.
type preparation = func(d *harness.Daemon, x *target)

// A requester returns the request of an operation.
type requester = func(x target) (method, path string, body any)

// A condition reports whether a change has been made.
type condition = func(d *harness.Daemon, x target) bool

// An operation is one kind of change in one situation.
type operation struct {
	name   string   // the kind, and the situation after a comma
	inner  []string // the seams inside of the act, in their order
	single bool     // the intent and the outcome are recorded in one transaction
	guest  string   // the variant of the guest that VMs boot; empty: none
	nat    bool     // the daemon has a namespace with bridges
	env    []string // added to the daemon's environment
	// prepare creates the target. The daemon is killed afterwards. Then tamper, unless it
	// is nil, changes the records.
	prepare preparation
	tamper  func(d *harness.Daemon, x target)
	request requester
	status  int // of the answer
	// done reports whether the change has been made. It is nil if nothing shows that.
	done condition
	// refused is the status of the answer to a repeated request after the change, and
	// refusal a part of the answer. If refused is 0, the request succeeds again.
	refused int
	refusal string
	// vague: nothing tells the next daemon whether the change has been made, so that the
	// operation may be recorded as interrupted although it has.
	vague bool
	// orphan returns the resource that may exist without a record if the change has not
	// been made.
	orphan func(x target) string
}

// everyOperation returns the operations of the matrix.
func everyOperation() []operation {
	return slices.Concat(operations, networkOperations, imageOperations)
}

func (op *operation) kind() string {
	kind, _, _ := strings.Cut(op.name, ",")
	return kind
}

// points returns the seams in the order in which they are reached. An operation whose
// outcome is recorded in the transaction of its intent has no seam after its act.
func (op *operation) points() []string {
	points := []string{op.kind() + seams[0], op.kind() + seams[1]}
	if op.single {
		return points
	}
	return append(append(points, op.inner...), op.kind()+seams[2], op.kind()+seams[3])
}

func (op *operation) isDone(d *harness.Daemon, x target) bool { return op.done != nil && op.done(d, x) }

// dieAt restarts the daemon with a fail point and sends a request that reaches it.
func dieAt(d *harness.Daemon, point string, request func() (harness.Answer, error)) {
	d.T.Helper()
	env := d.Env
	d.Env = append(slices.Clone(env), "VMAN_FAILPOINT="+point)
	d.Start()
	d.Env = env
	if a, err := request(); err == nil {
		d.T.Fatalf("vmand did not reach fail point %s; it answered %d\n%s", point, a.Status, a.Body)
	}
	d.WaitKilled()
}

// check compares the host and the record of the operation with the point at which the
// daemon was killed. begun is a time before the request.
func (op *operation) check(d *harness.Daemon, x target, point string, begun time.Time) {
	t := d.T
	t.Helper()
	done := op.isDone(d, x)
	for _, v := range d.Violations(op.orphans(d, x, done)...) {
		t.Error(v)
	}
	var records []openapi.Operation
	for _, record := range harness.Get[[]openapi.Operation](d, "/operations?kind="+op.kind()) {
		if !record.CreatedAt.Before(begun) {
			records = append(records, record)
		}
	}
	if point == op.kind()+seams[0] {
		if len(records) != 0 || done {
			t.Errorf("killed before the intent was recorded; change made: %t, operations: %+v", done, records)
		}
		return
	}
	if len(records) != 1 {
		t.Fatalf("the operations are %+v, want one", records)
	}
	r := records[0]
	interrupted := r.State == "failed" && r.Problem != nil && r.Problem.Code == "interrupted"
	switch {
	case r.State == "succeeded" && (done || op.done == nil):
	case interrupted && (!done || op.vague):
	default:
		t.Errorf("change made: %t, operation: %+v", done, r)
	}
	if (op.single || point == op.kind()+seams[3]) && r.State != "succeeded" {
		t.Errorf("killed after the outcome was recorded; operation: %+v", r)
	}
}

// orphans returns the resources that may exist without a record.
func (op *operation) orphans(d *harness.Daemon, x target, done bool) []string {
	if op.orphan == nil {
		return nil
	}
	orphan := op.orphan(x)
	recorded := d.Call("GET", "/"+orphan, nil).Status == 200
	if recorded || done && op.kind() == "orphan.delete" {
		return nil
	}
	return []string{orphan}
}

// repeat sends the request again, to a daemon without a fail point.
func (op *operation) repeat(d *harness.Daemon, x target) {
	t := d.T
	t.Helper()
	done := op.isDone(d, x)
	method, path, body := op.request(x)
	a := d.Call(method, path, body, harness.Wait)
	if done && op.refused != 0 {
		if a.Status != op.refused || !strings.Contains(string(a.Body), op.refusal) {
			t.Errorf("%s, repeated, answered %d, want %d and %q\n%s", a.Request, a.Status, op.refused, op.refusal, a.Body)
		}
		return
	}
	if a.Status != op.status {
		t.Errorf("%s, repeated, answered %d, want %d\n%s", a.Request, a.Status, op.status, a.Body)
	}
	if op.done != nil && !op.done(d, x) {
		t.Errorf("%s, repeated, answered %d but made no change", a.Request, a.Status)
	}
}

// removeTarget deletes a target and everything that was made of it, recorded or not.
func removeTarget(d *harness.Daemon, x target) {
	d.T.Helper()
	d.Call("DELETE", "/vms/"+x.vm, nil)
	d.Call("DELETE", "/networks/"+x.vm, nil)
	defer removeImages(d) // disks and VMs are made of them
	for _, disk := range harness.Get[[]openapi.Disk](d, "/disks") {
		d.Call("DELETE", "/disks/"+disk.ID, nil).Want(204)
	}
	for _, orphan := range []string{"vms:" + x.vm, "disks:" + x.disk} {
		if orphan != "disks:" {
			d.Call("POST", "/observer/orphans/"+orphan+"/terminate", nil)
			d.Call("POST", "/observer/orphans/"+orphan+"/delete", nil)
		}
	}
}

// removeImages deletes all images and fails the test if there are violations afterwards.
func removeImages(d *harness.Daemon) {
	d.T.Helper()
	for name := range d.Census().Images {
		d.Call("DELETE", "/images/"+name, nil).Want(204)
	}
	for _, v := range d.Violations() {
		d.T.Error("after the removal: " + v)
	}
}
