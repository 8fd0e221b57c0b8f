package server

import (
	"context"
	"net/http"
	"slices"

	"vmand/openapi"
	"vmand/vm"
)

// Forwards adds and removes port forwards to VMs.
type Forwards interface {
	Add(ctx context.Context, vmID string, f vm.PortForward) (vm.PortForward, error)
	Remove(ctx context.Context, vmID, forwardID string, match vm.Match) error
}

// AddPortForward implements [openapi.StrictServerInterface].
func (s *Server) AddPortForward(ctx context.Context, r openapi.AddPortForwardRequestObject) (openapi.Response, error) {
	b := r.Body
	var p addressParser
	f := vm.PortForward{
		Slot:        value(b.NIC),
		Protocol:    vm.Protocol(value(b.Protocol)),
		HostAddress: value(p.either("/host_address", b.HostAddress)),
		HostPort:    b.HostPort,
		GuestPort:   b.GuestPort,
		Ports:       value(b.Ports),
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	f, err := s.Forwards.Add(ctx, r.ID, f)
	if err != nil {
		return nil, err
	}
	return s.forwardCreated(ctx, r.ID, f.ID)
}

// ListPortForwards implements [openapi.StrictServerInterface].
func (s *Server) ListPortForwards(ctx context.Context,
	r openapi.ListPortForwardsRequestObject) (openapi.Response, error) {
	v, err := s.reader.VM(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return resource(etagOf(vmVersion(&v)), r.Params.IfNoneMatch, func() any { return jsonArrayOf(v.Forwards, appendForward) }), nil
}

// GetPortForward implements [openapi.StrictServerInterface].
func (s *Server) GetPortForward(ctx context.Context, r openapi.GetPortForwardRequestObject) (openapi.Response, error) {
	v, f, err := s.forward(ctx, r.ID, r.ForwardID)
	if err != nil {
		return nil, err
	}
	return resource(etagOf(vmVersion(&v)), r.Params.IfNoneMatch, func() any { return jsonOf(&f, appendForward) }), nil
}

// RemovePortForward implements [openapi.StrictServerInterface].
func (s *Server) RemovePortForward(ctx context.Context,
	r openapi.RemovePortForwardRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	if err := s.Forwards.Remove(ctx, r.ID, r.ForwardID, match); err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// forward returns a VM and one of its port forwards.
func (s *Server) forward(ctx context.Context, id, forwardID string) (vm.VM, vm.PortForward, error) {
	v, err := s.reader.VM(ctx, id)
	if err != nil {
		return v, vm.PortForward{}, err
	}
	i := slices.IndexFunc(v.Forwards, func(f vm.PortForward) bool { return f.ID == forwardID })
	if i < 0 {
		return v, vm.PortForward{}, vm.NotFound("port forward of VM "+id, forwardID)
	}
	return v, v.Forwards[i], nil
}

// forwardCreated returns the answer to the request that created a port forward. The
// entity tag is the one of the VM.
func (s *Server) forwardCreated(ctx context.Context, id, forwardID string) (answer, error) {
	v, f, err := s.forward(ctx, id, forwardID)
	a := answer{body: jsonOf(&f, appendForward), etag: etagOf(vmVersion(&v))}
	return a.created("/vms/" + id + "/port_forwards/" + forwardID), err
}
