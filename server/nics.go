package server

import (
	"context"
	"fmt"
	"net/http"

	"vmand/openapi"
	"vmand/vm"
)

// NICs attaches, detaches and changes the NICs of VMs.
type NICs interface {
	Attach(ctx context.Context, vmID string, n vm.NewNIC) (vm.NIC, vm.Operation, error)
	Detach(ctx context.Context, vmID string, slot int, match vm.Match) (n vm.NIC, gone bool, op vm.Operation, err error)
	Update(ctx context.Context, vmID string, slot int, e vm.NICEdits, match vm.Match) (vm.NIC, error)
}

// AttachNIC implements [openapi.StrictServerInterface].
func (s *Server) AttachNIC(ctx context.Context, r openapi.AttachNICRequestObject) (openapi.Response, error) {
	var p addressParser
	want := newNIC(&p, "", r.Body)
	if err := p.err(); err != nil {
		return nil, err
	}
	n, o, err := s.NICs.Attach(ctx, r.ID, want)
	switch {
	case err != nil:
		return nil, err
	case n.State == vm.NICAttaching:
		return nicAccepted(&n, o), nil
	}
	a, err := s.nicAnswer(ctx, r.ID, n.Slot)
	return a.created(nicPath(r.ID, n.Slot)), err
}

// newNIC converts the request for a NIC. field is its JSON pointer in the body.
func newNIC(p *addressParser, field string, b *openapi.CreateNIC) vm.NewNIC {
	return vm.NewNIC{
		Network:  value(b.Network),
		IP:       value(p.addr(field+"/ip", b.IP)),
		MAC:      value(b.MAC),
		Model:    vm.NICModel(value(b.Model)),
		RateIn:   value(b.RateIn),
		RateOut:  value(b.RateOut),
		LinkDown: value(b.Link) == openapi.CreateNICLinkDown,
		Extra:    value(p.prefixes(field+"/extra_addresses", b.ExtraAddresses)),
	}
}

// newNICs converts the requested NICs of a VM. It returns nil if list is nil.
func newNICs(p *addressParser, list *[]openapi.CreateNIC) *[]vm.NewNIC {
	if list == nil {
		return nil
	}
	out := make([]vm.NewNIC, len(*list))
	for i := range *list {
		out[i] = newNIC(p, fmt.Sprintf("/nics/%d", i), &(*list)[i])
	}
	return &out
}

// ListNICs implements [openapi.StrictServerInterface].
func (s *Server) ListNICs(ctx context.Context, r openapi.ListNICsRequestObject) (openapi.Response, error) {
	v, err := s.reader.VM(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return resource(etagOf(vmVersion(&v)), r.Params.IfNoneMatch, func() any { return jsonArrayOf(v.NICs, appendNIC) }), nil
}

// GetNIC implements [openapi.StrictServerInterface].
func (s *Server) GetNIC(ctx context.Context, r openapi.GetNICRequestObject) (openapi.Response, error) {
	v, n, err := s.nic(ctx, r.ID, r.NICSlot)
	if err != nil {
		return nil, err
	}
	return resource(etagOf(vmVersion(&v)), r.Params.IfNoneMatch, func() any { return jsonOf(&n, appendNIC) }), nil
}

// UpdateNIC implements [openapi.StrictServerInterface].
func (s *Server) UpdateNIC(ctx context.Context, r openapi.UpdateNICRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	var p addressParser
	e := vm.NICEdits{
		RateIn:  r.Body.RateIn,
		RateOut: r.Body.RateOut,
		Extra:   p.prefixes("/extra_addresses", r.Body.ExtraAddresses),
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	if link := r.Body.Link; link != nil {
		down := *link == openapi.NICLinkDown
		e.LinkDown = &down
	}
	if _, err := s.NICs.Update(ctx, r.ID, r.NICSlot, e, match); err != nil {
		return nil, err
	}
	return s.nicAnswer(ctx, r.ID, r.NICSlot)
}

// DetachNIC implements [openapi.StrictServerInterface].
func (s *Server) DetachNIC(ctx context.Context, r openapi.DetachNICRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	n, gone, o, err := s.NICs.Detach(ctx, r.ID, r.NICSlot, match)
	switch {
	case err != nil:
		return nil, err
	case gone:
		return answer{status: http.StatusNoContent}, nil
	}
	return nicAccepted(&n, o), nil
}

// nic returns a VM and one of its NICs.
func (s *Server) nic(ctx context.Context, id string, slot int) (vm.VM, vm.NIC, error) {
	v, err := s.reader.VM(ctx, id)
	if err != nil {
		return v, vm.NIC{}, err
	}
	n, err := v.NIC(slot)
	return v, n, err
}

// nicAnswer returns the answer 200 with the current record of a NIC. It reads the VM
// once, so the NIC and the entity tag of the VM belong together.
func (s *Server) nicAnswer(ctx context.Context, id string, slot int) (answer, error) {
	v, n, err := s.nic(ctx, id, slot)
	return shownNIC(&v, &n), err
}

// shownNIC returns the answer 200 with n, a NIC of v. The entity tag is the one of v.
func shownNIC(v *vm.VM, n *vm.NIC) answer {
	return answer{status: http.StatusOK, body: jsonOf(n, appendNIC), etag: etagOf(vmVersion(v))}
}

// nicAccepted returns the answer 202 with a NIC that operation o attaches or detaches.
func nicAccepted(n *vm.NIC, o vm.Operation) answer {
	return answer{status: http.StatusAccepted, body: jsonOf(n, appendNIC), location: "/operations/" + o.ID}
}

func nicPath(id string, slot int) string { return fmt.Sprintf("/vms/%s/nics/%d", id, slot) }
