package openapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// conform returns an error if the JSON of value does not match schema.
func conform(s *openapi3.Schema, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	return s.VisitJSON(v, openapi3.MultiErrors(), openapi3.EnableFormatValidation())
}

func TestEveryBodyHasValidExamples(t *testing.T) {
	contents(load(t), func(place string, m *openapi3.MediaType) {
		examples := map[string]any{}
		for name, e := range m.Examples {
			examples[name] = e.Value.Value
		}
		if m.Example != nil {
			examples["example"] = m.Example
		}
		if len(examples) == 0 {
			t.Errorf("%s has no example", place)
		}
		for name, value := range examples {
			if err := conform(m.Schema.Value, value); err != nil {
				t.Errorf("%s: %s: %v", place, name, err)
			}
		}
	})
}

func TestEveryParameterAndHeaderHasAValidExample(t *testing.T) {
	parameters(load(t), func(place string, p *openapi3.Parameter) {
		if p.Description == "" || p.Example == nil {
			t.Errorf("%s has no description or no example", place)
			return
		}
		if err := conform(p.Schema.Value, p.Example); err != nil {
			t.Errorf("%s: %v", place, err)
		}
	})
}

func TestTheExamplesOfSchemasAreValid(t *testing.T) {
	schemas(load(t), func(place string, s *openapi3.Schema) {
		for kind, value := range map[string]any{"example": s.Example, "default": s.Default} {
			if value == nil {
				continue
			}
			if err := conform(s, value); err != nil {
				t.Errorf("%s: %s: %v", place, kind, err)
			}
		}
	})
}

// An example problem has the documented status and the type of its code, and belongs to
// a response with that status.
func TestTheExampleProblemsMatchTheirCodes(t *testing.T) {
	doc := load(t)
	codes := documentedCodes(doc)
	shown := map[string]bool{}
	contents(doc, func(place string, m *openapi3.MediaType) {
		for name, e := range m.Examples {
			p, ok := e.Value.Value.(map[string]any)
			if !ok || p["code"] == nil {
				continue
			}
			code, status := p["code"].(string), fmt.Sprint(p["status"])
			shown[code] = true
			if codes[code] != status || p["type"] != "urn:vman:problem:"+code {
				t.Errorf("%s: %s: code %s with status %s and type %v", place, name, code, status, p["type"])
			}
			if !strings.Contains(place, " "+status+" ") && !strings.Contains(place, " default ") {
				t.Errorf("%s: %s: the example has status %s", place, name, status)
			}
		}
	})
	for code := range codes {
		if !shown[code] {
			t.Errorf("the code %s has no example", code)
		}
	}
}
