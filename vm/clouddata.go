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

// The marks by which cloud-init knows what a piece of data is: its first line
// begins with one, in upper or lower case.
const (
	markConfig   = "#cloud-config"
	markArchive  = "#cloud-config-archive"
	markPatch    = "#cloud-config-jsonp"
	markTemplate = "## template: jinja"
	markScript   = "#!"
	markMIME     = "MIME-Version: or Content-Type: multipart/"
)

// dataMarks has no mark after one that it begins with.
var dataMarks = []string{markArchive, markPatch, markConfig, markScript, "#include-once", "#include", "#cloud-boothook", "#part-handler", markTemplate}

var mimeStart = regexp.MustCompile(`(?i)^(mime-version:|content-type:\s*multipart/)`)

// markOf returns the mark that data begins with, empty for none that is known.
// cloud-init passes over white space before a mark. It also takes anything that
// goes on after one, where this wants a space: "#cloud-configuration" is a slip.
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

func firstLine(data string) string {
	line, _, _ := strings.Cut(strings.TrimLeftFunc(data, unicode.IsSpace), "\n")
	return strings.TrimRightFunc(line, unicode.IsSpace)
}

// saysMIME reports whether cloud-init takes data for a MIME message: it looks for
// the header in the first 4096 bytes, wherever in them.
func saysMIME(data string) bool {
	return strings.Contains(strings.ToLower(data[:min(len(data), 4096)]), "mime-version:")
}

func checkText(field, text string, limit int) error {
	if len(text) > limit {
		return InvalidField(field, "must have at most %d KiB", limit>>10)
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return InvalidField(field, "must be text in UTF-8 without NUL, neither compressed nor in base64")
	}
	return nil
}

// checkUserData checks user data or vendor data.
func checkUserData(field, data string) error {
	if data == "" {
		return nil
	}
	if err := checkText(field, data, MaxUserData); err != nil {
		return err
	}
	root, kind := "", yaml.Kind(0)
	switch markOf(data) {
	case "":
		line := []rune(firstLine(data))
		return InvalidField(field, "begins with %q, which cloud-init does not know: the first line must begin with %s or %s",
			string(line[:min(len(line), 40)]), strings.Join(dataMarks, ", "), markMIME)
	case markMIME:
		if !saysMIME(data) {
			return InvalidField(field, "must have the header MIME-Version: in the first 4096 bytes, by which cloud-init knows a MIME message")
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

func checkNetworkConfig(field, config string) error {
	if config == "" {
		return nil
	}
	if err := checkText(field, config, MaxNetworkConfig); err != nil {
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
		return InvalidField(field, "line %d: version: 1 or version: 2 must be here or under the key network", n.Line)
	}
	if version.ShortTag() != "!!int" || (version.Value != "1" && version.Value != "2") {
		return InvalidField(field, "line %d: version must be 1 or 2", version.Line)
	}
	return nil
}

// valueOf returns the value of a key of a mapping; nil if n is none or has none.
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

// resolve returns what n stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// parseYAML returns the root of the one document in text. Its errors begin with
// a line. Aliases are not expanded, so the cost is in proportion to the text.
func parseYAML(text string) (*yaml.Node, error) {
	if i := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune("\t\n\r\u0085", r) }); i >= 0 {
		r, _ := utf8.DecodeRuneInString(text[i:])
		return nil, fmt.Errorf("line %d: has the control character %U", 1+strings.Count(text[:i], "\n"), r)
	}
	d := yaml.NewDecoder(strings.NewReader(text))
	var doc, next yaml.Node
	err := d.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		return nil, errors.New("line 1: there is no document: write {} for one with nothing in it")
	}
	if err != nil {
		return nil, yamlFault(err, text)
	}
	switch err := d.Decode(&next); {
	case err == nil:
		return nil, fmt.Errorf("line %d: a second document begins, and there must be one", next.Line)
	case !errors.Is(err, io.EOF):
		return nil, yamlFault(err, text)
	}
	if countNodes(doc.Content[0]) > maxYAMLNodes {
		return nil, fmt.Errorf("line 1: has more than %d values", maxYAMLNodes)
	}
	return doc.Content[0], uniqueKeys(doc.Content[0])
}

// maxYAMLNodes bounds what is done with a document that is nothing but commas;
// those of people have some hundred.
const maxYAMLNodes = 50_000

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

// yamlFault puts a line before an error of the parser. The package leaves out the
// first line; where the grammar is violated it names another one than it means;
// and of an alias without an anchor it names none.
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

const grammarFault = "did not find expected"

func parseFault(err error) (line int, detail string) {
	line, detail = 1, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(detail); m != nil {
		fmt.Sscan(m[1], &line)
		detail = m[2]
	}
	return line, detail
}

// grammarLine returns the line up to which text must be read to meet a fault. A
// long text is not read that often: then it is the one where the block with the
// fault begins.
func grammarLine(text string, line int, detail string) int {
	if len(text) > MaxNetworkConfig {
		return line + 1
	}
	lines := strings.SplitAfter(text, "\n")
	return 1 + sort.Search(len(lines)-1, func(i int) bool {
		var doc yaml.Node
		err := yaml.Unmarshal([]byte(strings.Join(lines[:i+1], "")), &doc)
		if err == nil {
			return false
		}
		_, also := parseFault(err)
		return also == detail
	})
}

// uniqueKeys reports a key that a mapping in n has twice: cloud-init would take
// the last one and say nothing.
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
				return fmt.Errorf("line %d: the key %q is on line %d already", n.Content[i].Line, key.Value, line)
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
