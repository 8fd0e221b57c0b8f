package manager

import (
	"context"
	"io"

	"vmand/vm"
)

// Consoles connects to the serial consoles of VMs.
type Consoles struct{ *Engine }

// Open joins the serial console of a running VM. It fails with [vm.CodeBusy] if another
// connection types and o does not take over.
func (s *Consoles) Open(ctx context.Context, id string, o vm.ConsoleOptions) (vm.Console, error) {
	if _, err := s.store.VM(ctx, id); err != nil {
		return nil, err
	}
	return s.driver.Console(ctx, id, o)
}

// Log returns the kept console output of a VM, running or not, from offset, and the offset of
// its end. A negative offset counts from the end.
func (s *Consoles) Log(ctx context.Context, id string, offset int64) (log io.ReadCloser, end int64, err error) {
	if _, err := s.store.VM(ctx, id); err != nil {
		return nil, 0, err
	}
	return s.driver.ConsoleLog(ctx, id, offset)
}
