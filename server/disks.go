package server

import (
	"context"
	"net/http"

	"vmand/openapi"
	"vmand/vm"
)

// Disks creates, copies, resizes, attaches, detaches and deletes data disks.
type Disks interface {
	Create(ctx context.Context, n vm.NewDisk) (vm.Disk, error)
	Copy(ctx context.Context, n vm.NewDisk) (vm.Disk, vm.Operation, error)
	Resize(ctx context.Context, id string, sizeMiB int64, match vm.Match, force bool) (vm.Disk, error)
	Delete(ctx context.Context, id string, match vm.Match, force bool) error
	Attach(ctx context.Context, id, vmID, mountPoint string) (vm.Disk, vm.Operation, error)
	Detach(ctx context.Context, id string, o vm.DetachOptions) (vm.Disk, vm.Operation, error)
}

// CreateDisk implements [openapi.StrictServerInterface].
func (s *Server) CreateDisk(ctx context.Context, r openapi.CreateDiskRequestObject) (openapi.Response, error) {
	wait, err := parseWait(value(r.Params.Prefer))
	if err != nil {
		return nil, err
	}
	b := r.Body
	size, err := mibOf(b.Size, b.SizeBytes, "/size")
	if err != nil {
		return nil, err
	}
	if size == 0 && b.Image == nil && b.FromDisk == nil {
		return nil, invalid(vm.FieldFault{
			Field:  "/size",
			Detail: "is missing: it is required without image and from_disk",
		})
	}
	n := vm.NewDisk{
		SizeMiB:    size,
		MountPoint: value(b.MountPoint),
		Image:      value(b.Image),
		FromDisk:   value(b.FromDisk),
	}
	if n.FromDisk == "" {
		d, err := s.Disks.Create(ctx, n)
		if err != nil {
			return nil, err
		}
		return diskAnswer(&d).created("/disks/" + d.ID), nil
	}
	d, o, err := s.Disks.Copy(ctx, n)
	if err != nil {
		return nil, err
	}
	return s.held(ctx, diskAnswer(&d), o, hold{wait: wait})
}

// ListDisks implements [openapi.StrictServerInterface].
func (s *Server) ListDisks(ctx context.Context, r openapi.ListDisksRequestObject) (openapi.Response, error) {
	f := vm.DiskFilter{State: vm.DiskState(value(r.Params.State)), VMID: value(r.Params.VMID)}
	return newList(ctx, "/disks", query("state", string(f.State), "vm_id", f.VMID), r.Params.Limit, r.Params.Cursor, r.Params.IfNoneMatch,
		func(ctx context.Context, p vm.Page) ([]vm.Disk, error) { return s.reader.Disks(ctx, f, p) },
		func(d *vm.Disk) int64 { return d.Seq },
		func(d *vm.Disk) any { return apiDisk(d) })
}

// GetDisk implements [openapi.StrictServerInterface].
func (s *Server) GetDisk(ctx context.Context, r openapi.GetDiskRequestObject) (openapi.Response, error) {
	d, err := s.reader.Disk(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return resource(etagOf(diskVersion(&d)), r.Params.IfNoneMatch, func() any { return apiDisk(&d) }), nil
}

// UpdateDisk implements [openapi.StrictServerInterface].
func (s *Server) UpdateDisk(ctx context.Context, r openapi.UpdateDiskRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	size, err := mibOf(r.Body.Size, r.Body.SizeBytes, "/size")
	if err == nil && size == 0 {
		err = invalid(vm.FieldFault{Field: "/size", Detail: "is missing: size or size_bytes is required"})
	}
	if err != nil {
		return nil, err
	}
	d, err := s.Disks.Resize(ctx, r.ID, size, match, value(r.Body.Force))
	if err != nil {
		return nil, err
	}
	return diskAnswer(&d), nil
}

// diskAnswer returns the answer 200 with a disk.
func diskAnswer(d *vm.Disk) answer {
	return answer{status: http.StatusOK, body: apiDisk(d), etag: etagOf(diskVersion(d))}
}

// DeleteDisk implements [openapi.StrictServerInterface].
func (s *Server) DeleteDisk(ctx context.Context, r openapi.DeleteDiskRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	if err := s.Disks.Delete(ctx, r.ID, match, value(r.Params.Force)); err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// AttachDisk implements [openapi.StrictServerInterface].
func (s *Server) AttachDisk(ctx context.Context, r openapi.AttachDiskRequestObject) (openapi.Response, error) {
	wait, err := parseWait(value(r.Params.Prefer))
	if err != nil {
		return nil, err
	}
	d, o, err := s.Disks.Attach(ctx, r.ID, r.Body.VMID, value(r.Body.MountPoint))
	return moved(d, o, wait > 0, err)
}

// DetachDisk implements [openapi.StrictServerInterface].
func (s *Server) DetachDisk(ctx context.Context, r openapi.DetachDiskRequestObject) (openapi.Response, error) {
	wait, err := parseWait(value(r.Params.Prefer))
	if err != nil {
		return nil, err
	}
	options := vm.DetachOptions{}
	if r.Body != nil {
		options = vm.DetachOptions{Sync: value(r.Body.Sync), Force: value(r.Body.Force)}
	}
	d, o, err := s.Disks.Detach(ctx, r.ID, options)
	return moved(d, o, wait > 0, err)
}

// moved returns the answer to a request to attach or detach d: 202 if d is still
// attaching or detaching. The manager always waits for QEMU, which takes about
// 60 ms; only the guest can take longer.
func moved(d vm.Disk, o vm.Operation, waited bool, err error) (answer, error) {
	switch {
	case err != nil:
		return answer{}, err
	case d.State.Transitional():
		return answer{status: http.StatusAccepted, body: apiDisk(&d), location: "/operations/" + o.ID}, nil
	}
	return answer{status: http.StatusOK, body: apiDisk(&d), applied: waited}, nil
}
