package manager

import (
	"context"
	"time"

	"vmand/vm"
)

// A verb is everything the engine knows of one kind of operation. Each stands beside
// its use case. TestEveryKindHasAVerb fails for a kind of operation without a verb and
// for a verb that leaves something unsaid.
type verb struct {
	kind    vm.Kind
	timeout time.Duration // of the act
	// claim says what happens to an operation that holds one of the resources.
	claim claim
	// preemptible operations are cancelled by a forced stop, a delete and a request
	// to cancel them.
	preemptible bool
	// edit is set if the operation changes what a VM is and not what it does: its
	// event is vm.updated and not vm.state.
	edit bool
	// cleanup removes or finishes what an operation that was cut short left behind. It
	// is called with the resource locked, before the resource is settled.
	cleanup func(context.Context, *Engine, vm.Operation) error
	// reached reports whether the goal of an operation that was cut short is met. It is
	// called with the resource locked, after the resource is settled.
	reached func(context.Context, *Engine, vm.Operation) (bool, error)
	// answer says what the answer to the request shows.
	answer vm.Answer
	// points are the fail points that the act can pass, in the manager and in the
	// driver, in order. Those of the engine itself are the same for all verbs.
	points []string
}

// allVerbs returns the verbs of all kinds of operations.
func allVerbs() []*verb {
	return []*verb{
		&templateCreate, &templateDelete,
		&vmCreate, &vmEdit, &vmDelete, &vmStart, &vmStop, &vmRestart, &vmPause, &vmResume, &vmReset, &vmNMI,
		&diskCreate, &diskDelete, &diskAttach, &diskDetach, &diskResize,
		&imageCreate, &imageUpload, &imageEdit, &imageDelete,
		&cdromAttach, &cdromEject, &cloudInitSet,
		&networkCreate, &networkUpdate, &networkDelete,
		&nicAttach, &nicDetach, &nicUpdate, &forwardAdd, &forwardRemove,
		&vmAdopt, &diskAdopt, &orphanTerminate, &orphanDelete,
	}
}

// FailPoints returns, for each kind of operation, the fail points that its act can
// pass, in order.
func FailPoints() map[vm.Kind][]string {
	points := map[vm.Kind][]string{}
	for _, v := range allVerbs() {
		points[v.kind] = v.points
	}
	return points
}

// Answer returns what the answer to the request of an operation of a kind shows.
func (s *Operations) Answer(kind vm.Kind) vm.Answer {
	if v := s.verbs[kind]; v != nil {
		return v.answer
	}
	return vm.AnswerOperation
}

// A request asks for one run of a verb.
type request struct {
	*verb
	on     []vm.Resource // locked together; the first is the one the operation is of
	reads  []vm.Resource // those of on that it only copies; see [holder]
	action action

	timeout     time.Duration // these three are the verb's unless the use case changes them
	claim       claim
	preemptible bool
}

// request returns the request that runs a on resources.
func (v *verb) request(a action, on ...vm.Resource) request {
	return request{verb: v, on: on, action: a, timeout: v.timeout, claim: v.claim, preemptible: v.preemptible}
}

// An action is one operation under way: the values its steps share. The engine calls
// its methods in their order, each once at most, from one goroutine at a time.
//
// An action that is not a [performer] is over when its intent is recorded.
type action interface {
	// intent looks at the resources, asks the state machine and returns the change to
	// record before anything is done. The resources are locked.
	intent(context.Context, *run) (vm.Change, error)
}

// A performer is an action that does something besides recording its intent.
type performer interface {
	action
	// act does the work and returns the change to record after it.
	act(context.Context, *run) (vm.Change, error)
	// truth looks at the host and returns the change to record when act, or the
	// recording of its outcome, has failed.
	truth(context.Context) (vm.Change, error)
}

// A releaser is an action that reserves something: release is called once nothing more
// will be recorded, also after an error.
type releaser interface{ release() }

// leavesNothing is the cleanup of verbs whose resources settle by themselves.
func leavesNothing(context.Context, *Engine, vm.Operation) error { return nil }

// neverKnown is the answer to reached of single-step kinds: nothing on the host shows
// whether they finished.
func neverKnown(context.Context, *Engine, vm.Operation) (bool, error) { return false, nil }

// recordedWithIntent is the answer to reached of kinds whose goal is the record that
// their intent wrote.
func recordedWithIntent(context.Context, *Engine, vm.Operation) (bool, error) { return true, nil }

// vmReaches returns the reached of verbs that bring a VM to a state.
func vmReaches(want vm.State) func(context.Context, *Engine, vm.Operation) (bool, error) {
	return func(ctx context.Context, e *Engine, op vm.Operation) (bool, error) {
		v, err := e.store.VM(ctx, op.Resource.ID)
		return err == nil && v.State == want, ignoreNotFound(err)
	}
}

// exists returns the reached of verbs that make (true) or delete (false) a resource.
func exists(want bool) func(context.Context, *Engine, vm.Operation) (bool, error) {
	return func(ctx context.Context, e *Engine, op vm.Operation) (bool, error) {
		recorded, err := e.recorded(ctx, op.Resource)
		return err == nil && recorded == want, err
	}
}
