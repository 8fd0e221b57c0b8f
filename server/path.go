package server

import (
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"vmand/vm"
)

// canonical returns r with the one spelling of its path that the routes, the idempotency
// keys and the log know: without percent-encoding (RFC 3986, 6.2.2.2) and without a slash
// at the end. It returns r itself if it has that spelling. A path with an encoded slash
// keeps its encoding; checkPath refuses it.
func canonical(r *http.Request) *http.Request {
	decode := r.URL.RawPath != "" && !hasEncodedSlash(r.URL.RawPath)
	cut := len(r.URL.Path) > 1 && strings.HasSuffix(r.URL.Path, "/")
	if !decode && !cut {
		return r
	}
	same, u := *r, *r.URL
	if decode {
		u.RawPath = ""
	}
	if cut {
		u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), strings.TrimSuffix(u.RawPath, "/")
	}
	same.URL = &u
	return &same
}

func hasEncodedSlash(path string) bool {
	return strings.Contains(path, "%2F") || strings.Contains(path, "%2f")
}

// checkPath refuses a path with an encoded slash: no name of a resource has a slash, and
// proxies decode it or not, so that client and server would mean different resources.
func checkPath(c echo.Context) error {
	if !hasEncodedSlash(c.Request().URL.RawPath) {
		return nil
	}
	const detail = "must not have an encoded slash (%2F): no name has a slash"
	fault := &vm.Fault{
		Code:   vm.CodeInvalid,
		Detail: "the path " + detail,
		Hint:   "send / between the parts of the path, or correct the name",
	}
	for _, name := range c.ParamNames() {
		if hasEncodedSlash(c.Param(name)) {
			fault.Fields = append(fault.Fields, vm.FieldFault{Field: name, Detail: detail})
		}
	}
	return fault
}

// isServerWide reports whether a request is about the server and not about a resource:
// OPTIONS * (RFC 9110, 9.3.7).
func isServerWide(r *http.Request) bool { return r.Method == http.MethodOptions && r.RequestURI == "*" }

// serverMethods are the methods that the paths of the API support.
const serverMethods = "OPTIONS, GET, HEAD, POST, PUT, PATCH, DELETE"

// withHead returns the methods of echo with HEAD, which every path with GET supports.
func withHead(allow string) string {
	return strings.Replace(allow, http.MethodGet, "GET, HEAD", 1)
}
