// Package client is a Go client of the REST API of vmand, generated from
// openapi/vman.yaml.
//
//	c, err := client.NewClientWithResponses("http://127.0.0.1:8000",
//		client.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
//			r.Header.Set("Authorization", "Bearer "+token)
//			return nil
//		}))
//
// For the unix socket, pass WithHTTPClient an http.Client with a transport that dials
// the socket.
package client
