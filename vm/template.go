package vm

import "time"

// A Template is a named VM size. It never changes after its creation.
type Template struct {
	Seq       int64 // order of creation, unique; set by the store
	Name      string
	CPUCount  int // vCPUs
	RAMMiB    int
	CreatedAt time.Time
}

// Limits of a template.
const (
	MaxCPUs   = 256
	MaxRAMMiB = 4 << 20 // 4 TiB in MiB
)

// Version returns the version of t, which never changes.
func (t Template) Version() Version { return Version{Seq: t.Seq} }
