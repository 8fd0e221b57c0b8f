package store

import (
	"context"

	"vmand/vm"
)

// Seed returns the cloud-init data of a VM.
func (s *Store) Seed(ctx context.Context, vmID string) (vm.Seed, error) {
	const query = `SELECT spec, instance FROM seeds WHERE vm_id = ?`
	return one(ctx, s, "cloud-init data of VM", vmID, query, func(row scanner) (vm.Seed, error) {
		d := vm.Seed{VMID: vmID}
		var spec string
		if err := row.Scan(&spec, &d.Instance); err != nil {
			return d, err
		}
		return d, decode(spec, &d.CloudInit)
	})
}

// putSeed inserts the seed of a VM, or replaces it.
func putSeed(ctx context.Context, tx *transaction, d vm.Seed) error {
	spec, err := encode(d.CloudInit)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO seeds (vm_id, spec, instance) VALUES (?, ?, ?)
		ON CONFLICT (vm_id) DO UPDATE SET spec = excluded.spec, instance = excluded.instance`, d.VMID, spec, d.Instance)
	if dangling(err) {
		return vm.NotFound("VM", d.VMID)
	}
	return err
}
