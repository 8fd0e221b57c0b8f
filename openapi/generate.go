// Package openapi is the contract of the REST API: vman.yaml, written by hand,
// and the Go code generated from it. The client is package
// vmand/openapi/client.
//
// A handler returns a [Response], which writes itself. The generated code has no
// type for each response of each operation: the tests validate every answer
// against the contract instead.
//
// The generator does not see these parts of vman.yaml (generate.sh removes
// them), because the server's middleware handles them for all operations:
//   - the headers that any answer may carry (X-Request-Id, Server,
//     X-Vman-Dry-Run, Idempotency-Replayed);
//   - the request header Idempotency-Key;
//   - the security requirements.
//
// It does not see null in types and enums either: it would generate an enum
// value for it.
package openapi

//go:generate sh generate.sh server.yaml server.gen.go
//go:generate sh generate.sh client.yaml client/client.gen.go
//go:generate go run ./requests vman.yaml requests.json
