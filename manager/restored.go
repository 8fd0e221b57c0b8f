package manager

import (
	"context"
	"fmt"

	"vmand/vm"
)

// AfterRestore ends the operations that were in progress when a backup was taken,
// if the database has been restored since the last start. It must be called before
// [Engine.Recover].
//
// Recover treats open operations as after a crash: it deletes the files of a VM
// that was never finished and repeats a detach. After a restore that could destroy
// newer data: the VM may have been finished and used since the backup. AfterRestore
// changes records only; files without a record become orphans. It is idempotent.
func (e *Engine) AfterRestore(ctx context.Context) error {
	restored, err := e.store.Note(ctx, vm.RestoredNote)
	if err != nil || restored == "" {
		return err
	}
	open, err := e.store.Operations(ctx, vm.OperationFilter{Open: true}, vm.Page{})
	if err != nil {
		return fmt.Errorf("read the open operations: %w", err)
	}
	for _, op := range open {
		if err := e.endRestored(ctx, op); err != nil {
			return err
		}
	}
	disks, err := e.store.Disks(ctx, vm.DiskFilter{}, vm.Page{})
	if err != nil {
		return fmt.Errorf("read the disks: %w", err)
	}
	for _, d := range disks {
		if err := e.settleRestored(ctx, d); err != nil {
			return err
		}
	}
	e.log.Info("ended the operations of a restored database", "restored_at", restored, "op_count", len(open))
	return e.store.SetNote(ctx, vm.RestoredNote, "")
}

// endRestored records that op did not finish. Its idempotency key is removed, so
// that the same request can be repeated.
func (e *Engine) endRestored(ctx context.Context, op vm.Operation) error {
	op.State, op.Progress, op.Key, op.FinishedAt = vm.OpFailed, nil, "", now()
	op.Problem = &vm.Problem{
		Code:   vm.CodeInterrupted,
		Detail: "the operation was in progress in a backup that was restored",
		Hint:   "repeat the request",
	}
	op.Log = append(op.Log, vm.LogLine{
		At:      op.FinishedAt,
		Step:    "restored",
		Message: "the database was restored from a backup",
	})
	return e.apply(ctx, vm.Change{Operation: &op, Events: []vm.Event{operationEvent("operation.ended", op)}})
}

// settleRestored deletes the record of a disk that was being created and returns one that was
// being detached to its VM.
func (e *Engine) settleRestored(ctx context.Context, d vm.Disk) error {
	switch d.State {
	case vm.DiskCreating:
		return e.apply(ctx, vm.Change{DeleteDisk: d.ID})
	case vm.DiskDetaching:
		d.State, d.Reason = vm.DiskAttached, ""
		return e.apply(ctx, vm.Change{Disks: []vm.DiskUpdate{{From: vm.DiskDetaching, Disk: d}}})
	}
	return nil
}
