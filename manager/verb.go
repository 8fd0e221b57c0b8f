package manager

import (
	"context"
	"time"

	"vmand/vm"
)

// A verb holds the properties of one kind of operation. It is declared in the file of its
// use case. TestEveryKindHasAVerb fails for a kind of operation without a verb and for a
// verb without a required field.
type verb struct {
	kind    vm.Kind
	timeout time.Duration // of the act
	// claim determines the treatment of an operation that holds one of the resources.
	claim claim
	// preemptible operations are cancelled by a forced stop, a delete and a request
	// to cancel them.
	preemptible bool
	// edit is true if the operation changes the configuration of a VM and not its state:
	// its event is then vm.updated and not vm.state.
	edit bool
	// cleanup removes or finishes the partial results of an interrupted operation. It is
	// called with the resource locked, before the resource is settled.
	cleanup func(context.Context, *Engine, vm.Operation) error
	// reached reports whether an interrupted operation has reached its goal. It is
	// called with the resource locked, after the resource is settled.
	reached func(context.Context, *Engine, vm.Operation) (bool, error)
	// answer is the content of the answer to the request.
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

// Answer returns the content of the answer to a request for an operation of a kind.
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

// An action is one running operation, with the values that its steps share. The engine
// calls its methods in order, each at most once, from one goroutine at a time.
//
// An action that is not a [performer] ends when its intent is recorded.
type action interface {
	// intent reads the resources, asks the state machine and returns the change to record
	// before the action acts. It is called with the resources locked.
	intent(context.Context, *run) (vm.Change, error)
}

// A performer is an action that does more than record its intent.
type performer interface {
	action
	// act does the work and returns the change to record after it.
	act(context.Context, *run) (vm.Change, error)
	// truth observes the host and returns the change to record after act, or the recording
	// of its outcome, has failed.
	truth(context.Context) (vm.Change, error)
}

// A releaser is an action with reservations. release is called after the last change is
// recorded, also after an error.
type releaser interface{ release() }

// leavesNothing is the cleanup of verbs that need none: settling their resources is enough.
func leavesNothing(context.Context, *Engine, vm.Operation) error { return nil }

// neverKnown is reached for single-step kinds: nothing on the host shows whether they
// finished.
func neverKnown(context.Context, *Engine, vm.Operation) (bool, error) { return false, nil }

// recordedWithIntent is reached for kinds that have the goal of changing a record, which the
// intent has done.
func recordedWithIntent(context.Context, *Engine, vm.Operation) (bool, error) { return true, nil }

// vmReaches returns reached for verbs that bring a VM to a state.
func vmReaches(want vm.State) func(context.Context, *Engine, vm.Operation) (bool, error) {
	return func(ctx context.Context, e *Engine, op vm.Operation) (bool, error) {
		v, err := e.store.VM(ctx, op.Resource.ID)
		return err == nil && v.State == want, ignoreNotFound(err)
	}
}

// exists returns reached for verbs that create (true) or delete (false) a resource.
func exists(want bool) func(context.Context, *Engine, vm.Operation) (bool, error) {
	return func(ctx context.Context, e *Engine, op vm.Operation) (bool, error) {
		recorded, err := e.recorded(ctx, op.Resource)
		return err == nil && recorded == want, err
	}
}
