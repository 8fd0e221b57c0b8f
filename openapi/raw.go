package openapi

import "encoding/json"

// RawJSON is an encoded JSON value.
type RawJSON = json.RawMessage
