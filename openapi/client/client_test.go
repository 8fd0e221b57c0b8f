package client

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
)

// serve starts a server that answers every request with an example of the contract.
func serve(t *testing.T, status int, mediaType, example string) *ClientWithResponses {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile("../vman.yaml")
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(doc.Components.Examples[example].Value.Value)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Prefer") != "wait=30" || r.URL.Path != "/vms/web-1/actions/start" {
			t.Errorf("the client sent %s with Prefer %q", r.URL.Path, r.Header.Get("Prefer"))
		}
		w.Header().Set("Content-Type", mediaType)
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}))
	t.Cleanup(server.Close)
	c, err := NewClientWithResponses(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func start(t *testing.T, c *ClientWithResponses) *StartVMResponse {
	t.Helper()
	wait := "wait=30"
	r, err := c.StartVMWithResponse(t.Context(), "web-1", &StartVMParams{Prefer: &wait}, StartVMJSONRequestBody{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTheClientDecodesAResource(t *testing.T) {
	r := start(t, serve(t, http.StatusOK, "application/json", "VMRunning"))
	if r.JSON200 == nil || r.JSON200.State != VMStateRunning || r.JSON200.NextRestartAt != nil ||
		*r.JSON200.LocalIP != "192.168.100.2" ||
		len(r.JSON200.NICs) != 1 || r.JSON200.Boot.FirstTCPAt != nil {
		t.Fatalf("decoded %+v from %s", r.JSON200, r.Body)
	}
	if want := time.Date(2026, 3, 1, 9, 5, 0, 250e6, time.UTC); !r.JSON200.UpdatedAt.Equal(want) {
		t.Errorf("updated_at is %v, want %v", r.JSON200.UpdatedAt, want)
	}
}

func TestTheClientDecodesAProblem(t *testing.T) {
	r := start(t, serve(t, http.StatusConflict, "application/problem+json", "ProblemBusy"))
	p := r.ApplicationproblemJSON409
	if p == nil || p.Code != ProblemCodeBusy || p.OperationID == "" {
		t.Fatalf("decoded %+v from %s", p, r.Body)
	}
}
