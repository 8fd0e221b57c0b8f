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

// A routeKey identifies an operation: method and path pattern of echo.
type routeKey struct{ method, path string }

// An operation is an operation of the contract, prepared for validation.
type operation struct {
	open     bool    // needs no authentication
	keyed    bool    // accepts an Idempotency-Key
	streams  bool    // can answer with a stream of events
	connects bool    // upgrades its connection, and accepts a ticket
	role     vm.Role // that the caller needs
	route    *routers.Route
	path     []parameter
	query    map[string]parameter
	must     []string // required query parameters
	header   []parameter
	body     *openapi3.RequestBody // nil if it has no body
	bodies   *bodyBudget           // of all operations
}

// A parameter is a parameter of an operation.
type parameter struct {
	*openapi3.Parameter
	key string // canonical name of a header
}

// filterOptions make the validation report all errors and keep the request unchanged.
var filterOptions = &openapi3filter.Options{MultiError: true, SkipSettingDefaults: true}

// compile returns the operations of the contract.
func compile(doc *openapi3.T) map[routeKey]*operation {
	ops := map[routeKey]*operation{}
	bodies := newBodyBudget()
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			op := &operation{
				route:  &routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: o},
				query:  map[string]parameter{},
				bodies: bodies,
			}
			security := doc.Security
			if o.Security != nil {
				security = *o.Security
			}
			op.open = len(security) == 0
			op.role = needs(o.OperationID, method)
			if ok := o.Responses.Value("200"); ok != nil {
				op.streams = ok.Value.Content[streamMedia] != nil
			}
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

// add adds a parameter.
func (op *operation) add(spec *openapi3.Parameter) {
	p := parameter{Parameter: spec, key: http.CanonicalHeaderKey(spec.Name)}
	switch spec.In {
	case openapi3.ParameterInPath:
		op.path = append(op.path, p)
	case openapi3.ParameterInQuery:
		op.query[spec.Name] = p
		op.connects = op.connects || spec.Name == "ticket"
		if spec.Required {
			op.must = append(op.must, spec.Name)
		}
	case openapi3.ParameterInHeader:
		// setHeaders replaces an invalid request id; it is not an error.
		if p.key != headerRequestID {
			op.header = append(op.header, p)
			op.keyed = op.keyed || p.key == headerKey
		}
	}
}

// echoPath converts /vms/{id} to /vms/:id.
func echoPath(path string) string {
	return strings.NewReplacer("{", ":", "}", "").Replace(path)
}

// validate validates the request in c against the contract. The caller must have been
// authenticated, since validate reads the body.
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

// parameters validates the parameters.
func (op *operation) parameters(c echo.Context) ([]vm.FieldFault, error) {
	var faults []vm.FieldFault
	for i := range op.path {
		p := &op.path[i]
		in := openapi3filter.RequestValidationInput{PathParams: map[string]string{p.Name: c.Param(p.Name)}}
		faults = op.check(faults, c.Request(), p, in)
	}
	r := c.Request()
	for i := range op.header {
		p := &op.header[i]
		lines := r.Header[p.key]
		if len(lines) == 0 {
			continue
		}
		if len(lines) > 1 { // several header lines form one list (RFC 9110, 5.3)
			r.Header[p.key] = []string{strings.Join(lines, ", ")}
		}
		faults = op.check(faults, r, p, openapi3filter.RequestValidationInput{})
	}
	if r.URL.RawQuery == "" && len(op.must) == 0 {
		return faults, nil
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalid(vm.FieldFault{Detail: "the query is not validly encoded"})
	}
	for _, name := range op.must {
		if len(values[name]) == 0 {
			faults = append(faults, vm.FieldFault{Field: name, Detail: "is missing"})
		}
	}
	unknown := 0
	for _, name := range sortedNames(values) {
		p, known := op.query[name]
		switch {
		case !known && unknown == maxFaults:
			continue
		case !known:
			unknown++
			faults = append(faults, vm.FieldFault{
				Field:  short(name),
				Detail: "is not a query parameter of this request",
			})
		case len(values[name]) > 1:
			faults = append(faults, vm.FieldFault{Field: name, Detail: "occurs more than once"})
		default:
			faults = op.check(faults, r, &p, openapi3filter.RequestValidationInput{QueryParams: values})
		}
	}
	return faults, nil
}

// check appends the faults of one parameter. in contains its value.
func (op *operation) check(faults []vm.FieldFault, r *http.Request, p *parameter,
	in openapi3filter.RequestValidationInput) []vm.FieldFault {
	in.Request, in.Route, in.Options = r, op.route, filterOptions
	if err := openapi3filter.ValidateParameter(r.Context(), &in, p.Parameter); err != nil {
		faults = append(faults, parameterFaults(p.Parameter, err)...)
	}
	return faults
}

// validateBody validates the body, unless it is streamed.
func (op *operation) validateBody(c echo.Context) ([]vm.FieldFault, error) {
	r := c.Request()
	if r.ContentLength == 0 && (op.body == nil || !op.body.Required) {
		return nil, nil
	}
	if op.body != nil && r.ContentLength != 0 {
		if err := checkCoding(r); err != nil {
			return nil, err
		}
		media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil || op.body.Content[media] == nil {
			return nil, &vm.Fault{
				Code:   codeMediaType,
				Detail: "the Content-Type of the body is not accepted by this request",
				Hint:   "send Content-Type: " + strings.Join(sortedNames(op.body.Content), " or "),
			}
		}
		if len(op.body.Content) > 1 { // the generated code expects it without parameters
			r.Header["Content-Type"] = []string{media}
		}
	}
	if op.body == nil {
		return expectNoBody(c.Response(), r)
	}
	if _, ok := op.streamed(r); ok {
		return nil, nil // the handler reads it
	}
	if r.ContentLength < 0 {
		return nil, &vm.Fault{
			Code:   codeLength,
			Detail: "the body has no Content-Length",
			Hint:   "send Content-Length instead of Transfer-Encoding: chunked; only uploads of files are streamed",
		}
	}
	release, err := op.bodies.reserve(r.Context(), r.ContentLength)
	if err != nil {
		return nil, err
	}
	defer release()
	data, err := readBody(c.Response(), r)
	switch {
	case err != nil:
		return nil, err
	case len(data) == 0 && !op.body.Required:
		return nil, nil
	case len(data) == 0:
		return nil, malformed("the body is empty, but must be a JSON object")
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	schema := op.body.Content[media].Schema.Value
	value, faults, err := parseJSON(data, schema)
	if err != nil || len(faults) > 0 {
		return faults, err
	}
	err = schema.VisitJSON(value, openapi3.VisitAsRequest(), openapi3.MultiErrors())
	return schemaFaults(nil, err), nil
}

// streamed reports whether the body of r is binary, so that the handler reads it while
// it arrives. limit is its maximum size in bytes, or 0.
func (op *operation) streamed(r *http.Request) (limit uint64, ok bool) {
	if op.body == nil {
		return 0, false
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	content := op.body.Content[media]
	if content == nil && r.ContentLength == 0 && len(op.body.Content) == 1 { // an empty body needs no Content-Type
		content = op.body.Content["application/octet-stream"]
	}
	if content == nil || content.Schema.Value.Format != "binary" {
		return 0, false
	}
	if most := content.Schema.Value.MaxLength; most != nil {
		limit = *most
	}
	return limit, true
}

// parameterFaults converts a validation error of a parameter.
func parameterFaults(p *openapi3.Parameter, err error) []vm.FieldFault {
	var parse *openapi3filter.ParseError
	switch {
	case errors.Is(err, openapi3filter.ErrInvalidRequired):
		return []vm.FieldFault{{Field: p.Name, Detail: "is missing"}}
	case errors.Is(err, openapi3filter.ErrInvalidEmptyValue):
		return []vm.FieldFault{{Field: p.Name, Detail: "must not be empty"}}
	case errors.As(err, &parse):
		return []vm.FieldFault{{
			Field:  p.Name,
			Detail: "must be " + article(strings.Join(p.Schema.Value.Type.Slice(), " or ")),
		}}
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

// schemaFaults appends a fault for each schema violation in err. The details name the
// limit and never contain the value, except the nearest allowed number.
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
		// Only the reason names the unknown property.
		if quoted, err := strconv.QuotedPrefix(strings.TrimPrefix(one.Reason, "property ")); err == nil {
			name, _ := strconv.Unquote(quoted)
			path = append(path, name)
		}
	}
	return append(faults, vm.FieldFault{Field: pointer(path), Detail: limitOf(one)})
}

// limitOf returns the violated limit of the schema in words.
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
		return "must be at least " + limit(s, s.Min)
	case "maximum":
		return "must be at most " + limit(s, s.Max)
	case "exclusiveMinimum":
		return "must be more than " + limit(s, s.Min)
	case "exclusiveMaximum":
		return "must be less than " + limit(s, s.Max)
	case "multipleOf":
		return multipleOf(s, e.Value)
	case "minLength":
		return fmt.Sprintf("must have at least %d characters", s.MinLength)
	case "maxLength":
		return fmt.Sprintf("must have at most %d characters", *s.MaxLength)
	case "pattern":
		return patternOf(s)
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
		words := make([]string, len(s.Enum))
		for i, word := range s.Enum {
			words[i] = fmt.Sprint(word)
		}
		return "must be one of " + strings.Join(words, ", ")
	}
	return "is not valid"
}

// article returns noun with the indefinite article.
func article(noun string) string {
	if noun != "" && strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

// pointer returns a path as a JSON pointer (RFC 6901).
func pointer(path []string) string {
	var b strings.Builder
	for _, p := range path {
		b.WriteByte('/')
		b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(short(p)))
	}
	return b.String()
}

// pointerOf converts a dotted path of encoding/json to a JSON pointer.
func pointerOf(field string) string {
	return pointer(strings.Split(field, "."))
}

// short truncates a name from a request for use in an answer or the log.
func short(name string) string {
	const most = 64
	if len(name) <= most {
		return name
	}
	return strings.ToValidUTF8(name[:most], "") + "…"
}

// maxFaults is how many faults of one request are answered.
const maxFaults = 100

// invalid returns the fault of a request with these invalid fields. It names the first
// maxFaults of them and the number of the others.
func invalid(faults ...vm.FieldFault) error {
	detail := faults[0].Field + " " + faults[0].Detail
	if n := len(faults); n > 1 {
		detail = fmt.Sprintf("%d fields are not valid; the first one: %s", n, detail)
	}
	faults = firstFaults(faults)
	return &vm.Fault{Code: vm.CodeInvalid, Detail: strings.TrimSpace(detail), Fields: faults}
}

// firstFaults returns the first maxFaults faults and, if there are more, their number as
// one more fault.
func firstFaults(faults []vm.FieldFault) []vm.FieldFault {
	more := len(faults) - maxFaults
	if more <= 0 {
		return faults
	}
	rest := vm.FieldFault{Detail: fmt.Sprintf("and %d more", more)}
	return append(slices.Clone(faults[:maxFaults]), rest)
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
