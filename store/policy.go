package store

import (
	"database/sql/driver"
	"time"

	"vmand/vm"
)

// policy is the restart policy, autostart and shutdown of a VM, stored as a JSON object, NULL for
// the defaults. A column for each of its members would make a list of VMs a tenth
// slower to read.
type policy struct{ vm *vm.VM }

type policyJSON struct {
	Restart      vm.RestartPolicy `json:"restart,omitempty"`
	Restarts     int              `json:"restarts,omitempty"`
	RestartAt    int64            `json:"restart_at,omitempty"` // Unix milliseconds
	Autostart    bool             `json:"autostart,omitempty"`
	Order        int              `json:"autostart_order,omitempty"`
	DelaySeconds int64            `json:"autostart_delay_s,omitempty"`

	ShutdownSeconds int64             `json:"shutdown_timeout_s,omitempty"`
	ShutdownAction  vm.ShutdownAction `json:"shutdown_action,omitempty"`
}

// Value implements [driver.Valuer].
func (p policy) Value() (driver.Value, error) {
	a := p.vm.Autostart
	j := policyJSON{Restart: p.vm.Restart, Restarts: p.vm.Restarts,
		Autostart: a.Enabled, Order: a.Order, DelaySeconds: int64(a.Delay / time.Second),
		ShutdownSeconds: int64(p.vm.Shutdown.Timeout / time.Second), ShutdownAction: p.vm.Shutdown.Action}
	if j.Restart == vm.RestartNever {
		j.Restart = ""
	}
	if !p.vm.RestartAt.IsZero() {
		j.RestartAt = p.vm.RestartAt.UnixMilli()
	}
	if j == (policyJSON{}) {
		return nil, nil
	}
	return encode(j)
}

// Scan implements [sql.Scanner].
func (p *policy) Scan(src any) error {
	v := p.vm
	v.Restart, v.Restarts, v.RestartAt, v.Autostart = vm.RestartNever, 0, time.Time{}, vm.Autostart{}
	v.Shutdown = vm.Shutdown{}
	if src == nil {
		return nil
	}
	var j policyJSON
	if err := decode(src, &j); err != nil {
		return err
	}
	if j.Restart != "" {
		v.Restart = j.Restart
	}
	v.Restarts = j.Restarts
	if j.RestartAt != 0 {
		v.RestartAt = time.UnixMilli(j.RestartAt).UTC()
	}
	v.Autostart = vm.Autostart{Enabled: j.Autostart, Order: j.Order, Delay: time.Duration(j.DelaySeconds) * time.Second}
	v.Shutdown = vm.Shutdown{Timeout: time.Duration(j.ShutdownSeconds) * time.Second, Action: j.ShutdownAction}
	return nil
}
