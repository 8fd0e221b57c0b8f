// Command requests writes the part of the contract that is needed to validate requests, as
// compact JSON: requests VMAN.YAML OUTPUT. It is run by go generate in package
// vmand/openapi.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: requests VMAN.YAML OUTPUT")
		os.Exit(2)
	}
	b, err := requests(os.Args[1])
	if err == nil {
		err = os.WriteFile(os.Args[2], b, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "requests:", err)
		os.Exit(1)
	}
}

// requests returns the part of the contract in a file that is needed to validate requests.
func requests(file string) ([]byte, error) {
	doc, err := openapi3.NewLoader().LoadFromFile(file)
	if err != nil {
		return nil, err
	}
	for _, item := range doc.Paths.Map() {
		for _, o := range item.Operations() {
			o.Responses = streamsOnly(o.Responses)
		}
	}
	doc.Components.Responses, doc.Components.Headers, doc.Components.Examples = nil, nil, nil
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := json.Unmarshal(b, &tree); err != nil {
		return nil, err
	}
	prune(tree)
	b, err = json.Marshal(tree)
	return append(b, '\n'), err
}

// streamsOnly reduces responses to the media types of response 200: the validation of a
// request depends on whether the response can be a stream.
func streamsOnly(all *openapi3.Responses) *openapi3.Responses {
	ok := all.Value("200")
	if ok == nil {
		return nil
	}
	left := openapi3.NewResponse()
	left.Content = openapi3.Content{}
	for media := range ok.Value.Content {
		left.Content[media] = openapi3.NewMediaType()
	}
	return openapi3.NewResponses(openapi3.WithStatus(200, &openapi3.ResponseRef{Value: left}))
}

var (
	// forPeople lists members that document the contract, or are for the code generator.
	forPeople = []string{
		"description", "summary", "title", "example", "examples",
		"tags", "externalDocs", "contact", "license",
	}
	// named lists members whose own members have names that the contract defines.
	named = []string{
		"paths", "properties", "schemas", "parameters", "securitySchemes", "content", "responses",
	}
	// literal lists members with values that are not part of the OpenAPI language.
	literal = []string{"enum", "default", "const"}
)

// prune removes the documentation from an object of the contract.
func prune(object map[string]any) {
	for key, member := range object {
		switch {
		case slices.Contains(forPeople, key), strings.HasPrefix(key, "x-"):
			delete(object, key)
		case !slices.Contains(literal, key):
			descend(member, slices.Contains(named, key))
		}
	}
}

// descend prunes the objects in a member. If named is set, the names of its own members
// are not those of the OpenAPI language.
func descend(v any, named bool) {
	switch v := v.(type) {
	case []any:
		for _, element := range v {
			descend(element, false)
		}
	case map[string]any:
		if !named {
			prune(v)
			return
		}
		for _, member := range v {
			descend(member, false)
		}
	}
}
