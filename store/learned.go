package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmand/vm"
)

// learn records an observation of a guest. It returns the new row of the VM, nil if
// nothing changed or the VM does not exist.
func learn(ctx context.Context, tx *transaction, l vm.Learned, now time.Time) (*vm.VM, error) {
	before, err := vmTable.row(ctx, tx, "id = ?", l.VMID)
	if errors.Is(err, errNoRow) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v := before
	if l.Reset {
		v.Boot, v.Learned = vm.Boot{}, nil
	}
	for _, mark := range vm.BootMarks {
		if at := v.Boot.At(mark); at.IsZero() {
			*at = *l.Boot.At(mark)
		}
	}
	if l.Addresses != nil {
		v.Learned = *l.Addresses
	}
	for _, a := range v.Learned {
		if !validLearned(a) {
			return nil, fmt.Errorf("VM %s: learned address %+v cannot be recorded", l.VMID, a)
		}
	}
	same, err := sameFacts(before, v)
	if same || err != nil {
		return nil, err
	}
	const query = `UPDATE vms SET boot = ?, learned = ?, updated_at = ?, revision = revision + 1 WHERE seq = ? RETURNING `
	v, err = vmTable.scan(tx.QueryRowxContext(ctx, query+vmTable.list,
		boot(v.Boot), learnedAddresses(v.Learned), instant(now), before.Seq))
	return &v, err
}

// sameFacts reports whether a and b have the same boot marks and learned addresses
// once they are recorded, which keeps only the milliseconds of times.
func sameFacts(a, b vm.VM) (bool, error) {
	bootA, err1 := boot(a.Boot).Value()
	bootB, err2 := boot(b.Boot).Value()
	learnedA, err3 := learnedAddresses(a.Learned).Value()
	learnedB, err4 := learnedAddresses(b.Learned).Value()
	return bootA == bootB && learnedA == learnedB, errors.Join(err1, err2, err3, err4)
}
