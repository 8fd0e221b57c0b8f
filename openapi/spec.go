package openapi

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
)

//go:embed vman.yaml
var document []byte

// YAML returns the contract as it was written. The caller must not change it.
func YAML() []byte { return document }

// JSON returns the contract as JSON. It is converted once. The caller must not
// change it.
var JSON = sync.OnceValue(func() []byte {
	doc, err := parse()
	if err != nil {
		return nil
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil
	}
	return b
})

// Load parses and validates the contract, which takes some 10 ms, and returns a
// new copy of it for the caller to keep.
func Load() (*openapi3.T, error) {
	doc, err := parse()
	if err != nil {
		return nil, err
	}
	if err := doc.Validate(openapi3.NewLoader().Context); err != nil {
		return nil, fmt.Errorf("validate the API's contract: %w", err)
	}
	return doc, nil
}

func parse() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(document)
	if err != nil {
		return nil, fmt.Errorf("parse the API's contract: %w", err)
	}
	return doc, nil
}
