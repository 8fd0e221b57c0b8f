package openapi

import (
	"bytes"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

var loadOnce = sync.OnceValues(Load)

// load returns the contract. All tests share it, so a test must not change it.
func load(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := loadOnce()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// operations calls f for each operation, with the method and path as the name.
func operations(doc *openapi3.T, f func(name string, op *openapi3.Operation)) {
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			f(method+" "+path, op)
		}
	}
}

// schemas calls f for each schema of the document with its place. A schema that is
// referenced is visited once, where it is defined.
func schemas(doc *openapi3.T, f func(place string, s *openapi3.Schema)) {
	var visit func(place string, ref *openapi3.SchemaRef)
	visit = func(place string, ref *openapi3.SchemaRef) {
		if ref == nil || ref.Ref != "" {
			return
		}
		f(place, ref.Value)
		for name, p := range ref.Value.Properties {
			visit(place+"/"+name, p)
		}
		visit(place+"/items", ref.Value.Items)
		visit(place+"/additionalProperties", ref.Value.AdditionalProperties.Schema)
		for _, list := range []openapi3.SchemaRefs{ref.Value.AllOf, ref.Value.AnyOf, ref.Value.OneOf} {
			for _, s := range list {
				visit(place+"/of", s)
			}
		}
	}
	for name, ref := range doc.Components.Schemas {
		visit(name, ref)
	}
	contents(doc, func(place string, m *openapi3.MediaType) { visit(place, m.Schema) })
	parameters(doc, func(place string, p *openapi3.Parameter) { visit(place, p.Schema) })
}

// contents calls f for each body of a request or a response.
func contents(doc *openapi3.T, f func(place string, m *openapi3.MediaType)) {
	operations(doc, func(name string, op *openapi3.Operation) {
		if op.RequestBody != nil {
			for kind, m := range op.RequestBody.Value.Content {
				f(name+" "+kind, m)
			}
		}
		for status, r := range op.Responses.Map() {
			for kind, m := range r.Value.Content {
				f(name+" "+status+" "+kind, m)
			}
		}
	})
}

// parameters calls f for each parameter of a request and each header of a response.
func parameters(doc *openapi3.T, f func(place string, p *openapi3.Parameter)) {
	for path, item := range doc.Paths.Map() {
		for _, p := range item.Parameters {
			f(path+" "+p.Value.Name, p.Value)
		}
	}
	operations(doc, func(name string, op *openapi3.Operation) {
		for _, p := range op.Parameters {
			f(name+" "+p.Value.Name, p.Value)
		}
		for status, r := range op.Responses.Map() {
			for header, h := range r.Value.Headers {
				f(name+" "+status+" "+header, &h.Value.Parameter)
			}
		}
	})
}

func TestJSONAndYAMLAreTheSameDocument(t *testing.T) {
	if !bytes.HasPrefix(YAML(), []byte("openapi: 3.0.3\n")) {
		t.Errorf("YAML begins with %.20q", YAML())
	}
	fromJSON, err := openapi3.NewLoader().LoadFromData(JSON())
	if err != nil {
		t.Fatal(err)
	}
	want, err := load(t).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	got, err := fromJSON.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("JSON and YAML are different documents")
	}
}

func TestLoadReturnsACopyOfItsOwn(t *testing.T) {
	first, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	first.Paths.Delete("/vms")
	second, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	if second.Paths.Value("/vms") == nil {
		t.Error("a change of one copy shows in the next")
	}
}

func TestEveryObjectIsClosed(t *testing.T) {
	schemas(load(t), func(place string, s *openapi3.Schema) {
		if place == "OpenAPIDocument" || place == "EventData" || !s.Type.Is("object") {
			return
		}
		if has := s.AdditionalProperties.Has; s.AdditionalProperties.Schema == nil && (has == nil || *has) {
			t.Errorf("%s accepts unknown properties", place)
		}
		for _, name := range s.Required {
			if s.Properties[name] == nil {
				t.Errorf("%s requires %s and does not define it", place, name)
			}
		}
	})
}

func TestEverySchemaIsDescribed(t *testing.T) {
	doc := load(t)
	for name, ref := range doc.Components.Schemas {
		if ref.Value.Description == "" {
			t.Errorf("%s has no description", name)
		}
		for property, p := range ref.Value.Properties {
			if p.Value.Description == "" {
				t.Errorf("%s/%s has no description", name, property)
			}
		}
	}
}

// A response has every property, with null for a missing value. Requests and problems may
// omit properties.
func TestResponsesHaveAllTheirProperties(t *testing.T) {
	doc := load(t)
	for _, name := range []string{
		"Template", "VM", "VMTemplate", "Disk", "Operation", "OperationLogLine", "Event",
		"NIC", "PortForward", "CDROM", "Image", "Boot",
		"CloudInitDetails", "CloudInitUserDetails", "CloudInitFiles", "CloudInitStatus",
		"Network", "NetworkDetails", "NetworkRoute", "Lease", "NetworkProblem",
		"Agent", "Guest", "GuestOS", "GuestInterface", "GuestFilesystem", "ExecResult", "ConsoleTicket",
		"Why", "WhyRecorded", "WhyProcess", "WhyQMP", "WhyVerdict", "Recorder", "Recording", "RecordedMessage",
		"ObserverStatus", "Issue", "Health", "HealthChecks", "HealthCheck", "FieldError",
	} {
		s := doc.Components.Schemas[name].Value
		for property := range s.Properties {
			if !slices.Contains(s.Required, property) {
				t.Errorf("%s/%s is not required", name, property)
			}
		}
	}
}

func TestEveryTimeHasTheTypeTime(t *testing.T) {
	schemas(load(t), func(place string, s *openapi3.Schema) {
		if s.Format == "date-time" && s.Extensions["x-go-type"] != "Time" {
			t.Errorf("%s has the format date-time and not x-go-type Time", place)
		}
	})
}

func TestEveryOperationIsComplete(t *testing.T) {
	doc := load(t)
	seen := map[string]string{}
	operations(doc, func(name string, op *openapi3.Operation) {
		if op.OperationID == "" || op.Summary == "" || op.Description == "" || len(op.Tags) != 1 {
			t.Errorf("%s lacks an operationId, a summary, a description or a tag", name)
		}
		if other := seen[op.OperationID]; other != "" {
			t.Errorf("%s and %s have the same operationId", name, other)
		}
		seen[op.OperationID] = name
		if len(op.Tags) == 1 && doc.Tags.Get(op.Tags[0]) == nil {
			t.Errorf("%s has an unknown tag", name)
		}
		if r := op.Responses.Default(); r == nil {
			t.Errorf("%s has no default response", name)
		}
		for status, r := range op.Responses.Map() {
			checkResponse(t, name+" "+status, status, r.Value)
		}
		if strings.HasPrefix(name, "GET ") {
			checkRead(t, name, op)
		}
		if op.RequestBody != nil && op.Responses.Value("413") == nil {
			t.Errorf("%s has a request body and no response 413", name)
		}
	})
}

// checkResponse checks the headers of a response, and that an error is a problem.
func checkResponse(t *testing.T, place, status string, r *openapi3.Response) {
	t.Helper()
	for _, header := range []string{"X-Request-Id", "Server", "X-Vman-Dry-Run"} {
		if r.Headers[header] == nil {
			t.Errorf("%s has no header %s", place, header)
		}
	}
	began := status == "202" && !strings.HasPrefix(place, "GET ") // a GET begins no operation
	if (status == "201" || began) && r.Headers["Location"] == nil {
		t.Errorf("%s has no Location", place)
	}
	if status < "400" || strings.HasSuffix(place, "/health 503") {
		return
	}
	m := r.Content["application/problem+json"]
	if m == nil || m.Schema.Ref != "#/components/schemas/Problem" || len(r.Content) != 1 {
		t.Errorf("%s is not a problem", place)
	}
}

// checkRead checks the headers of the response to a GET of a resource or a list. The lists
// of parts of one VM are short and have no pages.
func checkRead(t *testing.T, name string, op *openapi3.Operation) {
	t.Helper()
	ok := op.Responses.Status(200)
	if ok == nil {
		if op.Responses.Status(101) == nil {
			t.Errorf("%s has neither a response 200 nor 101", name)
		}
		return
	}
	r := ok.Value
	m := r.Content["application/json"]
	if m == nil {
		return
	}
	paged := m.Schema.Value.Type.Is("array") && !strings.Contains(name, "}/")
	if paged != (r.Headers["Link"] != nil) {
		t.Errorf("%s: paged is %v, which the header Link contradicts", name, paged)
	}
	isTagged := m.Schema.Value.Type.Is("array") || strings.HasSuffix(name, "}") || strings.HasSuffix(name, "/cloud_init")
	if isTagged != (r.Headers["ETag"] != nil) {
		t.Errorf("%s: one resource or a list is %v, which the header ETag contradicts", name, isTagged)
	}
}

// readsTagged matches the operations that read one resource, the content of an image or a
// list.
var readsTagged = regexp.MustCompile(`^GET /(` +
	`(templates|vms|disks|networks|operations|vms/\{id\}/(nics|port_forwards|cdroms))(/\{\w+\})?|events|` +
	`images(/\{name\}(/content)?)?)$`)

// TestSecurityAndPreconditions checks which operations are public, conditional,
// idempotent by key, and can be waited for.
func TestSecurityAndPreconditions(t *testing.T) {
	public := []string{"GET /health", "GET /openapi.yaml", "GET /openapi.json", "GET /docs"}
	operations(load(t), func(name string, op *openapi3.Operation) {
		isPublic := slices.Contains(public, name)
		if got := op.Security != nil && len(*op.Security) == 0; got != isPublic {
			t.Errorf("%s is public: %v, want %v", name, got, isPublic)
		}
		if !isPublic && op.Responses.Value("401") == nil {
			t.Errorf("%s has no response 401", name)
		}
		checkConditions(t, name, op)
		checkKey(t, name, op)
		checkPrefer(t, name, op)
	})
}

// isUpload reports whether an operation is an upload of a piece of an image. Its
// precondition is the offset, and it is not replayed: nothing keeps the bytes to compare.
func isUpload(name string) bool { return name == "PATCH /images/{name}/content" }

func hasHeader(op *openapi3.Operation, name string) bool {
	return op.Parameters.GetByInAndName("header", name) != nil
}

// checkConditions checks If-Match and If-None-Match.
func checkConditions(t *testing.T, name string, op *openapi3.Operation) {
	t.Helper()
	method, _, _ := strings.Cut(name, " ")
	changes := name == "PUT /vms/{id}/cloud_init" ||
		!isUpload(name) && (method == "PATCH" || method == "DELETE")
	if got := hasHeader(op, "If-Match"); got != changes {
		t.Errorf("%s has If-Match: %v, want %v", name, got, changes)
	}
	if got := op.Responses.Value("412") != nil; got != changes && !isUpload(name) {
		t.Errorf("%s has a response 412: %v, want %v", name, got, changes)
	}
	tagged := readsTagged.MatchString(name)
	if got := hasHeader(op, "If-None-Match"); got != tagged {
		t.Errorf("%s has If-None-Match: %v, want %v", name, got, tagged)
	}
	if got := op.Responses.Value("304") != nil; got != tagged {
		t.Errorf("%s has a response 304: %v, want %v", name, got, tagged)
	}
}

// checkKey checks Idempotency-Key. Requests to a guest or a console leave no record, so
// they cannot be replayed.
func checkKey(t *testing.T, name string, op *openapi3.Operation) {
	t.Helper()
	tag := op.Tags[0]
	keyed := !isUpload(name) && !strings.HasPrefix(name, "GET ") && tag != "guest" && tag != "console"
	if got := hasHeader(op, "Idempotency-Key"); got != keyed {
		t.Errorf("%s has Idempotency-Key: %v, want %v", name, got, keyed)
	}
	if got := op.Responses.Value("422") != nil; got != keyed {
		t.Errorf("%s has a response 422: %v, want %v", name, got, keyed)
	}
	for status, r := range op.Responses.Map() {
		if got := r.Value.Headers["Idempotency-Replayed"] != nil; status < "300" && got != keyed {
			t.Errorf("%s %s has Idempotency-Replayed: %v, want %v", name, status, got, keyed)
		}
	}
}

// checkPrefer checks that a request that may be answered with an operation or with its
// result has Prefer.
func checkPrefer(t *testing.T, name string, op *openapi3.Operation) {
	t.Helper()
	created := op.Responses.Value("201")
	applied := created != nil && created.Value.Headers["Preference-Applied"] != nil
	waits := op.Responses.Value("202") != nil && (op.Responses.Value("200") != nil || applied)
	want := waits && !isUpload(name)
	if got := hasHeader(op, "Prefer"); got != want {
		t.Errorf("%s has Prefer: %v, want %v", name, got, want)
	}
}

func TestTheGeneratedCodeHasEveryOperation(t *testing.T) {
	server := reflect.TypeFor[StrictServerInterface]()
	var want []string
	operations(load(t), func(_ string, op *openapi3.Operation) {
		if op.Tags[0] != "documentation" { // not generated, but served as files
			want = append(want, strings.ToUpper(op.OperationID[:1])+op.OperationID[1:])
		}
	})
	var got []string
	for m := range server.Methods() {
		got = append(got, m.Name)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the server has the operations %v\nwant %v", got, want)
	}
}

// codeLine matches a line of the description of ProblemCode.
var codeLine = regexp.MustCompile("(?m)^- `([a-z-]+)` \\(([0-9]{3})\\): .")

// documentedCodes returns the status of each code in the description of ProblemCode.
func documentedCodes(doc *openapi3.T) map[string]string {
	codes := map[string]string{}
	description := doc.Components.Schemas["ProblemCode"].Value.Description
	for _, m := range codeLine.FindAllStringSubmatch(description, -1) {
		codes[m[1]] = m[2]
	}
	return codes
}

func TestEveryProblemCodeIsDocumented(t *testing.T) {
	doc := load(t)
	codes := documentedCodes(doc)
	documented := slices.Sorted(maps.Keys(codes))
	var enum []string
	for _, v := range doc.Components.Schemas["ProblemCode"].Value.Enum {
		enum = append(enum, v.(string))
	}
	slices.Sort(enum)
	if !slices.Equal(enum, documented) || len(enum) == 0 {
		t.Errorf("the enum has %v\nthe description %v", enum, documented)
	}
	operations(doc, func(name string, op *openapi3.Operation) {
		for status := range op.Responses.Map() {
			known := slices.Contains(slices.Collect(maps.Values(codes)), status)
			if status >= "400" && status != "default" && !known {
				t.Errorf("%s has a response %s, which no code has", name, status)
			}
		}
	})
}
