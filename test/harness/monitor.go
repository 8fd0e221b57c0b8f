package harness

import (
	"context"
	"path/filepath"
	"time"

	"vmand/qemu/qmp"
)

// HMP runs a command of QEMU's human monitor and returns what it prints,
// and false if QEMU does not answer, because it ends just now.
func (d *Daemon) HMP(id, command string) (out string, ok bool) {
	d.T.Helper()
	ctx, cancel := context.WithTimeout(d.T.Context(), 10*time.Second)
	defer cancel()
	monitor, err := qmp.Dial(ctx, filepath.Join(d.RuntimeDir, id+".op-qmp"))
	if err != nil {
		return "", false
	}
	defer monitor.Close()
	err = monitor.Execute(ctx, "human-monitor-command", map[string]any{"command-line": command}, &out)
	return out, err == nil
}
