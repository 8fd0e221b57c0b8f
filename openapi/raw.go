package openapi

import "encoding/json"

// RawJSON is a JSON value that is passed through unchanged.
type RawJSON = json.RawMessage
