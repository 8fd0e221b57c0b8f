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
		t.Error("openapi/requests.json is out of date: run make generate")
	}
}

// TestRequestsJSONHasAllThatValidatesRequests compares the parts of the two documents
// that validate requests, without descriptions.
func TestRequestsJSONHasAllThatValidatesRequests(t *testing.T) {
	whole, err := openapi.Load()
	if err != nil {
		t.Fatal(err)
	}
	some, err := openapi.Requests()
	if err != nil {
		t.Fatal(err)
	}
	if len(some.Paths.Map()) != len(whole.Paths.Map()) {
		t.Errorf("%d paths, want %d", len(some.Paths.Map()), len(whole.Paths.Map()))
	}
	for path, item := range whole.Paths.Map() {
		for method, o := range item.Operations() {
			have := some.Paths.Value(path).GetOperation(method)
			same(t, method+" "+path+": parameters of the path", some.Paths.Value(path).Parameters, item.Parameters)
			same(t, method+" "+path+": parameters", have.Parameters, o.Parameters)
			same(t, method+" "+path+": body", have.RequestBody, o.RequestBody)
			same(t, method+" "+path+": security", have.Security, o.Security)
		}
	}
	same(t, "security", some.Security, whole.Security)
	same(t, "schemas", some.Components.Schemas, whole.Components.Schemas)
	same(t, "parameters", some.Components.Parameters, whole.Components.Parameters)
}

func same(t *testing.T, part string, got, want any) {
	t.Helper()
	if g, w := plain(t, got), plain(t, want); !reflect.DeepEqual(g, w) {
		t.Errorf("%s: %v, want %v", part, g, w)
	}
}

// plain returns v as a JSON tree without descriptions.
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
	if o, ok := tree.(map[string]any); ok && o["content"] != nil { // a body
		holder = map[string]any{"body": tree}
	}
	prune(holder)
	return holder
}
