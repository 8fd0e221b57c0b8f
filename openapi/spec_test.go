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

// operations calls f for each operation, with its method and path as its name.
func operations(doc *openapi3.T, f func(name string, op *openapi3.Operation)) {
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			f(method+" "+path, op)
		}
	}
}

// schemas calls f for each schema of the document that stands at a place of its
// own, with the place. A schema that is referred to is visited where it is
// defined.
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

// contents calls f for each body of a request and of a response.
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

func TestTheDocumentIsTheSameInEveryForm(t *testing.T) {
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
		t.Error("JSON says something else than YAML")
	}
}

func TestLoadReturnsACopyOfItsOwn(t *testing.T) {
	load(t).Paths.Delete("/vms")
	if load(t).Paths.Value("/vms") == nil {
		t.Error("what one caller did to its document shows in the next one's")
	}
}

func TestEveryObjectIsClosed(t *testing.T) {
	schemas(load(t), func(place string, s *openapi3.Schema) {
		if place == "OpenAPIDocument" || place == "EventData" || !s.Type.Is("object") {
			return
		}
		if has := s.AdditionalProperties.Has; s.AdditionalProperties.Schema == nil && (has == nil || *has) {
			t.Errorf("%s lets unknown properties through", place)
		}
		for _, name := range s.Required {
			if s.Properties[name] == nil {
				t.Errorf("%s requires %s, which it does not have", place, name)
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

// An answer has every property, with null where there is no value. Requests and
// problems may leave properties out.
func TestAnswersHaveAllTheirProperties(t *testing.T) {
	doc := load(t)
	for _, name := range []string{"Template", "VM", "VMTemplate", "Disk", "Operation", "OperationLogLine", "Event",
		"NIC", "PortForward", "CDROM", "Image", "CloudInitDetails", "CloudInitUserDetails", "CloudInitFiles", "CloudInitStatus", "Boot", "Network", "NetworkDetails", "NetworkRoute", "Lease", "NetworkProblem",
		"Agent", "Guest", "GuestOS", "GuestInterface", "GuestFilesystem", "ExecResult", "ConsoleTicket",
		"Why", "WhyRecorded", "WhyProcess", "WhyQMP", "WhyVerdict", "Recorder", "Recording", "RecordedMessage",
		"ObserverStatus", "Issue", "Health", "HealthChecks", "HealthCheck", "FieldError"} {
		s := doc.Components.Schemas[name].Value
		for property := range s.Properties {
			if !slices.Contains(s.Required, property) {
				t.Errorf("%s/%s may be left out", name, property)
			}
		}
	}
}

func TestEveryTimeIsOfTheTypeThatSpellsIt(t *testing.T) {
	schemas(load(t), func(place string, s *openapi3.Schema) {
		if s.Format == "date-time" && s.Extensions["x-go-type"] != "Time" {
			t.Errorf("%s is a time and not of type Time", place)
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
			t.Errorf("%s takes a body and says nothing of 413", name)
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

// checkRead checks what goes with the answer to a GET of a resource or a list.
// The lists of what is part of one VM are short and come without pages.
func checkRead(t *testing.T, name string, op *openapi3.Operation) {
	t.Helper()
	ok := op.Responses.Status(200)
	if ok == nil {
		if op.Responses.Status(101) == nil {
			t.Errorf("%s has neither an answer nor a connection", name)
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
		t.Errorf("%s and Link do not go together", name)
	}
	if isOne := strings.HasSuffix(name, "}") || strings.HasSuffix(name, "/cloud_init"); isOne != (r.Headers["ETag"] != nil) {
		t.Errorf("%s and ETag do not go together", name)
	}
}

// The guards of the API: which paths are open, which can be made conditional,
// which can be waited for.
func TestOpenPathsAndConditions(t *testing.T) {
	open := map[string]bool{"GET /health": true, "GET /openapi.yaml": true, "GET /openapi.json": true, "GET /docs": true}
	single := regexp.MustCompile(`^GET /((templates|vms|disks|networks|operations|vms/\{id\}/(nics|port_forwards|cdroms))/\{\w+\}|images/\{name\}(/content)?)$`)
	operations(load(t), func(name string, op *openapi3.Operation) {
		if isOpen := op.Security != nil && len(*op.Security) == 0; isOpen != open[name] {
			t.Errorf("%s needs no token: %v", name, isOpen)
		}
		if !open[name] && op.Responses.Value("401") == nil {
			t.Errorf("%s says nothing of 401", name)
		}
		has := func(header string) bool { return op.Parameters.GetByInAndName("header", header) != nil }
		upload := name == "PATCH /images/{name}/content" // whose precondition is the offset
		changes := !upload && (strings.HasPrefix(name, "PATCH ") || strings.HasPrefix(name, "DELETE ")) || name == "PUT /vms/{id}/cloud_init"
		if has("If-Match") != changes || !upload && (op.Responses.Value("412") != nil) != changes {
			t.Errorf("%s and If-Match do not go together", name)
		}
		if one := single.MatchString(name); has("If-None-Match") != one || (op.Responses.Value("304") != nil) != one {
			t.Errorf("%s and If-None-Match do not go together", name)
		}
		// What a guest or a console is asked for leaves no record to know it again by,
		// nor do bytes, which nobody keeps to compare.
		keyed := !upload && !strings.HasPrefix(name, "GET ") && op.Tags[0] != "guest" && op.Tags[0] != "console"
		if has("Idempotency-Key") != keyed || (op.Responses.Value("422") != nil) != keyed {
			t.Errorf("%s and Idempotency-Key do not go together", name)
		}
		for status, r := range op.Responses.Map() {
			if status < "300" && (r.Value.Headers["Idempotency-Replayed"] != nil) != keyed {
				t.Errorf("%s %s and Idempotency-Replayed do not go together", name, status)
			}
		}
		created := op.Responses.Value("201")
		waits := op.Responses.Value("202") != nil && (op.Responses.Value("200") != nil || created != nil && created.Value.Headers["Preference-Applied"] != nil)
		if has("Prefer") != (waits && !upload) {
			t.Errorf("%s and Prefer do not go together", name)
		}
	})
}

func TestTheGeneratedCodeHasEveryOperation(t *testing.T) {
	server := reflect.TypeFor[StrictServerInterface]()
	var want []string
	operations(load(t), func(_ string, op *openapi3.Operation) {
		if op.Tags[0] != "documentation" { // served as files are
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
		t.Errorf("the server has %v\nand the document %v", got, want)
	}
}

// documentedCodes returns the status of each code that the description of
// ProblemCode explains.
func documentedCodes(doc *openapi3.T) map[string]string {
	codes := map[string]string{}
	description := doc.Components.Schemas["ProblemCode"].Value.Description
	for _, m := range regexp.MustCompile("(?m)^- `([a-z-]+)` \\(([0-9]{3})\\): .").FindAllStringSubmatch(description, -1) {
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
		t.Errorf("the enum has %v\nand the description %v", enum, documented)
	}
	operations(doc, func(name string, op *openapi3.Operation) {
		for status := range op.Responses.Map() {
			known := slices.Contains(slices.Collect(maps.Values(codes)), status)
			if status >= "400" && status != "default" && !known {
				t.Errorf("%s answers %s, which no code stands for", name, status)
			}
		}
	})
}
