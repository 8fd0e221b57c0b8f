package openapi

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
)

var (
	//go:embed vman.yaml
	document []byte
	//go:embed requests.json
	requests []byte // the part of document that validates requests; see openapi/requests
)

// YAML returns the source of the contract. The caller must not change it.
func YAML() []byte { return document }

// JSON returns the contract as JSON, or nil if it is damaged. The first call converts it,
// which takes about 40 ms. The caller must not change it.
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

// Requests returns the part of the contract that validates requests, without
// descriptions. The start of vmand uses it because parsing takes a fifth of the time of
// the whole contract.
func Requests() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(requests)
	if err != nil {
		return nil, fmt.Errorf("parse the requests of the API contract: %w", err)
	}
	return doc, nil
}

// Load parses and validates the contract, which takes about 40 ms. Each call returns a
// new copy.
func Load() (*openapi3.T, error) {
	doc, err := parse()
	if err != nil {
		return nil, err
	}
	if err := doc.Validate(openapi3.NewLoader().Context); err != nil {
		return nil, fmt.Errorf("validate the API contract: %w", err)
	}
	return doc, nil
}

func parse() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(document)
	if err != nil {
		return nil, fmt.Errorf("parse the API contract: %w", err)
	}
	return doc, nil
}
