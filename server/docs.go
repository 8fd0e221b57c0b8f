package server

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/labstack/echo/v4"

	"vmand/openapi"
)

// The parts of the page at /docs, which shows the contract in a browser. The page
// loads only /openapi.json from this server.
var (
	//go:embed docs/page.html
	docsPage string
	//go:embed docs/style.css
	docsStyle string
	//go:embed docs/script.js
	docsScript string
)

// registerDocs registers the operations with the tag documentation: the contract and
// the page that shows it.
func (s *Server) registerDocs() {
	page := strings.NewReplacer("{{style}}", docsStyle, "{{script}}", docsScript).Replace(docsPage)
	policy := "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" +
		"; style-src " + sourceHash(docsStyle) + "; script-src " + sourceHash(docsScript)
	s.echo.GET("/openapi.yaml", document("application/yaml", "", openapi.YAML))
	s.echo.GET("/openapi.json", document("application/json", "", openapi.JSON))
	s.echo.GET("/docs", document("text/html; charset=utf-8", policy, func() []byte { return []byte(page) }))
}

// document returns a handler that answers with the content that read returns. policy
// is the Content-Security-Policy, or empty.
func document(mediaType, policy string, read func() []byte) echo.HandlerFunc {
	packed := sync.OnceValue(func() []byte { return compressed(read()) }) // once, since anyone may ask for it
	return func(c echo.Context) error {
		content := read()
		if content == nil {
			return errors.New("cannot convert the contract to JSON")
		}
		h := c.Response().Header()
		if wantsGzip(c.Request().Header) {
			content = packed()
			h.Set("Content-Encoding", "gzip")
		}
		h.Set("Content-Type", mediaType)
		h.Set("Content-Length", strconv.Itoa(len(content)))
		if policy != "" {
			h.Set("Content-Security-Policy", policy)
		}
		limitSending(c.Response())
		c.Response().WriteHeader(http.StatusOK)
		_, err := c.Response().Write(content)
		return err
	}
}

// sourceHash returns the source expression of a Content-Security-Policy that allows
// only this inline style or script.
func sourceHash(source string) string {
	hash := sha256.Sum256([]byte(source))
	return "'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"
}
