package vm

import (
	"fmt"
	"time"
)

// A Template is a named VM size. It never changes after its creation.
type Template struct {
	Seq       int64 // order of creation, unique; set by the store
	Name      string
	CPUCount  int // vCPUs
	RAMMiB    int
	CreatedAt time.Time
}

// Limits of a template, on any host.
const (
	MaxCPUs   = 256
	MinRAMMiB = 16      // no guest needs less; a smaller number is probably one of GiB
	MaxRAMMiB = 4 << 20 // 4 TiB in MiB
)

// Version returns the version of t, which never changes.
func (t Template) Version() Version { return Version{Seq: t.Seq} }

// Check reports the first field of t that no template can have.
func (t Template) Check() error {
	if !ValidTemplateName(t.Name) {
		return InvalidField("/name",
			"must have 1 to 63 characters of a-z, 0-9, '-', '.' and '_', and begin and end with a letter or a digit")
	}
	if t.CPUCount < 1 || t.CPUCount > MaxCPUs {
		return InvalidField("/cpu_count", "must be 1 to %d", MaxCPUs)
	}
	if t.RAMMiB < MinRAMMiB || t.RAMMiB > MaxRAMMiB {
		f := InvalidField("/ram_amount", "must be %d to %d MiB", MinRAMMiB, MaxRAMMiB)
		if t.RAMMiB > 0 && t.RAMMiB < MinRAMMiB {
			f.Hint = fmt.Sprintf("ram_amount is in MiB: for %d GiB send %d", t.RAMMiB, t.RAMMiB<<10)
		}
		return f
	}
	return nil
}

// Limits are the largest values that a host can give to a VM. Zero values are unknown.
type Limits struct {
	CPUs   int // vCPUs
	RAMMiB int
}

// Exceeded returns the first field of t that is above its limit, as a JSON pointer, and the
// limit as a clause. The field is empty if there is none.
func (l Limits) Exceeded(t Template) (field, clause string) {
	switch {
	case l.CPUs != 0 && t.CPUCount > l.CPUs:
		return "/cpu_count", fmt.Sprintf("must be at most %d on this host, the limit of its QEMU", l.CPUs)
	case l.RAMMiB != 0 && t.RAMMiB > l.RAMMiB:
		return "/ram_amount", fmt.Sprintf("must be at most %d MiB on this host, the limit of a guest's address space", l.RAMMiB)
	}
	return "", ""
}
