package vm

import "time"

// A Template is a named size of virtual machine. It never changes once made.
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
	MaxRAMMiB = 4 << 20 // 4 TiB
)

// Version returns the version of the template, which never changes.
func (t Template) Version() Version { return Version{Seq: t.Seq} }
