package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"

	"vmand/openapi"
	"vmand/vm"
)

// Operations waits for operations and cancels them.
type Operations interface {
	Answer(kind vm.Kind) vm.Answer
	Wait(ctx context.Context, id string) (vm.Operation, error)
	Cancel(ctx context.Context, id string) (vm.Operation, error)
}

// ListOperations implements [openapi.StrictServerInterface].
func (s *Server) ListOperations(ctx context.Context, r openapi.ListOperationsRequestObject) (openapi.Response, error) {
	f := vm.OperationFilter{
		Resource: vm.ParseResource(value(r.Params.Resource)),
		Kind:     vm.Kind(value(r.Params.Kind)),
		State:    vm.OpState(value(r.Params.State)),
	}
	return newList(ctx, "/operations",
		query("resource", f.Resource.String(), "kind", string(f.Kind), "state", string(f.State)), r.Params.Limit,
		r.Params.Cursor, r.Params.IfNoneMatch,
		func(ctx context.Context, p vm.Page) ([]vm.Operation, error) { return s.reader.Operations(ctx, f, p) },
		func(o *vm.Operation) int64 { return o.Seq },
		func(o *vm.Operation) any { return apiOperation(o) })
}

// GetOperation implements [openapi.StrictServerInterface].
func (s *Server) GetOperation(ctx context.Context, r openapi.GetOperationRequestObject) (openapi.Response, error) {
	o, err := s.reader.Operation(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	body := apiOperation(&o)
	// An operation has no revision: its entity tag is a hash of the body.
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(b)
	return resource(`"`+hex.EncodeToString(hash[:12])+`"`, r.Params.IfNoneMatch, func() any { return body }), nil
}

// CancelOperation implements [openapi.StrictServerInterface].
func (s *Server) CancelOperation(ctx context.Context,
	r openapi.CancelOperationRequestObject) (openapi.Response, error) {
	o, err := s.Operations.Cancel(ctx, r.ID)
	// A cancellation starts no operation that records the key. A repeated request
	// must succeed if the operation is already cancelled.
	repeated := vm.CallerOf(ctx).Key != "" && o.State == vm.OpCancelled
	if err != nil && !repeated {
		return nil, err
	}
	return answer{status: http.StatusAccepted, body: apiOperation(&o), location: "/operations/" + o.ID}, nil
}
