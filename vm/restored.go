package vm

import (
	"context"
	"fmt"
)

// RestoredNote is the note with the time at which the database was restored from a
// backup. It is empty once [Manager.AfterRestore] has dealt with the restore.
const RestoredNote = "restored"

// AfterRestore ends the operations that were in progress when a backup was taken,
// if the database has been restored since the last start. It must be called before
// [Manager.Recover].
//
// Recover treats open operations as after a crash: it deletes the files of a VM
// that was never finished and repeats a detach. After a restore that could destroy
// newer data: the VM may have been finished and used since the backup. AfterRestore
// changes records only; files without a record become orphans. It is idempotent.
func (m *Manager) AfterRestore(ctx context.Context) error {
	restored, err := m.store.Note(ctx, RestoredNote)
	if err != nil || restored == "" {
		return err
	}
	open, err := m.store.Operations(ctx, OperationFilter{Open: true}, Page{})
	if err != nil {
		return fmt.Errorf("read the open operations: %w", err)
	}
	for _, op := range open {
		if err := m.endRestored(ctx, op); err != nil {
			return err
		}
	}
	disks, err := m.store.Disks(ctx, DiskFilter{}, Page{})
	if err != nil {
		return fmt.Errorf("read the disks: %w", err)
	}
	for _, d := range disks {
		if err := m.settleRestored(ctx, d); err != nil {
			return err
		}
	}
	m.log.Info("ended the operations of a restored database", "restored_at", restored, "operations", len(open))
	return m.store.SetNote(ctx, RestoredNote, "")
}

// endRestored records that op did not finish. Its idempotency key is removed, so
// that the same request can be repeated.
func (m *Manager) endRestored(ctx context.Context, op Operation) error {
	op.State, op.Progress, op.Key, op.FinishedAt = OpFailed, nil, "", now()
	op.Problem = &Problem{
		Code:   CodeInterrupted,
		Detail: "the operation was in progress in a backup that was restored",
		Hint:   "repeat the request",
	}
	op.Log = append(op.Log, LogLine{
		At:      op.FinishedAt,
		Step:    "restored",
		Message: "the database was restored from a backup",
	})
	return m.apply(ctx, Change{Operation: &op, Events: []Event{operationEvent("operation.ended", op)}})
}

// settleRestored forgets a disk that was being created and returns one that was
// being detached to its VM.
func (m *Manager) settleRestored(ctx context.Context, d Disk) error {
	switch d.State {
	case DiskCreating:
		return m.apply(ctx, Change{DeleteDisk: d.ID})
	case DiskDetaching:
		d.State, d.Reason = DiskAttached, ""
		return m.apply(ctx, Change{Disks: []DiskUpdate{{From: DiskDetaching, Disk: d}}})
	}
	return nil
}
