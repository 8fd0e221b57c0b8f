package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/labstack/echo/v4"

	"vmand/vm"
)

func TestTheTableHasExactlyTheCodesOfTheContract(t *testing.T) {
	t.Parallel()
	doc, _ := specification()
	var spec []vm.Code
	for _, c := range doc.Components.Schemas["ProblemCode"].Value.Enum {
		spec = append(spec, vm.Code(c.(string)))
	}
	slices.Sort(spec)
	if ours := slices.Sorted(maps.Keys(kinds)); !slices.Equal(ours, spec) {
		t.Errorf("server %v\ncontract %v", ours, spec)
	}
	description := doc.Components.Schemas["ProblemCode"].Value.Description
	for code, k := range kinds {
		if !strings.Contains(description, fmt.Sprintf("`%s` (%d)", code, k.status)) {
			t.Errorf("%s has status %d, which the contract does not document", code, k.status)
		}
		if k.title == "" {
			t.Errorf("%s has no title", code)
		}
	}
}

func TestEveryErrorBecomesAProblem(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		err    error
		code   vm.Code
		detail string
	}{
		"a fault, wrapped": {fmt.Errorf("start: %w", &vm.Fault{
			Code:   vm.CodeBusy,
			Detail: "busy",
			Err:    errors.New("inside"),
		}), vm.CodeBusy, "busy"},
		"a class":    {fmt.Errorf("store: %w", vm.ErrExists), vm.CodeExists, "store: already exists"},
		"echo's 404": {echo.ErrNotFound, vm.CodeNotFound, "the path does not exist"},
		"echo's 405": {echo.ErrMethodNotAllowed, codeMethodNotAllowed,
			"the path does not support this method"},
		"echo's 413": {echo.ErrStatusRequestEntityTooLarge, codeTooLarge, "the body is too large"},
		"echo's 415": {echo.ErrUnsupportedMediaType, codeMediaType,
			"the Content-Type of the body is not accepted by this request"},
		"echo's 400": {echo.NewHTTPError(400, "Invalid format for parameter secret"), vm.CodeInvalid,
			"a parameter is not valid"},
		"echo's 500": {echo.ErrInternalServerError, vm.CodeInternal,
			"a defect of vmand; the log contains it under this request id"},
		"a slow body": {fmt.Errorf("read: %w", os.ErrDeadlineExceeded), codeTimeout,
			"the request did not arrive in time"},
		"a client that disconnected": {context.Canceled, vm.CodeUnavailable, "the request was not completed in time"},
		"anything else is a defect": {errors.New("SELECT secret"), vm.CodeInternal,
			"a defect of vmand; the log contains it under this request id"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if f := faultOf(test.err); f.Code != test.code || f.Detail != test.detail {
				t.Errorf("got %s: %q", f.Code, f.Detail)
			}
		})
	}
}

func TestAFailedOperationHasTheMessageOfQEMU(t *testing.T) {
	t.Parallel()
	failed := func(detail, cause string) *vm.Fault {
		return &vm.Fault{Code: vm.CodeOperationFailed, Detail: detail, Hint: "a hint", Err: errors.New(cause)}
	}
	tests := map[string]struct {
		err  error
		want string
	}{
		"a message": {fmt.Errorf("set: %w", failed("QEMU of VM a refused balloon", "GenericError: No balloon device")),
			"QEMU of VM a refused balloon: GenericError: No balloon device"},
		"no message":          {&vm.Fault{Code: vm.CodeOperationFailed, Detail: "failed"}, "failed"},
		"an empty message":    {failed("failed", "\n"), "failed"},
		"a known message":     {failed("qemu-img create: no", "no"), "qemu-img create: no"},
		"control characters":  {failed("failed", "one\x1b[31m\r\ntwo\x00\u202ethree"), "failed: one [31m two three"},
		"a long message":      {failed("failed", strings.Repeat("ä", 301)), "failed: " + strings.Repeat("ä", 299) + "…"},
		"the longest message": {failed("failed", strings.Repeat("ä", 300)), "failed: " + strings.Repeat("ä", 300)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var before *vm.Fault
			errors.As(test.err, &before)
			kept := before.Detail
			if f := faultOf(test.err); f.Detail != test.want || f.Hint != before.Hint || before.Detail != kept {
				t.Errorf("got %q, %q; the fault was changed to %q", f.Detail, f.Hint, before.Detail)
			}
		})
	}
	for code := range kinds {
		f := faultOf(&vm.Fault{Code: code, Detail: "x", Err: errors.New("inside")})
		if longer := f.Detail != "x"; longer != (code == vm.CodeOperationFailed) {
			t.Errorf("%s: %q", code, f.Detail)
		}
	}
}

func TestAnUnknownCodeIsInternal(t *testing.T) {
	t.Parallel()
	if p := problem("no-such-code", "x", ""); p.Code != "internal" || p.Status != 500 {
		t.Errorf("got %+v", p)
	}
}

func TestTheRouterAnswersWithProblems(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	p := a.want(t, 404, "GET", "/nowhere", "").problem(t)
	if p.Code != "not-found" || p.Instance != "/nowhere" || p.RequestID == "" ||
		p.Type != "urn:vman:problem:not-found" {
		t.Errorf("problem %+v", p)
	}
	a.want(t, 404, "GET", "/", "")
	a.want(t, 404, "GET", "/vms/a/../b/c", "")
	r := a.want(t, 405, "PUT", "/vms", "{}")
	if r.problem(t).Code != "method-not-allowed" || r.Header.Get("Allow") != "OPTIONS, GET, HEAD, POST" {
		t.Errorf("Allow %q, body %s", r.Header.Get("Allow"), r.body)
	}
	if got := r.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q", got)
	}
	if r := a.want(t, 204, "OPTIONS", "/vms/web-1", ""); r.Header.Get("Allow") == "" {
		t.Error("Allow is missing")
	}
}

func TestHEADIsGETWithoutTheBody(t *testing.T) {
	t.Parallel()
	a := newAPI(t).withVM(t)
	get := a.want(t, 200, "GET", "/vms/web-1", "", "Accept-Encoding", "identity")
	head := a.want(t, 200, "HEAD", "/vms/web-1", "")
	if len(head.body) != 0 || head.ContentLength != int64(len(get.body)) ||
		head.Header.Get("ETag") != get.Header.Get("ETag") {
		t.Errorf("%d bytes, Content-Length %d, ETag %s", len(head.body), head.ContentLength, head.Header.Get("ETag"))
	}
	a.want(t, 405, "HEAD", "/vms/web-1/actions/start", "")
}

// panicky is a reader that panics.
type panicky struct{ Records }

func (panicky) VM(context.Context, string) (vm.VM, error) { panic("secret of the reader") }

func (panicky) Template(context.Context, string) (vm.Template, error) {
	return vm.Template{}, errors.New("secret of the reader")
}

func TestADefectIsA500WithDetailsOnlyInTheLog(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.d.Reader = panicky{} })
	for path, want := range map[string]string{"/vms/web-1": "goroutine", "/templates/small": "secret of the reader"} {
		r := a.want(t, 500, "GET", path, "", headerRequestID, "find-me"+path[1:2])
		p := r.problem(t)
		if p.RequestID != "find-me"+path[1:2] || strings.Contains(string(r.body), "secret") {
			t.Errorf("%s: body %s", path, r.body)
		}
		found := false
		for line := range strings.Lines(a.log.String()) {
			found = found || strings.Contains(line, p.RequestID) && strings.Contains(line, `"ERROR"`) &&
				strings.Contains(line, want) && strings.Contains(line, "secret of the reader")
		}
		if !found {
			t.Errorf("%s: the log does not contain the reason: %s", path, a.log)
		}
	}
}

// shortReader is a reader that fails after the first page of a list.
type shortReader struct{ Records }

func (shortReader) VMs(_ context.Context, _ vm.VMFilter, p vm.Page) ([]vm.VM, error) {
	if p.After > 0 {
		return nil, errors.New("the disk has failed")
	}
	vms := make([]vm.VM, p.Limit)
	for i := range vms {
		vms[i] = vm.VM{Seq: int64(i + 1), ID: fmt.Sprintf("vm-%d", i), State: vm.Stopped}
	}
	return vms, nil
}

func TestAListThatFailsAfterItsStartClosesTheConnection(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.d.Reader = shortReader{} })
	r, err := http.NewRequestWithContext(t.Context(), "GET", a.base+"/vms", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a part of a list looks like the whole")
	}
	if !strings.Contains(a.log.String(), "the disk has failed") {
		t.Errorf("the log does not contain the reason: %s", a.log)
	}
}

func TestOperationsWithoutAProblemAreADefect(t *testing.T) {
	t.Parallel()
	if f := faultOfOperation(vm.Operation{
		ID:    "x",
		State: vm.OpFailed,
	}); f.Code != vm.CodeInternal || f.OperationID != "x" {
		t.Errorf("got %+v", f)
	}
}

func TestSchemaViolationsAreExplained(t *testing.T) {
	t.Parallel()
	two, three := 2.0, uint64(3)
	number := openapi3.Schema{Type: &openapi3.Types{"number"}, Min: &two, Max: &two, MultipleOf: &two}
	text := openapi3.Schema{
		Type:      &openapi3.Types{"string"},
		MinLength: 3,
		MaxLength: &three,
		Format:    "date",
		Enum:      []any{"a", "b"},
	}
	list := openapi3.Schema{
		Type:     &openapi3.Types{"array"},
		MinItems: 3,
		MaxItems: &three,
		MinProps: 3,
		MaxProps: &three,
	}
	tests := []struct {
		schema *openapi3.Schema
		field  string
		want   string
	}{
		{&number, "exclusiveMinimum", "must be more than 2"},
		{&number, "exclusiveMaximum", "must be less than 2"},
		{&number, "multipleOf", "must be a multiple of 2"},
		{&text, "minLength", "must have at least 3 characters"},
		{&text, "maxLength", "must have at most 3 characters"},
		{&text, "format", "must be a valid date"},
		{&text, "enum", "must be one of a, b"},
		{&text, "nullable", "must be a string"},
		{&list, "type", "must be an array"},
		{&list, "minItems", "must have at least 3 items"},
		{&list, "maxItems", "must have at most 3 items"},
		{&list, "minProperties", "must have at least 3 properties"},
		{&list, "maxProperties", "must have at most 3 properties"},
		{&list, "oneOf", "is not valid"},
	}
	for _, test := range tests {
		if got := limitOf(&openapi3.SchemaError{Schema: test.schema, SchemaField: test.field}); got != test.want {
			t.Errorf("%s: %q", test.field, got)
		}
	}
	if got := schemaFaults(nil, errors.New("an unknown keyword")); len(got) != 1 || got[0].Detail != "is not valid" {
		t.Errorf("got %v", got)
	}
}
