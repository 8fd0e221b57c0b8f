package server

import (
	"context"
	"net/http"
	"strings"

	"vmand/openapi"
	"vmand/vm"
)

// Orphans adopts, terminates and deletes VMs, disks and files of the host that are not
// recorded.
type Orphans interface {
	Adopt(ctx context.Context, resource vm.Resource, template string) (vm.Operation, error)
	Terminate(ctx context.Context, resource vm.Resource) (vm.Operation, error)
	Delete(ctx context.Context, resource vm.Resource) (vm.Operation, error)
}

// AdoptOrphan implements [openapi.StrictServerInterface].
func (s *Server) AdoptOrphan(ctx context.Context, r openapi.AdoptOrphanRequestObject) (openapi.Response, error) {
	resource, template := orphanOf(r.OrphanID), value(r.Body.TemplateName)
	switch isVM := resource.Kind == vm.VMKind; {
	case isVM && template == "":
		return nil, invalid(vm.FieldFault{Field: "/template_name", Detail: "is missing: it is required for a VM"})
	case !isVM && template != "":
		return nil, invalid(vm.FieldFault{Field: "/template_name", Detail: "is not allowed for a disk"})
	}
	o, err := s.Orphans.Adopt(ctx, resource, template)
	return orphanAnswer(&o, err)
}

// TerminateOrphan implements [openapi.StrictServerInterface].
func (s *Server) TerminateOrphan(ctx context.Context,
	r openapi.TerminateOrphanRequestObject) (openapi.Response, error) {
	o, err := s.Orphans.Terminate(ctx, orphanOf(r.OrphanVMID))
	return orphanAnswer(&o, err)
}

// DeleteOrphan implements [openapi.StrictServerInterface].
func (s *Server) DeleteOrphan(ctx context.Context, r openapi.DeleteOrphanRequestObject) (openapi.Response, error) {
	o, err := s.Orphans.Delete(ctx, orphanOf(r.OrphanFilesID))
	return orphanAnswer(&o, err)
}

// orphanOf returns the resource path of an orphan id, which has a colon in place of
// the slash.
func orphanOf(id string) vm.Resource { return vm.ParseResource(strings.Replace(id, ":", "/", 1)) }

func orphanAnswer(o *vm.Operation, err error) (answer, error) {
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: apiOperation(o)}, nil
}
