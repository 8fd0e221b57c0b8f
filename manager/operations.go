package manager

import (
	"context"
	"fmt"

	"vmand/vm"
)

// Operations waits for operations and cancels them.
type Operations struct{ *Engine }

// Wait waits until the operation has ended and returns it. If ctx is done first, it returns
// the unfinished operation without an error.
func (s *Operations) Wait(ctx context.Context, id string) (vm.Operation, error) {
	r := s.underWay(id)
	if r == nil {
		return s.store.Operation(context.WithoutCancel(ctx), id)
	}
	select {
	case <-r.done:
	case <-ctx.Done():
	}
	return r.snapshot(), nil
}

// underWay returns the run of an operation; nil if it is over or unknown.
func (s *Operations) underWay(id string) *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[id]
}

// Cancel asks an operation to end and waits up to cancelPatience for it. It fails with
// [vm.CodeNotCancellable] if the operation cannot be cancelled or is over.
func (s *Operations) Cancel(ctx context.Context, id string) (vm.Operation, error) {
	r := s.underWay(id)
	if r == nil {
		op, err := s.store.Operation(ctx, id)
		if err != nil {
			return vm.Operation{}, err
		}
		return op, overFault(op)
	}
	if op := r.snapshot(); op.State.Ended() {
		return op, overFault(op)
	}
	if !r.holder.preemptible {
		return r.snapshot(), &vm.Fault{
			Code: vm.CodeNotCancellable, OperationID: id,
			Detail: fmt.Sprintf("the %s cannot be cancelled", r.holder.what),
		}
	}
	r.holder.cancel(&vm.Fault{Code: vm.CodeCancelled, Detail: "cancelled by " + vm.CallerOf(ctx).Name})
	ctx, stop := context.WithTimeout(ctx, cancelPatience)
	defer stop()
	op, err := s.Wait(ctx, id)
	if err == nil && (op.State == vm.OpSucceeded || op.State == vm.OpFailed) {
		err = overFault(op)
	}
	return op, err
}

func overFault(op vm.Operation) *vm.Fault {
	return &vm.Fault{
		Code: vm.CodeNotCancellable, OperationID: op.ID,
		Detail: fmt.Sprintf("operation %s is over: its state is %s", op.ID, op.State),
	}
}
