package vm

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// The marks by which cloud-init detects the type of user data: the first line begins with one,
// in upper or lower case.
const (
	markConfig   = "#cloud-config"
	markArchive  = "#cloud-config-archive"
	markPatch    = "#cloud-config-jsonp"
	markTemplate = "## template: jinja"
	markScript   = "#!"
	markMIME     = "MIME-Version: or Content-Type: multipart/"
)

// dataMarks lists the marks. A mark that begins with another one is listed before it.
var dataMarks = []string{
	markArchive,
	markPatch,
	markConfig,
	markScript,
	"#include-once",
	"#include",
	"#cloud-boothook",
	"#part-handler",
	markTemplate,
}

// mimeStart matches the first line of a MIME message.
var mimeStart = regexp.MustCompile(`(?i)^(mime-version:|content-type:\s*multipart/)`)

// markOf returns the mark that data begins with, or "" for none. Like cloud-init it skips white
// space before the mark. Unlike cloud-init it requires white space or the end of the line after
// the mark, so that a typo such as "#cloud-configuration" is an error.
func markOf(data string) string {
	line := firstLine(data)
	for _, mark := range dataMarks {
		if len(line) < len(mark) || !strings.EqualFold(line[:len(mark)], mark) {
			continue
		}
		if rest := line[len(mark):]; mark == markScript || rest == "" || rest[0] == ' ' || rest[0] == '\t' {
			return mark
		}
	}
	if mimeStart.MatchString(line) {
		return markMIME
	}
	return ""
}

// firstLine returns the first line of data that is not empty, without surrounding white space.
func firstLine(data string) string {
	line, _, _ := strings.Cut(strings.TrimLeftFunc(data, unicode.IsSpace), "\n")
	return strings.TrimRightFunc(line, unicode.IsSpace)
}

// isMIME reports whether cloud-init treats data as a MIME message: it searches the first 4096
// bytes for the header.
func isMIME(data string) bool {
	return strings.Contains(strings.ToLower(data[:min(len(data), 4096)]), "mime-version:")
}

// checkText returns a [Fault] of code [CodeInvalid] if text is longer than limit bytes or not text.
func checkText(field, text string, limit int) error {
	if len(text) > limit {
		return InvalidField(field, "must be at most %d KiB", limit>>10)
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return InvalidField(field, "must be UTF-8 text without NUL, not compressed and not base64-encoded")
	}
	return nil
}

// checkUserData returns a [Fault] of code [CodeInvalid] if data is not valid user data or vendor
// data. Empty data is valid.
func checkUserData(field, data string) error {
	if data == "" {
		return nil
	}
	if err := checkText(field, data, maxUserData); err != nil {
		return err
	}
	root, kind := "", yaml.Kind(0) // the required root of a YAML document
	switch markOf(data) {
	case "":
		line := []rune(firstLine(data))
		return InvalidField(field,
			"begins with %q, which cloud-init does not recognize: the first line must begin with %s or %s",
			string(line[:min(len(line), 40)]), strings.Join(dataMarks, ", "), markMIME)
	case markMIME:
		if !isMIME(data) {
			return InvalidField(field,
				"must have the header MIME-Version: in the first 4096 bytes, by which cloud-init recognizes a MIME message")
		}
	case markConfig:
		root, kind = "a mapping", yaml.MappingNode
	case markArchive:
		root, kind = "a list", yaml.SequenceNode
	}
	if kind == 0 {
		return nil
	}
	n, err := parseYAML(data)
	if err != nil {
		return InvalidField(field, "%v", err)
	}
	if n.Kind != kind {
		return InvalidField(field, "line %d: the document must be %s", n.Line, root)
	}
	return nil
}

// checkNetworkConfig returns a [Fault] of code [CodeInvalid] if config is not a network config of
// version 1 or 2. An empty config is valid.
func checkNetworkConfig(field, config string) error {
	if config == "" {
		return nil
	}
	if err := checkText(field, config, maxNetworkConfig); err != nil {
		return err
	}
	n, err := parseYAML(config)
	if err != nil {
		return InvalidField(field, "%v", err)
	}
	if inner := valueOf(n, "network"); inner != nil {
		n = inner
	}
	if n.Kind != yaml.MappingNode {
		return InvalidField(field, "line %d: the document must be a mapping", n.Line)
	}
	version := valueOf(n, "version")
	if version == nil {
		return InvalidField(field,
			"line %d: version: 1 or version: 2 must be here or under the key network", n.Line)
	}
	if version.ShortTag() != "!!int" || (version.Value != "1" && version.Value != "2") {
		return InvalidField(field, "line %d: version must be 1 or 2", version.Line)
	}
	return nil
}

// valueOf returns the value of a key of the mapping n, or nil if n is not a mapping or does not
// have the key.
func valueOf(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return resolve(n.Content[i+1])
		}
	}
	return nil
}

// resolve returns the node that the alias n refers to, or n if it is not an alias.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// parseYAML returns the root of the only document in text. Its errors begin with a line number.
// It does not expand aliases, so its cost is proportional to the length of text.
func parseYAML(text string) (*yaml.Node, error) {
	isForbidden := func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune("\t\n\r\u0085", r) }
	if i := strings.IndexFunc(text, isForbidden); i >= 0 {
		r, _ := utf8.DecodeRuneInString(text[i:])
		return nil, fmt.Errorf("line %d: the control character %U is not allowed", 1+strings.Count(text[:i], "\n"), r)
	}
	d := yaml.NewDecoder(strings.NewReader(text))
	var doc, next yaml.Node
	err := d.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		return nil, errors.New("line 1: the document is missing: write {} for an empty one")
	}
	if err != nil {
		return nil, yamlFault(err, text)
	}
	switch err := d.Decode(&next); {
	case err == nil:
		return nil, fmt.Errorf("line %d: a second document begins, but only one is allowed", next.Line)
	case !errors.Is(err, io.EOF):
		return nil, yamlFault(err, text)
	}
	if countNodes(doc.Content[0]) > maxYAMLNodes {
		return nil, fmt.Errorf("line 1: the document has more than %d values", maxYAMLNodes)
	}
	return doc.Content[0], uniqueKeys(doc.Content[0])
}

// maxYAMLNodes bounds the cost of a document that consists of separators only. Real documents
// have some hundred nodes.
const maxYAMLNodes = 50_000

// countNodes returns the number of nodes of the tree n. It does not follow aliases.
func countNodes(n *yaml.Node) int {
	count := 1
	for _, c := range n.Content {
		count += countNodes(c)
	}
	return count
}

var (
	yamlLine   = regexp.MustCompile(`^line (\d+): (.*)$`)
	yamlAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
)

// yamlFault returns an error of the YAML parser with the number of the faulty line in front. The
// parser omits the number of line 1 and of an alias without an anchor, and reports a wrong number
// for a violation of the grammar.
func yamlFault(err error, text string) error {
	line, detail := parseFault(err)
	if strings.HasPrefix(detail, grammarFault) {
		line = grammarLine(text, line, detail)
	}
	if m := yamlAnchor.FindStringSubmatch(detail); m != nil {
		before, _, _ := strings.Cut(text, "*"+m[1])
		line = 1 + strings.Count(before, "\n")
	}
	return fmt.Errorf("line %d: %s", line, detail)
}

// grammarFault is the beginning of the parser's errors about a violation of the grammar.
const grammarFault = "did not find expected"

// parseFault splits an error of the parser into the line number, 1 if it has none, and the text.
func parseFault(err error) (line int, detail string) {
	line, detail = 1, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(detail); m != nil {
		fmt.Sscan(m[1], &line)
		detail = m[2]
	}
	return line, detail
}

// grammarLine returns the number of the line at which the parser finds the violation with the
// given detail: the last line of the shortest prefix of text with that violation. Since the search parses the text
// several times, it returns the reported line plus 1, where the faulty block begins, for a text
// of more than 64 KiB.
func grammarLine(text string, line int, detail string) int {
	if len(text) > maxNetworkConfig {
		return line + 1
	}
	lines := strings.SplitAfter(text, "\n")
	return 1 + sort.Search(len(lines)-1, func(i int) bool {
		var doc yaml.Node
		err := yaml.Unmarshal([]byte(strings.Join(lines[:i+1], "")), &doc)
		if err == nil {
			return false
		}
		_, found := parseFault(err)
		return found == detail
	})
}

// uniqueKeys returns an error if a mapping in n has a key twice. cloud-init would use the last
// one silently.
func uniqueKeys(n *yaml.Node) error {
	if n.Kind == yaml.MappingNode {
		first := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := resolve(n.Content[i])
			if key.Kind != yaml.ScalarNode {
				continue
			}
			id := key.ShortTag() + " " + key.Value
			if line, ok := first[id]; ok {
				return fmt.Errorf("line %d: the key %q is already on line %d", n.Content[i].Line, key.Value, line)
			}
			first[id] = n.Content[i].Line
		}
	}
	for _, c := range n.Content {
		if err := uniqueKeys(c); err != nil {
			return err
		}
	}
	return nil
}
