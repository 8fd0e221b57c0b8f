package openapi

import "testing"

func TestTheContractLoadsAndIsValid(t *testing.T) {
	if _, err := Load(); err != nil {
		t.Fatal(err)
	}
}
