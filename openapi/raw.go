package openapi

import "encoding/json"

// RawJSON is a JSON value that is passed on as it is.
type RawJSON = json.RawMessage
