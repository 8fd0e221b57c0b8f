package server

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"vmand/openapi"
)

// The page at /docs, which shows the specification in a browser. It loads
// nothing but /openapi.json from this server.
var (
	//go:embed docs/page.html
	docsPage string
	//go:embed docs/style.css
	docsStyle string
	//go:embed docs/script.js
	docsScript string
)

// registerDocs adds what the specification tags as documentation: itself, and
// the page that shows it.
func (s *Server) registerDocs() {
	page := strings.NewReplacer("{{style}}", docsStyle, "{{script}}", docsScript).Replace(docsPage)
	policy := "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" +
		"; style-src " + sourceHash(docsStyle) + "; script-src " + sourceHash(docsScript)
	s.echo.GET("/openapi.yaml", document("application/yaml", "", openapi.YAML))
	s.echo.GET("/openapi.json", document("application/json", "", openapi.JSON))
	s.echo.GET("/docs", document("text/html; charset=utf-8", policy, func() []byte { return []byte(page) }))
}

// document returns a handler that answers with what read returns. policy is a
// Content-Security-Policy, empty for none.
func document(mediaType, policy string, read func() []byte) echo.HandlerFunc {
	return func(c echo.Context) error {
		content := read()
		if content == nil {
			return errors.New("convert the API's specification to JSON")
		}
		h := c.Response().Header()
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

// sourceHash returns what allows exactly this inline style or script in a
// Content-Security-Policy.
func sourceHash(source string) string {
	hash := sha256.Sum256([]byte(source))
	return "'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"
}
