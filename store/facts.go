package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"vmand/vm"
)

// facts is what was seen of a VM's guest, as it is kept: packed, the times of
// its boot and then the addresses that were learned, NULL for nothing.
type facts struct{ vm *vm.VM }

// bootMarks are the times of a boot as they are kept. New ones are added at the
// end; a record from before there were the last ones ends without them.
var bootMarks = [...]vm.BootMark{vm.BootSpawned, vm.BootMonitor, vm.BootSerial, vm.BootDHCP, vm.BootTCP, vm.BootAgent,
	vm.BootCloudInit, vm.BootCloudInitFailed}

func packFacts(v *vm.VM) text {
	if v.Boot == (vm.Boot{}) && len(v.Learned) == 0 {
		return ""
	}
	var b []byte
	for i, mark := range bootMarks {
		end := byte(',')
		if i == len(bootMarks)-1 {
			end = ';'
		}
		b = appendTime(b, *v.Boot.At(mark), end)
	}
	for _, l := range v.Learned {
		b = appendNumber(b, int64(l.Slot), ',')
		b = appendAddr(b, l.IP, ',')
		b = appendWord(b, l.Source, ',')
		b = appendTime(b, l.At, ';')
	}
	return text(b)
}

// Scan implements [sql.Scanner].
func (f *facts) Scan(src any) error {
	f.vm.Boot, f.vm.Learned = vm.Boot{}, nil
	c := unpack(src)
	if c.more() {
		f.vm.Boot = c.boot()
	}
	for c.more() {
		f.vm.Learned = append(f.vm.Learned, vm.LearnedAddress{
			Slot: int(c.number(',', vm.MaxNICs-1)), IP: c.addr(','), Source: oneOf(&c, ',', sources), At: c.time(';')})
	}
	return c.err
}

// boot returns the record of a boot's times.
func (c *cursor) boot() (b vm.Boot) {
	last := min(strings.Count(c.rest[:strings.IndexByte(c.rest, ';')+1], ","), len(bootMarks)-1)
	for _, mark := range bootMarks[:last] {
		*b.At(mark) = c.time(',')
	}
	*b.At(bootMarks[last]) = c.time(';')
	return b
}

// learn records what was seen of a guest and reports whether anything is new.
// Of a VM that is gone it records nothing.
func learn(ctx context.Context, tx *sqlx.Tx, l vm.Learned, now time.Time) (bool, error) {
	v := vm.VM{ID: l.VMID}
	err := tx.QueryRowxContext(ctx, `SELECT facts FROM vms WHERE id = ?`, l.VMID).Scan(&facts{&v})
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	before := packFacts(&v)
	if l.Reset {
		v.Boot, v.Learned = vm.Boot{}, nil
	}
	for _, mark := range bootMarks {
		if at := v.Boot.At(mark); at.IsZero() {
			*at = *l.Boot.At(mark)
		}
	}
	if l.Addresses != nil {
		v.Learned = *l.Addresses
	}
	after := packFacts(&v)
	if after == before {
		return false, nil
	}
	if err := (&facts{&vm.VM{}}).Scan(string(after)); err != nil {
		return false, fmt.Errorf("what was learned of vm %s, %+v, cannot be recorded: %w", l.VMID, l, err)
	}
	return true, change(ctx, tx, `UPDATE vms SET facts = ?, updated_at = ?, revision = revision + 1 WHERE id = ?`, after, instant(now), l.VMID)
}
