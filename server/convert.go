package server

import (
	"time"

	"vmand/openapi"
	"vmand/vm"
)

// The functions in this file convert values of package vm into the generated types.
// Their results may point into their arguments.

const mibPerGiB = 1024

const (
	bytesPerMiB = 1 << 20
	bytesPerGiB = 1 << 30
)

// gib converts bytes to GiB. The result is exact for a whole number of MiB.
func gib(bytes int64) float64 { return float64(bytes) / bytesPerGiB }

// mibOf returns the size in a request, which has it in GiB or in bytes, in MiB, 0 if it has
// neither. It fails if it has both. field is the JSON pointer of the size in GiB.
func mibOf(gib *float64, bytes *int64, field string) (int64, error) {
	switch {
	case gib != nil && bytes != nil:
		return 0, invalid(vm.FieldFault{Field: field + "_bytes", Detail: "must not be given together with " + field[1:]})
	case bytes != nil:
		return *bytes / bytesPerMiB, nil
	}
	return mib(value(gib)), nil
}

// mib converts GiB to MiB. The contract allows only whole numbers of MiB.
func mib(gib float64) int64 { return int64(gib * mibPerGiB) }

// optional returns nil for an empty string.
func optional[S ~string](s *S) *S {
	if *s == "" {
		return nil
	}
	return s
}

// optionalTime returns nil for the zero time.
func optionalTime(t time.Time) *openapi.Time {
	if t.IsZero() {
		return nil
	}
	return &openapi.Time{Time: t}
}

func apiTemplate(t *vm.Template) *openapi.Template {
	return &openapi.Template{
		Name:      t.Name,
		CPUCount:  t.CPUCount,
		RAMAmount: t.RAMMiB,
		CreatedAt: openapi.Time{Time: t.CreatedAt},
	}
}

func apiDisk(d *vm.Disk) *openapi.Disk {
	device := d.GuestDevice()
	return &openapi.Disk{
		ID:          d.ID,
		Size:        gib(d.Bytes()),
		SizeBytes:   d.Bytes(),
		Image:       optional(&d.Image),
		MountPoint:  optional(&d.MountPoint),
		State:       openapi.DiskState(d.State),
		StateReason: optional(&d.Reason),
		VMID:        optional(&d.VMID),
		GuestDevice: optional(&device),
		CreatedAt:   openapi.Time{Time: d.CreatedAt},
		UpdatedAt:   openapi.Time{Time: d.UpdatedAt},
	}
}

func apiOperation(o *vm.Operation) *openapi.Operation {
	out := &openapi.Operation{
		ID:          o.ID,
		Kind:        openapi.OperationKind(o.Kind),
		Resource:    o.Resource.String(),
		State:       openapi.OperationState(o.State),
		Progress:    o.Progress,
		Step:        optional(&o.Step),
		RequestedBy: o.RequestedBy,
		CreatedAt:   openapi.Time{Time: o.CreatedAt},
		StartedAt:   optionalTime(o.StartedAt),
		FinishedAt:  optionalTime(o.FinishedAt),
		Log:         make([]openapi.OperationLogLine, len(o.Log)),
	}
	if o.Problem != nil {
		p := problem(o.Problem.Code, o.Problem.Detail, o.Problem.Hint)
		out.Problem = &p
	}
	for i, l := range o.Log {
		out.Log[i] = openapi.OperationLogLine{At: openapi.Time{Time: l.At}, Step: l.Step, Message: l.Message}
	}
	return out
}

func templateVersion(t *vm.Template) vm.Version { return vm.Version{Seq: t.Seq} }
func vmVersion(v *vm.VM) vm.Version             { return vm.Version{Seq: v.Seq, Revision: v.Revision} }
func diskVersion(d *vm.Disk) vm.Version         { return vm.Version{Seq: d.Seq, Revision: d.Revision} }
func imageVersion(i *vm.Image) vm.Version       { return vm.Version{Seq: i.Seq, Revision: i.Revision} }
