package server

import (
	"context"
	"fmt"
	"net/http"

	"vmand/vm"
)

// shown returns the answer to a request after its operation succeeded. The verb of the
// operation determines the content of the answer.
func (s *Server) shown(ctx context.Context, o vm.Operation) (answer, error) {
	switch s.Operations.Answer(o.Kind) {
	case vm.AnswerNothing:
		return answer{status: http.StatusNoContent}, nil
	case vm.AnswerOperation:
		return answer{status: http.StatusOK, body: apiOperation(&o)}, nil
	case vm.AnswerTarget:
		a, err := s.renderTarget(ctx, o.Resource.ID, o.Target)
		a.location = ""
		return a, err
	case vm.AnswerCreatedTarget:
		a, err := s.renderTarget(ctx, o.Resource.ID, o.Target)
		return a.created(a.location), err
	case vm.AnswerCreated:
		a, err := s.render(ctx, o.Resource)
		return a.created("/" + o.Resource.String()), err
	}
	return s.render(ctx, o.Resource)
}

// A renderer reads a resource and returns the answer that shows it.
type renderer func(ctx context.Context, id string) (answer, error)

func rendererOf[T any](read func(context.Context, string) (T, error), show func(*T) answer) renderer {
	return func(ctx context.Context, id string) (answer, error) {
		r, err := read(ctx, id)
		if err != nil {
			return answer{}, err
		}
		return show(&r), nil
	}
}

// render returns the answer that shows the current state of a resource, as the handlers do.
func (s *Server) render(ctx context.Context, r vm.Resource) (answer, error) {
	render := map[vm.ResourceKind]renderer{
		vm.TemplateKind: rendererOf(s.reader.Template, templateAnswer),
		vm.VMKind:       rendererOf(s.reader.VM, s.vmAnswer),
		vm.DiskKind:     rendererOf(s.reader.Disk, diskAnswer),
		vm.ImageKind:    rendererOf(s.reader.Image, imageAnswer),
		vm.NetworkKind:  rendererOf(s.reader.Network, networkAnswer),
	}[r.Kind]
	if render == nil {
		return answer{}, fmt.Errorf("show %s: no renderer for this kind of resource", r)
	}
	return render(ctx, r.ID)
}

// renderTarget returns the answer that shows the current state of the target of an operation
// on a VM, as the handlers do, with its path as the location.
func (s *Server) renderTarget(ctx context.Context, vmID string, t vm.Target) (answer, error) {
	switch {
	case t.NIC != nil:
		a, err := s.nicAnswer(ctx, vmID, *t.NIC)
		a.location = nicPath(vmID, *t.NIC)
		return a, err
	case t.Forward != "":
		return s.forwardCreated(ctx, vmID, t.Forward)
	case t.CDROM == vm.SeedCDROM:
		view, err := s.CloudInits.Get(ctx, vmID)
		if err != nil {
			return answer{}, err
		}
		return cloudInitAnswer(ctx, vmID, &view)
	case t.CDROM != "":
		return s.cdromAttached(ctx, vmID, t.CDROM)
	}
	return answer{}, fmt.Errorf("show a part of VM %s: no renderer for %+v", vmID, t)
}
