package server

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"vmand/vm"
)

// Limits of one request of maxBody bytes. The garbage counts too.
const (
	maxRequestMemory = 24 << 20
	maxRequestAnswer = 64 << 10
)

// fillers are values that are repeated until a body is full.
var fillers = []string{"0", "{}", "[]", `""`, `{"a":0}`, `[[[[0]]]]`}

// worstBodies returns bodies of almost maxBody bytes for a schema: for each object in
// it one with unknown members, for each list and map one with as many items as fit.
func worstBodies(schema *openapi3.Schema) []string {
	var bodies []string
	var walk func(s *openapi3.Schema, open, end string)
	walk = func(s *openapi3.Schema, open, end string) {
		room := maxBody - len(open) - len(end) - 64
		if s.Type.Includes(openapi3.TypeArray) {
			for _, filler := range fillers {
				bodies = append(bodies, open+"["+strings.Repeat(filler+",", room/(len(filler)+1))+filler+"]"+end)
			}
			walk(s.Items.Value, open+"[", "]"+end)
		}
		if !s.Type.Includes(openapi3.TypeObject) {
			return
		}
		for _, filler := range fillers[:3] {
			var b strings.Builder
			for i := 0; b.Len() < room-32; i++ {
				fmt.Fprintf(&b, "%q:%s,", fmt.Sprintf("%x", i), filler)
			}
			bodies = append(bodies, open+"{"+strings.TrimSuffix(b.String(), ",")+"}"+end)
		}
		for _, name := range sortedNames(s.Properties) {
			walk(s.Properties[name].Value, open+fmt.Sprintf("{%q:", name), "}"+end)
		}
		if ref := s.AdditionalProperties.Schema; ref != nil {
			walk(ref.Value, open+`{"a":`, "}"+end)
		}
	}
	walk(schema, "", "")
	return append(bodies, strings.Repeat("[", maxBody-1), strings.Repeat(`{"a":`, maxBody/5-1))
}

// It measures the memory of the process, so it must not run in parallel.
func TestTheWorstBodyOfEachOperationIsBoundedInMemoryAndAnswer(t *testing.T) {
	a := newAPI(t)
	doc, _ := specification()
	tried, most, longest := 0, uint64(0), 0
	paths := doc.Paths.Map()
	for _, path := range sortedNames(paths) {
		for method, o := range paths[path].Operations() {
			if o.RequestBody == nil || o.RequestBody.Value.Content["application/json"] == nil {
				continue
			}
			url := strings.NewReplacer("{id}", "web-1", "{name}", "small", "{slot}", "0").Replace(path)
			for _, body := range worstBodies(o.RequestBody.Value.Content["application/json"].Schema.Value) {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				r := a.ask(t, method, url, body)
				runtime.ReadMemStats(&after)
				grown := after.TotalAlloc - before.TotalAlloc
				most, longest = max(most, grown), max(longest, len(r.body))
				tried++
				if r.StatusCode != http.StatusBadRequest || grown > maxRequestMemory || len(r.body) > maxRequestAnswer {
					t.Errorf("%s %s, %.60s… of %d bytes: status %d, %d MiB of memory, an answer of %d bytes",
						method, path, body, len(body), r.StatusCode, grown>>20, len(r.body))
				}
			}
		}
	}
	t.Logf("%d bodies: at most %d MiB of memory, an answer of at most %d bytes", tried, most>>20, longest)
	if tried < 100 {
		t.Errorf("only %d bodies were tried", tried)
	}
}

// The heap must stay small while many requests with the worst body are validated.
func TestSixtyWorstBodiesAtATimeAreBoundedInMemory(t *testing.T) {
	a := newAPI(t)
	body := `{"template_name":"small","nics":[` + strings.Repeat("0,", 500_000) + "0]}"
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() { a.ask(t, "POST", "/vms", body) })
	}
	wg.Wait()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 256<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
}

func TestMoreThanAHundredFaultsAreCounted(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	users := strings.Repeat(`{"a":0,"b":0,"c":0},`, 63) + `{"a":0}`
	p := a.want(t, 400, "POST", "/vms", `{"template_name":"small","cloud_init":{"users":[`+users+`]}}`).problem(t)
	last := p.Errors[len(p.Errors)-1]
	if len(p.Errors) != maxFaults+1 || !strings.HasPrefix(last.Detail, "and ") || !strings.HasSuffix(last.Detail, " more") {
		t.Errorf("%d errors, the last one %+v", len(p.Errors), last)
	}
	query := ""
	for i := range 3000 {
		query += fmt.Sprintf("&a%d", i)
	}
	if p := a.want(t, 400, "GET", "/vms?"+query[1:], "").problem(t); len(p.Errors) > maxFaults+1 {
		t.Errorf("%d errors for unknown parameters", len(p.Errors))
	}
}

func TestAListIsReadNoFurtherThanItsLimit(t *testing.T) {
	t.Parallel()
	schema := specificationOf(t, "/vms", "POST")
	tests := map[string]struct {
		body string
		want []vm.FieldFault
	}{
		"a long list": {
			`{"template_name":"a","nics":[` + strings.Repeat("{},", 100) + `{}]}`,
			[]vm.FieldFault{{Field: "/nics", Detail: "must have at most 8 items"}},
		},
		"many unknown members": {
			`{"a":0,"b":0,"c":0,"d":0,"e":0,"f":0,"g":0,"h":0,"i":0,"j":0}`,
			[]vm.FieldFault{{Detail: "has more than 8 unknown properties; the first ones are a, b, c, d, e, f, g, h"}},
		},
		"an unknown member with a large value": {
			`{"a":[[` + strings.Repeat("{},", 1000) + `{}]]}`,
			[]vm.FieldFault{{Field: "/a", Detail: "must not be an object or a list"}},
		},
		"below an unknown member": {`{"a":{"b":[{"c":0}]}}`, nil},
	}
	for name, tt := range tests {
		if _, faults, err := parseJSON([]byte(tt.body), schema); err != nil || !slices.Equal(faults, tt.want) {
			t.Errorf("%s: %+v, %v; want %+v", name, faults, err, tt.want)
		}
	}
}

// specificationOf returns the schema of the body of an operation.
func specificationOf(t *testing.T, path, method string) *openapi3.Schema {
	t.Helper()
	doc, _ := specification()
	return doc.Paths.Value(path).GetOperation(method).RequestBody.Value.Content["application/json"].Schema.Value
}

func TestEveryListAndMapOfARequestHasALimit(t *testing.T) {
	t.Parallel()
	doc, _ := specification()
	var walk func(s *openapi3.Schema, at string)
	walk = func(s *openapi3.Schema, at string) {
		if len(s.OneOf)+len(s.AnyOf)+len(s.AllOf) > 0 {
			t.Errorf("%s combines schemas, which the parser does not support", at)
		}
		if s.Type.Includes(openapi3.TypeArray) {
			if s.MaxItems == nil {
				t.Errorf("%s has no maxItems", at)
			}
			walk(s.Items.Value, at+"/*")
		}
		if s.Type.Includes(openapi3.TypeObject) {
			if ref := s.AdditionalProperties.Schema; ref != nil {
				if s.MaxProps == nil {
					t.Errorf("%s has no maxProperties", at)
				}
				walk(ref.Value, at+"/*")
			} else if s.AdditionalProperties.Has == nil || *s.AdditionalProperties.Has {
				t.Errorf("%s has no additionalProperties", at)
			}
		}
		for name, ref := range s.Properties {
			walk(ref.Value, at+"/"+name)
		}
	}
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			if o.RequestBody != nil && o.RequestBody.Value.Content["application/json"] != nil {
				walk(specificationOf(t, path, method), method+" "+path)
			}
		}
	}
}
