package harness

import (
	"context"
	"path/filepath"
	"time"

	"vmand/qemu/qmp"
)

// Monitor connects to the monitor of a VM's QEMU that is reserved for operators.
func (d *Daemon) Monitor(ctx context.Context, id string) (*qmp.Conn, error) {
	return qmp.Dial(ctx, d.MonitorPath(id))
}

// MonitorPath returns the socket of that monitor.
func (d *Daemon) MonitorPath(id string) string {
	return filepath.Join(d.RuntimeDir, id+".op-qmp")
}

// HMP runs a command of QEMU's human monitor and returns its output, and false if QEMU
// does not answer because it is about to end.
func (d *Daemon) HMP(id, command string) (out string, ok bool) {
	d.T.Helper()
	ctx, cancel := context.WithTimeout(d.T.Context(), 10*time.Second)
	defer cancel()
	monitor, err := d.Monitor(ctx, id)
	if err != nil {
		return "", false
	}
	defer monitor.Close()
	err = monitor.Execute(ctx, "human-monitor-command", map[string]any{"command-line": command}, &out)
	return out, err == nil
}
