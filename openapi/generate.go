// Package openapi is the contract of the REST API: vman.yaml, written by hand,
// and the Go code generated from it. The client is in package
// vmand/openapi/client.
//
// In the generated responses an empty string in a header's field means that the
// header is absent: whoever writes a response drops empty headers. The headers
// that any answer may carry (X-Request-Id, Server, X-Vman-Dry-Run,
// Idempotency-Replayed) and the Idempotency-Key of a request are the business of
// a middleware, so they are in vman.yaml and not in the generated code; so is
// who may call, which it would note down with every request for nobody; and
// null, which the generator would take for a word of an enum.
package openapi

//go:generate sh generate.sh server.yaml server.gen.go
//go:generate sh generate.sh client.yaml client/client.gen.go
//go:generate go run ./requests vman.yaml requests.json
