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
	requests []byte // of document, see package vmand/openapi/requests
)

// YAML returns the contract as it was written. The caller must not change it.
func YAML() []byte { return document }

// JSON returns the contract as JSON, nil if it is damaged. It is converted once,
// when it is first asked for, which takes some 40 ms. The caller must not change it.
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

// Requests returns what the contract says about requests, without the words
// that explain it: all that is needed to check one. Nobody who starts vmand waits
// for the whole contract, which takes ten times as long to read.
func Requests() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(requests)
	if err != nil {
		return nil, fmt.Errorf("read what the API's contract says about requests: %w", err)
	}
	return doc, nil
}

// Load parses and validates the contract, which takes some 40 ms, and returns a
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
