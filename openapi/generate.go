// Package openapi is the contract of the REST API: vman.yaml, written by hand, and the
// Go code generated from it. The client is in package vmand/openapi/client.
//
// In the generated responses, an empty string in the field of a header means that the
// header is absent: the writer of a response drops empty headers.
//
// Some parts of vman.yaml are not in the generated code. Middleware handles the headers
// that every response may have (X-Request-Id, Server, X-Vman-Dry-Run,
// Idempotency-Replayed), the Idempotency-Key of a request, and authorization, for which
// the generator would add unused code to every request. A null in an enum is left out,
// because the generator would take it as a string.
package openapi

//go:generate sh generate.sh server.yaml server.gen.go
//go:generate sh generate.sh client.yaml client/client.gen.go
//go:generate go run ./requests vman.yaml requests.json
