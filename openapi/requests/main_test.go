package main

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"testing"

	"vmand/openapi"
)

func TestRequestsJSONIsUpToDate(t *testing.T) {
	want, err := requests("../vman.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../requests.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("openapi/requests.json does not match openapi/vman.yaml: run \"make generate\"")
	}
}

// TestRequestsHaveTheRulesOfTheContract compares the parts of the contract that are used to
// validate requests, without their documentation.
func TestRequestsHaveTheRulesOfTheContract(t *testing.T) {
	contract, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	reduced, err := openapi.Requests()
	if err != nil {
		t.Fatal(err)
	}
	if len(reduced.Paths.Map()) != len(contract.Paths.Map()) {
		t.Errorf("%d of %d paths", len(reduced.Paths.Map()), len(contract.Paths.Map()))
	}
	for path, item := range contract.Paths.Map() {
		for method, o := range item.Operations() {
			have := reduced.Paths.Value(path).GetOperation(method)
			same(t, method+" "+path+": parameters of the path", reduced.Paths.Value(path).Parameters, item.Parameters)
			same(t, method+" "+path+": parameters", have.Parameters, o.Parameters)
			same(t, method+" "+path+": body", have.RequestBody, o.RequestBody)
			same(t, method+" "+path+": security", have.Security, o.Security)
		}
	}
	same(t, "security", reduced.Security, contract.Security)
	same(t, "schemas", reduced.Components.Schemas, contract.Components.Schemas)
	same(t, "parameters", reduced.Components.Parameters, contract.Components.Parameters)
}

// same fails the test if got and want differ in more than documentation.
func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := plain(t, got), plain(t, want); !reflect.DeepEqual(g, w) {
		t.Errorf("%s: %v, want %v", what, g, w)
	}
}

// plain returns the JSON of v without documentation.
func plain(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	holder := map[string]any{"schemas": tree}
	if _, list := tree.([]any); list {
		holder = map[string]any{"list": tree}
	}
	if o, ok := tree.(map[string]any); ok && o["content"] != nil { // a body, not a map with names of the contract
		holder = map[string]any{"body": tree}
	}
	prune(holder)
	return holder
}
