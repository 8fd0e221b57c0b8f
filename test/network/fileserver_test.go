package network

import (
	"net"
	"net/http"
	"sync"
	"testing"

	"vmand/test/harness"
)

// A fileServer is an HTTP server with files in memory. It is safe for concurrent use.
type fileServer struct {
	files map[string][]byte

	mu       sync.Mutex
	requests map[string]int // by path and query
}

// serveFiles starts an HTTP server at an address of a namespace. It ends with the test.
func serveFiles(t *testing.T, n *harness.Namespace, address string, files map[string][]byte) *fileServer {
	t.Helper()
	s := &fileServer{files: files, requests: map[string]int{}}
	var l net.Listener
	n.Must("listen on "+address, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	server := &http.Server{Handler: s}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return s
}

func (s *fileServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if r.Method == http.MethodGet {
		s.requests[r.URL.RequestURI()]++
	}
	s.mu.Unlock()
	content, ok := s.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Write(content)
}

// count returns the number of requests for a path with its query so far.
func (s *fileServer) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[path]
}
