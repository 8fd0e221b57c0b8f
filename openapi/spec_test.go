package openapi

import (
	"bytes"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

func load(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// operations calls f for each operation. name is its method and its path.
func operations(doc *openapi3.T, f func(name string, op *openapi3.Operation)) {
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			f(method+" "+path, op)
		}
	}
}

// schemas calls f for each schema and its place in the document. A referenced schema is
// visited only at its definition.
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

// parameters calls f for each parameter and each header of a response.
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

func TestTheYAMLAndTheJSONAreEqual(t *testing.T) {
	if !bytes.HasPrefix(YAML(), []byte("openapi: 3.0.3\n")) {
		t.Errorf("the YAML starts with %.20q", YAML())
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
		t.Error("the JSON differs from the YAML")
	}
}

func TestLoadReturnsANewCopy(t *testing.T) {
	load(t).Paths.Delete("/vms")
	if load(t).Paths.Value("/vms") == nil {
		t.Error("two calls return the same document")
	}
}

func TestNoObjectAllowsUnknownProperties(t *testing.T) {
	schemas(load(t), func(place string, s *openapi3.Schema) {
		if place == "OpenAPIDocument" || place == "EventData" || !s.Type.Is("object") {
			return
		}
		if has := s.AdditionalProperties.Has; s.AdditionalProperties.Schema == nil && (has == nil || *has) {
			t.Errorf("%s allows unknown properties", place)
		}
		for _, name := range s.Required {
			if s.Properties[name] == nil {
				t.Errorf("%s requires %s, which is not one of its properties", place, name)
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

// An answer has every property; a property without a value is null. Requests and
// problems may omit properties.
func TestAnswersRequireAllProperties(t *testing.T) {
	doc := load(t)
	for _, name := range []string{"Template", "VM", "VMTemplate", "Disk", "Operation", "OperationLogLine", "Event",
		"NIC", "PortForward", "CDROM", "Image", "CloudInitDetails", "CloudInitUserDetails", "CloudInitFiles",
		"CloudInitStatus", "Boot", "Network", "NetworkDetails", "NetworkRoute", "Lease", "NetworkProblem",
		"Agent", "Guest", "GuestOS", "GuestInterface", "GuestFilesystem", "ExecResult", "ConsoleTicket",
		"Why", "WhyRecorded", "WhyProcess", "WhyQMP", "WhyVerdict", "Recorder", "Recording", "RecordedMessage",
		"ObserverStatus", "Issue", "Health", "HealthChecks", "HealthCheck", "FieldError"} {
		s := doc.Components.Schemas[name].Value
		for property := range s.Properties {
			if !slices.Contains(s.Required, property) {
				t.Errorf("%s/%s is optional", name, property)
			}
		}
	}
}

func TestEveryTimeHasTheTypeTime(t *testing.T) {
	schemas(load(t), func(place string, s *openapi3.Schema) {
		if s.Format == "date-time" && s.Extensions["x-go-type"] != "Time" {
			t.Errorf("%s is a time, but does not have the type Time", place)
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
			t.Errorf("%s has a body, but no response 413", name)
		}
	})
}

func checkResponse(t *testing.T, place, status string, r *openapi3.Response) {
	t.Helper()
	for _, header := range []string{"X-Request-Id", "Server", "X-Vman-Dry-Run"} {
		if r.Headers[header] == nil {
			t.Errorf("%s has no header %s", place, header)
		}
	}
	if (status == "201" || status == "202") && r.Headers["Location"] == nil {
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

// checkRead checks the headers of the answer to a GET of a resource or a list. The lists
// of parts of a VM are short and have no pages.
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
		t.Errorf("%s: the header Link is missing or unexpected", name)
	}
	if isOne := strings.HasSuffix(name, "}") ||
		strings.HasSuffix(name, "/cloud_init"); isOne != (r.Headers["ETag"] != nil) {
		t.Errorf("%s: the header ETag is missing or unexpected", name)
	}
}

// Open operations, conditional requests, idempotency keys and waiting.
func TestEveryOperationHasItsHeaders(t *testing.T) {
	open := map[string]bool{
		"GET /health":       true,
		"GET /openapi.yaml": true,
		"GET /openapi.json": true,
		"GET /docs":         true,
	}
	single := regexp.MustCompile(`^GET /(` +
		`(templates|vms|disks|networks|operations|vms/\{id\}/(nics|port_forwards|cdroms))/\{\w+\}|` +
		`images/\{name\}(/content)?)$`)
	operations(load(t), func(name string, op *openapi3.Operation) {
		if isOpen := op.Security != nil && len(*op.Security) == 0; isOpen != open[name] {
			t.Errorf("%s is open: %v", name, isOpen)
		}
		if !open[name] && op.Responses.Value("401") == nil {
			t.Errorf("%s has no response 401", name)
		}
		has := func(header string) bool { return op.Parameters.GetByInAndName("header", header) != nil }
		upload := name == "PATCH /images/{name}/content" // its precondition is the offset
		changes := !upload && (strings.HasPrefix(name, "PATCH ") || strings.HasPrefix(name, "DELETE ")) ||
			name == "PUT /vms/{id}/cloud_init"
		if has("If-Match") != changes || !upload && (op.Responses.Value("412") != nil) != changes {
			t.Errorf("%s: If-Match is missing or unexpected", name)
		}
		if one := single.MatchString(name); has("If-None-Match") != one || (op.Responses.Value("304") != nil) != one {
			t.Errorf("%s: If-None-Match is missing or unexpected", name)
		}
		// Requests to a guest or a console have no operation that could record a key, and
		// the bytes of an upload are not kept to compare.
		keyed := !upload && !strings.HasPrefix(name, "GET ") && op.Tags[0] != "guest" && op.Tags[0] != "console"
		if has("Idempotency-Key") != keyed || (op.Responses.Value("422") != nil) != keyed {
			t.Errorf("%s: Idempotency-Key is missing or unexpected", name)
		}
		for status, r := range op.Responses.Map() {
			if status < "300" && (r.Value.Headers["Idempotency-Replayed"] != nil) != keyed {
				t.Errorf("%s %s: Idempotency-Replayed is missing or unexpected", name, status)
			}
		}
		created := op.Responses.Value("201")
		waits := op.Responses.Value("202") != nil &&
			(op.Responses.Value("200") != nil || created != nil && created.Value.Headers["Preference-Applied"] != nil)
		if has("Prefer") != (waits && !upload) {
			t.Errorf("%s: Prefer is missing or unexpected", name)
		}
	})
}

func TestTheGeneratedCodeHasEveryOperation(t *testing.T) {
	server := reflect.TypeFor[StrictServerInterface]()
	var want []string
	operations(load(t), func(_ string, op *openapi3.Operation) {
		if op.Tags[0] != "documentation" { // not generated
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
		t.Errorf("interface %v\ncontract %v", got, want)
	}
}

// documentedCodes returns the statuses of the codes in the description of ProblemCode.
func documentedCodes(doc *openapi3.T) map[string]string {
	codes := map[string]string{}
	description := doc.Components.Schemas["ProblemCode"].Value.Description
	for _, m := range regexp.MustCompile("(?m)^- `([a-z-]+)` \\(([0-9]{3})\\): .").FindAllStringSubmatch(description,
		-1) {
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
		t.Errorf("enum %v\ndescription %v", enum, documented)
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
