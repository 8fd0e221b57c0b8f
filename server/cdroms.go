package server

import (
	"context"
	"net/http"

	"vmand/openapi"
	"vmand/vm"
)

// CDROMs attaches and ejects CD-ROM drives of VMs.
type CDROMs interface {
	Attach(ctx context.Context, vmID string, n vm.NewCDROM) (vm.CDROM, error)
	Eject(ctx context.Context, vmID, id string, match vm.Match) error
}

// AttachCDROM implements [openapi.StrictServerInterface].
func (s *Server) AttachCDROM(ctx context.Context, r openapi.AttachCDROMRequestObject) (openapi.Response, error) {
	c, err := s.CDROMs.Attach(ctx, r.ID, newCDROM(r.Body))
	if err != nil {
		return nil, err
	}
	return s.cdromAttached(ctx, r.ID, c.ID)
}

// newCDROM converts the request for a CD-ROM drive.
func newCDROM(b *openapi.CreateCDROM) vm.NewCDROM {
	return vm.NewCDROM{Image: b.Image, BootIndex: value(b.BootIndex)}
}

// cdromAttached returns the answer to the request that attached a drive, with the
// current record of the drive.
func (s *Server) cdromAttached(ctx context.Context, vmID, id string) (answer, error) {
	v, c, err := s.cdrom(ctx, vmID, id)
	a := answer{body: jsonOf(&c, appendCDROM), etag: etagOf(vmVersion(&v))}
	return a.created("/vms/" + vmID + "/cdroms/" + id), err
}

// ListCDROMs implements [openapi.StrictServerInterface].
func (s *Server) ListCDROMs(ctx context.Context, r openapi.ListCDROMsRequestObject) (openapi.Response, error) {
	v, err := s.reader.VM(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return resource(etagOf(vmVersion(&v)), r.Params.IfNoneMatch, func() any { return jsonArrayOf(v.CDROMs, appendCDROM) }), nil
}

// GetCDROM implements [openapi.StrictServerInterface].
func (s *Server) GetCDROM(ctx context.Context, r openapi.GetCDROMRequestObject) (openapi.Response, error) {
	v, c, err := s.cdrom(ctx, r.ID, r.CDROMID)
	if err != nil {
		return nil, err
	}
	return resource(etagOf(vmVersion(&v)), r.Params.IfNoneMatch, func() any { return jsonOf(&c, appendCDROM) }), nil
}

// EjectCDROM implements [openapi.StrictServerInterface].
func (s *Server) EjectCDROM(ctx context.Context, r openapi.EjectCDROMRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	if err := s.CDROMs.Eject(ctx, r.ID, r.CDROMID, match); err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// cdrom returns a VM and one of its drives.
func (s *Server) cdrom(ctx context.Context, vmID, id string) (vm.VM, vm.CDROM, error) {
	v, err := s.reader.VM(ctx, vmID)
	if err != nil {
		return v, vm.CDROM{}, err
	}
	c, err := v.CDROM(id)
	return v, c, err
}
