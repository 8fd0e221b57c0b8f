package server

import (
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/labstack/echo/v4"

	"vmand/vm"
)

// A routeKey names an operation as echo does: method and path pattern.
type routeKey struct{ method, path string }

// An operation is what the specification says about one method of one path,
// prepared for quick validation.
type operation struct {
	open   bool // anybody may call it
	route  *routers.Route
	path   []*openapi3.Parameter
	query  map[string]*openapi3.Parameter
	header []headerParam
	body   *openapi3.RequestBody // nil: it takes none
}

type headerParam struct {
	key   string // canonical
	param *openapi3.Parameter
}

// filterOptions make the validation report every error, and write nothing back
// into the request.
var filterOptions = &openapi3filter.Options{MultiError: true, SkipSettingDefaults: true}

// compile prepares every operation of the specification.
func compile(doc *openapi3.T) map[routeKey]*operation {
	ops := map[routeKey]*operation{}
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			op := &operation{
				route: &routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: o},
				query: map[string]*openapi3.Parameter{},
			}
			security := doc.Security
			if o.Security != nil {
				security = *o.Security
			}
			op.open = len(security) == 0
			if o.RequestBody != nil {
				op.body = o.RequestBody.Value
			}
			for _, ref := range slices.Concat(item.Parameters, o.Parameters) {
				op.add(ref.Value)
			}
			ops[routeKey{method, echoPath(path)}] = op
		}
	}
	return ops
}

func (op *operation) add(p *openapi3.Parameter) {
	switch p.In {
	case openapi3.ParameterInPath:
		op.path = append(op.path, p)
	case openapi3.ParameterInQuery:
		op.query[p.Name] = p
	case openapi3.ParameterInHeader:
		// A bad request id is replaced, not refused: see setHeaders.
		if key := http.CanonicalHeaderKey(p.Name); key != headerRequestID {
			op.header = append(op.header, headerParam{key, p})
		}
	}
}

// echoPath turns /vms/{id} into /vms/:id.
func echoPath(path string) string {
	return strings.NewReplacer("{", ":", "}", "").Replace(path)
}

// validate checks the request in c against the specification. The caller is
// known by now: nothing of the body has been read for a stranger.
func (op *operation) validate(c echo.Context) error {
	faults, err := op.parameters(c)
	if err != nil {
		return err
	}
	more, err := op.validateBody(c)
	if err != nil {
		return err
	}
	if faults = append(faults, more...); len(faults) > 0 {
		return invalid(faults...)
	}
	return nil
}

func (op *operation) parameters(c echo.Context) ([]vm.FieldFault, error) {
	r := c.Request()
	in := openapi3filter.RequestValidationInput{Request: r, Route: op.route, Options: filterOptions}
	var faults []vm.FieldFault
	check := func(p *openapi3.Parameter) {
		if err := openapi3filter.ValidateParameter(r.Context(), &in, p); err != nil {
			faults = append(faults, parameterFaults(p, err)...)
		}
	}
	if len(op.path) > 0 {
		in.PathParams = make(map[string]string, len(op.path))
		for _, p := range op.path {
			in.PathParams[p.Name] = c.Param(p.Name)
			check(p)
		}
	}
	for _, h := range op.header {
		switch lines := r.Header[h.key]; {
		case len(lines) > 1: // several lines of a list are one list (RFC 9110, 5.3)
			r.Header[h.key] = []string{strings.Join(lines, ", ")}
			check(h.param)
		case len(lines) == 1:
			check(h.param)
		}
	}
	if r.URL.RawQuery == "" {
		return faults, nil // a test holds the specification to requiring none
	}
	values, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	in.QueryParams = values
	for _, name := range sortedNames(values) {
		p, known := op.query[name]
		switch {
		case !known:
			faults = append(faults, vm.FieldFault{Field: short(name), Detail: "is not a query parameter of this request"})
		case len(values[name]) > 1:
			faults = append(faults, vm.FieldFault{Field: name, Detail: "is given more than once"})
		default:
			check(p)
		}
	}
	return faults, nil
}

func (op *operation) validateBody(c echo.Context) ([]vm.FieldFault, error) {
	r := c.Request()
	if r.ContentLength == 0 && (op.body == nil || !op.body.Required) {
		return nil, nil
	}
	if op.body != nil && r.ContentLength != 0 {
		if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || op.body.Content[media] == nil {
			return nil, &vm.Fault{Code: codeMediaType, Detail: "the body's Content-Type is not one this request takes",
				Hint: "send Content-Type: " + strings.Join(sortedNames(op.body.Content), " or ")}
		}
	}
	data, err := readBody(c.Response(), r)
	switch {
	case err != nil:
		return nil, err
	case len(data) == 0 && (op.body == nil || !op.body.Required):
		return nil, nil
	case len(data) == 0:
		return nil, malformed("the body is empty; this request needs a JSON object")
	case op.body == nil:
		return []vm.FieldFault{{Field: "", Detail: "this request takes no body"}}, nil
	}
	value, err := parseJSON(data)
	if err != nil {
		return nil, err
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	schema := op.body.Content[media].Schema.Value
	err = schema.VisitJSON(value, openapi3.VisitAsRequest(), openapi3.MultiErrors())
	return schemaFaults(nil, err), nil
}

// parameterFaults tells what is wrong with a parameter.
func parameterFaults(p *openapi3.Parameter, err error) []vm.FieldFault {
	var parse *openapi3filter.ParseError
	switch {
	case errors.Is(err, openapi3filter.ErrInvalidRequired):
		return []vm.FieldFault{{Field: p.Name, Detail: "is missing"}}
	case errors.Is(err, openapi3filter.ErrInvalidEmptyValue):
		return []vm.FieldFault{{Field: p.Name, Detail: "must not be empty"}}
	case errors.As(err, &parse):
		return []vm.FieldFault{{Field: p.Name, Detail: "must be " + article(strings.Join(p.Schema.Value.Type.Slice(), " or "))}}
	}
	var request *openapi3filter.RequestError
	if errors.As(err, &request) {
		err = request.Err
	}
	faults := schemaFaults(nil, err)
	for i := range faults {
		faults[i].Field = p.Name
	}
	return faults
}

// schemaFaults appends to faults what a value violates of its schema, all of
// it. The words name the limit and never repeat the value.
func schemaFaults(faults []vm.FieldFault, err error) []vm.FieldFault {
	var many openapi3.MultiError
	var one *openapi3.SchemaError
	switch e := err.(type) {
	case nil:
		return faults
	case openapi3.MultiError:
		many = e
	case *openapi3.SchemaError:
		one = e
	default:
		return append(faults, vm.FieldFault{Detail: "is not valid"})
	}
	for _, e := range many {
		faults = schemaFaults(faults, e)
	}
	if one == nil {
		return faults
	}
	path := one.JSONPointer()
	if one.SchemaField == "properties" {
		// Only the reason says which property is unknown.
		if quoted, err := strconv.QuotedPrefix(strings.TrimPrefix(one.Reason, "property ")); err == nil {
			name, _ := strconv.Unquote(quoted)
			path = append(path, name)
		}
	}
	return append(faults, vm.FieldFault{Field: pointer(path), Detail: limitOf(one)})
}

// limitOf says in words what of its schema a value violates.
func limitOf(e *openapi3.SchemaError) string {
	s := e.Schema
	switch e.SchemaField {
	case "required":
		return "is missing"
	case "properties":
		return "is not a known property"
	case "type", "nullable":
		return "must be " + article(strings.Join(s.Type.Slice(), " or "))
	case "minimum":
		return "must be at least " + number(s.Min)
	case "maximum":
		return "must be at most " + number(s.Max)
	case "exclusiveMinimum":
		return "must be more than " + number(s.Min)
	case "exclusiveMaximum":
		return "must be less than " + number(s.Max)
	case "multipleOf":
		return "must be a multiple of " + number(s.MultipleOf)
	case "minLength":
		return fmt.Sprintf("must have at least %d characters", s.MinLength)
	case "maxLength":
		return fmt.Sprintf("must have at most %d characters", *s.MaxLength)
	case "pattern":
		return "must match " + s.Pattern
	case "format":
		return "must be a valid " + s.Format
	case "minProperties":
		return fmt.Sprintf("must have at least %d properties", s.MinProps)
	case "maxProperties":
		return fmt.Sprintf("must have at most %d properties", *s.MaxProps)
	case "minItems":
		return fmt.Sprintf("must have at least %d items", s.MinItems)
	case "maxItems":
		return fmt.Sprintf("must have at most %d items", *s.MaxItems)
	case "enum":
		return "must be one of " + strings.Trim(fmt.Sprint(s.Enum), "[]")
	}
	return "is not valid"
}

func number(f *float64) string { return strconv.FormatFloat(*f, 'f', -1, 64) }

func article(noun string) string {
	if noun != "" && strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

// pointer joins a path to a JSON pointer (RFC 6901).
func pointer(path []string) string {
	var b strings.Builder
	for _, p := range path {
		b.WriteByte('/')
		b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(short(p)))
	}
	return b.String()
}

// pointerOf turns the dotted path of encoding/json into a JSON pointer.
func pointerOf(field string) string {
	return pointer(strings.Split(field, "."))
}

// short cuts a name that a client made up, before it is repeated.
func short(name string) string {
	const most = 64
	if len(name) <= most {
		return name
	}
	return strings.ToValidUTF8(name[:most], "") + "…"
}

// invalid returns the fault of a request with these bad fields.
func invalid(faults ...vm.FieldFault) error {
	detail := faults[0].Field + " " + faults[0].Detail
	if n := len(faults); n > 1 {
		detail = fmt.Sprintf("%d fields are not valid; the first: %s", n, detail)
	}
	return &vm.Fault{Code: vm.CodeInvalid, Detail: strings.TrimSpace(detail), Fields: faults}
}

// parseQuery decodes a query and refuses what net/url would drop in silence.
func parseQuery(raw string) (url.Values, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, invalid(vm.FieldFault{Field: "", Detail: "the query is not properly encoded"})
	}
	return values, nil
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
