package server

import (
	"context"
	"net/http"

	"vmand/openapi"
	"vmand/vm"
)

// Templates creates and deletes templates.
type Templates interface {
	Create(ctx context.Context, t vm.Template) (vm.Template, error)
	Delete(ctx context.Context, name string, match vm.Match) error
}

// CreateTemplate implements [openapi.StrictServerInterface].
func (s *Server) CreateTemplate(ctx context.Context, r openapi.CreateTemplateRequestObject) (openapi.Response, error) {
	t, err := s.Templates.Create(ctx, vm.Template{
		Name:     r.Body.Name,
		CPUCount: r.Body.CPUCount,
		RAMMiB:   r.Body.RAMAmount,
	})
	if err != nil {
		return nil, err
	}
	return templateAnswer(&t).created("/templates/" + t.Name), nil
}

// templateAnswer returns the answer 200 with a template.
func templateAnswer(t *vm.Template) answer {
	return answer{status: http.StatusOK, body: apiTemplate(t), etag: etagOf(templateVersion(t))}
}

// ListTemplates implements [openapi.StrictServerInterface].
func (s *Server) ListTemplates(ctx context.Context, r openapi.ListTemplatesRequestObject) (openapi.Response, error) {
	return newList(ctx, "/templates", query(), r.Params.Limit, r.Params.Cursor, r.Params.IfNoneMatch, s.reader.Templates,
		func(t *vm.Template) int64 { return t.Seq },
		func(t *vm.Template) any { return apiTemplate(t) })
}

// GetTemplate implements [openapi.StrictServerInterface].
func (s *Server) GetTemplate(ctx context.Context, r openapi.GetTemplateRequestObject) (openapi.Response, error) {
	t, err := s.reader.Template(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	return resource(etagOf(templateVersion(&t)), r.Params.IfNoneMatch, func() any { return apiTemplate(&t) }), nil
}

// DeleteTemplate implements [openapi.StrictServerInterface].
func (s *Server) DeleteTemplate(ctx context.Context, r openapi.DeleteTemplateRequestObject) (openapi.Response, error) {
	match, err := parseMatch(value(r.Params.IfMatch))
	if err != nil {
		return nil, err
	}
	if err := s.Templates.Delete(ctx, r.Name, match); err != nil {
		return nil, err
	}
	return answer{status: http.StatusNoContent}, nil
}

// resource returns the answer 304 if ifNoneMatch contains etag, else 200 with body().
func resource(etag string, ifNoneMatch *string, body func() any) answer {
	if ifNoneMatch != nil {
		if known := matching(*ifNoneMatch, etag); known != "" {
			return answer{status: http.StatusNotModified, etag: known}
		}
	}
	return answer{status: http.StatusOK, etag: etag, body: body()}
}
