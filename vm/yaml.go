package vm

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// This file parses YAML as cloud-init reads it: with Python's PyYAML, which implements YAML
// 1.1 and constructs values of safe types only. The parser of this program accepts more, so
// parseYAML also checks the rules of PyYAML that it lacks. cloud-init drops a whole document
// that PyYAML refuses.

// Limits of a document.
const (
	// maxYAMLNodes bounds the cost of a document that consists of separators only. Real
	// documents have some hundred nodes.
	maxYAMLNodes = 50_000
	// maxYAMLDepth is far below the depth of about 300 levels at which Python's stack ends.
	maxYAMLDepth = 100
	// maxYAMLNumber is the length of a number. Python refuses to convert one of more than
	// 4300 decimal digits.
	maxYAMLNumber = 3500
)

// A lineFault is a fault on one line of a text.
type lineFault struct {
	line   int
	detail string
}

func (f *lineFault) Error() string { return fmt.Sprintf("line %d: %s", f.line, f.detail) }

func lineFaultf(line int, format string, args ...any) error {
	return &lineFault{line, fmt.Sprintf(format, args...)}
}

// parseYAML returns the root of the only document in text. Its errors begin with a line number.
// It does not expand aliases, so its cost is proportional to the length of text.
func parseYAML(text string) (*yaml.Node, error) {
	if i := strings.IndexFunc(text, func(r rune) bool { return !isYAMLRune(r) }); i >= 0 {
		r, _ := utf8.DecodeRuneInString(text[i:])
		return nil, lineFaultf(lineAt(text, i), "the control character %U is not allowed", r)
	}
	text = forParser(text)
	root, err := decodeWithTabs(text)
	if err != nil {
		return nil, explainBraces(text, err)
	}
	c := yamlChecker{text: text, anchors: map[string]int{}}
	if err := c.check(root, 1, place{}); err != nil {
		return nil, explainBraces(text, err)
	}
	return root, nil
}

var (
	escapedSlash = regexp.MustCompile(`(?s)\\.`)
	yamlVersion  = regexp.MustCompile(`(?m)^%YAML 1\.[0-9]+`)
)

// forParser returns text with two things replaced that PyYAML accepts and the parser does not:
// the escape \/, which is common in JSON, and a minor version other than 1.
func forParser(text string) string {
	text = escapedSlash.ReplaceAllStringFunc(text, func(pair string) string {
		if pair == `\/` {
			return "//"
		}
		return pair
	})
	return yamlVersion.ReplaceAllString(text, "%YAML 1.1")
}

// isYAMLRune reports whether PyYAML accepts r in a document.
func isYAMLRune(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || r == 0x85 || r >= ' ' && r <= '~' ||
		r >= 0xa0 && r <= 0xd7ff || r >= 0xe000 && r <= 0xfffd || r >= 0x10000
}

// lineAt returns the number of the line of the byte at offset i.
func lineAt(text string, i int) int { return 1 + strings.Count(text[:i], "\n") }

// lineOf returns the text of line n, which begins with 1.
func lineOf(text string, n int) string {
	for line := range strings.Lines(text) {
		if n--; n == 0 {
			return line
		}
	}
	return ""
}

// explainBraces adds to a fault on a line with "{{" how a template is written.
func explainBraces(text string, err error) error {
	var f *lineFault
	if !errors.As(err, &f) || !strings.Contains(lineOf(text, f.line), "{{") {
		return err
	}
	return lineFaultf(f.line, "%s: quote a value with {{, or make the first line %q if the text is a Jinja template",
		f.detail, markTemplate)
}

// decodeYAML returns the root of the only document in text.
func decodeYAML(text string) (*yaml.Node, error) {
	d := yaml.NewDecoder(strings.NewReader(text))
	var doc, next yaml.Node
	err := d.Decode(&doc)
	if errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		return nil, lineFaultf(1, "the document is missing: write {} for an empty one")
	}
	if err != nil {
		return nil, yamlFault(err, text)
	}
	switch err := d.Decode(&next); {
	case err == nil:
		return nil, lineFaultf(next.Line, "a second document begins, but only one is allowed")
	case !errors.Is(err, io.EOF):
		return nil, yamlFault(err, text)
	}
	root := doc.Content[0]
	if countNodes(root) > maxYAMLNodes {
		return nil, lineFaultf(1, "the document has more than %d values", maxYAMLNodes)
	}
	return root, nil
}

// countNodes returns the number of nodes of the tree n. It does not follow aliases.
func countNodes(n *yaml.Node) int {
	count := 1
	for _, c := range n.Content {
		count += countNodes(c)
	}
	return count
}

// standIn replaces tabs in decodeWithTabs: a private character that is not white space.
const standIn = "\uf8ff"

// decodeWithTabs is decodeYAML with PyYAML's rule for tabs: they are allowed in comments,
// quoted values and the lines of blocks only. It parses text with another character instead
// of each tab, so that a tab elsewhere gets into a value without quotes or breaks the grammar.
func decodeWithTabs(text string) (*yaml.Node, error) {
	first := strings.IndexByte(text, '\t')
	if first < 0 || strings.Contains(text, standIn) {
		return decodeYAML(text)
	}
	escaped := strings.ReplaceAll(text, "\\\t", `\t`+standIn)
	root, err := decodeYAML(strings.ReplaceAll(escaped, "\t", standIn))
	line := 0
	var f *lineFault
	if errors.As(err, &f) {
		line = f.line
	} else if line = plainTab(root); line == 0 {
		return root, nil
	}
	if _, err := decodeYAML(text); err != nil && !aboutTab(text, err) {
		return nil, err
	}
	for !strings.Contains(lineOf(text, line), "\t") && line > lineAt(text, first) {
		line--
	}
	return nil, lineFaultf(line, "a tab is only allowed in quotes, comments and the lines of a block: replace it by spaces")
}

// aboutTab reports whether an error of the parser is about a tab.
func aboutTab(text string, err error) bool {
	var f *lineFault
	return errors.As(err, &f) && (strings.Contains(f.detail, "tab character") ||
		strings.Contains(f.detail, "cannot start any token") && strings.Contains(lineOf(text, f.line), "\t"))
}

// plainTab returns the line of a node that has a standIn outside of quotes, or 0.
func plainTab(n *yaml.Node) int {
	const quoted = yaml.DoubleQuotedStyle | yaml.SingleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle
	has := func(s string) bool { return strings.Contains(s, standIn) }
	if n.Style&quoted == 0 && has(n.Value) || has(n.Tag) || has(n.Anchor) {
		return n.Line
	}
	for _, c := range n.Content {
		if line := plainTab(c); line > 0 {
			return line
		}
	}
	return 0
}

// A yamlChecker checks a document for values that PyYAML refuses to construct.
type yamlChecker struct {
	text    string
	lines   []string       // of text; nil until they are needed
	anchors map[string]int // line of each anchor
}

// A place says where a node is.
type place struct {
	inFlow bool // in a list or a mapping in brackets
	isKey  bool // of a mapping
}

// check checks the tree n.
func (c *yamlChecker) check(n *yaml.Node, depth int, at place) error {
	if depth > maxYAMLDepth {
		return lineFaultf(n.Line, "the document is nested deeper than %d levels", maxYAMLDepth)
	}
	if n.Kind == yaml.AliasNode {
		return nil
	}
	if n.Anchor != "" {
		if first, ok := c.anchors[n.Anchor]; ok {
			return lineFaultf(n.Line, "the anchor &%s is already on line %d: give it another name", n.Anchor, first)
		}
		c.anchors[n.Anchor] = n.Line
	}
	if n.Kind == yaml.ScalarNode {
		return c.checkScalar(n, at)
	}
	if err := checkCollection(n); err != nil {
		return err
	}
	inFlow := at.inFlow || n.Style&yaml.FlowStyle != 0
	for i, child := range n.Content {
		isKey := n.Kind == yaml.MappingNode && i%2 == 0
		if err := c.check(child, depth+1, place{inFlow, isKey}); err != nil {
			return err
		}
	}
	return nil
}

// checkCollection checks the tag of a list or a mapping, and the keys of a mapping.
func checkCollection(n *yaml.Node) error {
	tag := yamlTag(n)
	known := map[string]yaml.Kind{
		"seq":   yaml.SequenceNode,
		"omap":  yaml.SequenceNode,
		"pairs": yaml.SequenceNode,
		"map":   yaml.MappingNode,
		"set":   yaml.MappingNode,
	}
	kind, ok := known[tag]
	switch {
	case !ok:
		return unknownTag(n)
	case kind != n.Kind:
		return lineFaultf(n.Line, "the tag !!%s does not fit the value: remove it", tag)
	case n.Kind == yaml.MappingNode:
		return checkKeys(n)
	case tag == "seq":
		return nil
	}
	for _, e := range n.Content {
		if e = resolve(e); e.Kind != yaml.MappingNode || len(e.Content) != 2 {
			return lineFaultf(e.Line, "an entry of a list with the tag !!%s must be a mapping of one key", tag)
		}
	}
	return nil
}

// checkKeys returns an error if a key of the mapping n is a list or a mapping, if it occurs
// twice, or if it is << and has another value than mappings. Of two equal keys other than <<, cloud-init
// would use the last one silently.
func checkKeys(n *yaml.Node) error {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		at, key := n.Content[i], resolve(n.Content[i])
		if key.Kind != yaml.ScalarNode {
			return lineFaultf(at.Line, "a mapping or a list in brackets is not allowed as a key")
		}
		id := yamlTag(key) + " " + key.Value
		if line, ok := first[id]; ok && yamlTag(key) != "merge" {
			return lineFaultf(at.Line, "the key %q is already on line %d", key.Value, line)
		}
		first[id] = at.Line
		if yamlTag(key) == "merge" && !isMergeable(n.Content[i+1]) {
			return lineFaultf(at.Line, "the value of << must be an alias of a mapping, or a list of them: quote the key")
		}
	}
	return nil
}

// isMergeable reports whether n is a mapping or a list of mappings.
func isMergeable(n *yaml.Node) bool {
	n = resolve(n)
	if n.Kind != yaml.SequenceNode {
		return n.Kind == yaml.MappingNode
	}
	return !slices.ContainsFunc(n.Content, func(e *yaml.Node) bool { return resolve(e).Kind != yaml.MappingNode })
}

// checkScalar checks a value that is neither a list nor a mapping.
func (c *yamlChecker) checkScalar(n *yaml.Node, at place) error {
	plain := n.Style&^yaml.TaggedStyle == 0
	switch {
	case at.inFlow && plain && strings.Contains(n.Value, "?"):
		return lineFaultf(n.Line, "a value with a question mark in brackets must be in quotes")
	case n.Style&yaml.DoubleQuotedStyle != 0 && c.escapesQuote(n):
		return lineFaultf(n.Line, `\' is not allowed in double quotes: write '`)
	}
	problem := ""
	switch tag := yamlTag(n); tag {
	case "str", "null", "python/unicode":
		return nil
	case "merge", "value":
		if !plain || !at.isKey || n.Style != 0 {
			problem = "cannot be a value: put it in quotes"
		}
	case "bool":
		if !boolWords.MatchString(n.Value) {
			problem = "is not a boolean"
		}
	case "int", "float":
		problem = numberProblem(tag, n.Value)
	case "timestamp":
		if !validTime(n.Value) {
			problem = "is not a time that exists: put it in quotes if it is text"
		}
	case "binary":
		if !validBinary(n.Value) {
			problem = "is not base64"
		}
	default:
		return unknownTag(n)
	}
	if problem == "" {
		return nil
	}
	return lineFaultf(n.Line, "%.40q %s", n.Value, problem)
}

// escapesQuote reports whether the value in double quotes n contains \'.
func (c *yamlChecker) escapesQuote(n *yaml.Node) bool {
	if !strings.Contains(c.text, `\'`) {
		return false
	}
	if c.lines == nil {
		c.lines = strings.SplitAfter(c.text, "\n")
	}
	if n.Line > len(c.lines) {
		return false
	}
	rest := strings.Join(c.lines[n.Line-1:min(n.Line+maxQuotedLines, len(c.lines))], "")
	for range n.Column - 1 {
		_, size := utf8.DecodeRuneInString(rest)
		rest = rest[size:]
	}
	_, rest, _ = strings.Cut(rest, `"`)
	for i := 0; i+1 < len(rest) && rest[i] != '"'; i++ {
		if rest[i] != '\\' {
			continue
		}
		if i++; rest[i] == '\'' {
			return true
		}
	}
	return false
}

// maxQuotedLines is how many lines of a value in double quotes are searched for \'.
const maxQuotedLines = 20

func unknownTag(n *yaml.Node) error {
	return lineFaultf(n.Line, "cloud-init does not accept the tag %.40s here: remove it, or put the value in quotes",
		strings.Replace(n.Tag, yamlTags, "!!", 1))
}

// yamlTags begins the tags of YAML.
const yamlTags = "tag:yaml.org,2002:"

// yamlTag returns the tag that PyYAML gives n, without the beginning that YAML's tags have in
// common. A tag of another origin is returned with its exclamation mark.
func yamlTag(n *yaml.Node) string {
	tagged := n.Style&yaml.TaggedStyle != 0
	switch {
	case tagged && n.Tag != "!":
		tag := strings.TrimPrefix(n.Tag, yamlTags)
		return strings.TrimPrefix(tag, "!!")
	case n.Kind == yaml.SequenceNode:
		return "seq"
	case n.Kind == yaml.MappingNode:
		return "map"
	case tagged, n.Style != 0:
		return "str"
	}
	for _, r := range yamlResolvers {
		if r.pattern.MatchString(n.Value) {
			return r.tag
		}
	}
	return "str"
}

// boolWords matches the values of a boolean with a tag.
var boolWords = regexp.MustCompile(`^(?i:yes|no|true|false|on|off)$`)

// yamlResolvers give a value without quotes its type, as YAML 1.1 and PyYAML do.
var yamlResolvers = []struct {
	tag     string
	pattern *regexp.Regexp
}{
	{"bool", regexp.MustCompile(`^(yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$`)},
	{"float", regexp.MustCompile(`^([-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?` +
		`|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$`)},
	{"int", regexp.MustCompile(`^([-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+` +
		`|[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+)$`)},
	{"merge", regexp.MustCompile(`^<<$`)},
	{"null", regexp.MustCompile(`^(~|null|Null|NULL|)$`)},
	{"timestamp", regexp.MustCompile(`^([0-9]{4}-[0-9]{2}-[0-9]{2}` +
		`|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(\.[0-9]*)?([ \t]*(Z|[-+][0-9]{1,2}(:[0-9]{2})?))?)$`)},
	{"value", regexp.MustCompile(`^=$`)},
}

// base60 matches a number with colons, which YAML 1.1 reads in the base 60.
var base60 = regexp.MustCompile(`^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$`)

// numberProblem returns why PyYAML cannot convert a number, or "".
func numberProblem(tag, value string) string {
	digits := strings.ReplaceAll(value, "_", "")
	if digits != "" && (digits[0] == '+' || digits[0] == '-') {
		digits = digits[1:]
	}
	switch {
	case len(value) > maxYAMLNumber:
		return fmt.Sprintf("is a number of more than %d digits: put it in quotes", maxYAMLNumber)
	case base60.MatchString(value):
		return ""
	case tag == "float":
		word := strings.TrimPrefix(strings.ToLower(digits), ".")
		if _, err := strconv.ParseFloat(digits, 64); err != nil && !errors.Is(err, strconv.ErrRange) && word != "inf" && word != "nan" {
			return "is not a number"
		}
		return ""
	}
	base := 10
	switch {
	case strings.HasPrefix(digits, "0b"):
		base, digits = 2, digits[2:]
	case strings.HasPrefix(digits, "0x"):
		base, digits = 16, digits[2:]
	case strings.HasPrefix(digits, "0"):
		base = 8
	}
	for _, d := range digits {
		if _, err := strconv.ParseUint(string(d), base, 8); err != nil {
			return "is not a number"
		}
	}
	if digits == "" {
		return "is a number without digits: put it in quotes"
	}
	return ""
}

var timeParts = regexp.MustCompile(`^(\d{4})-(\d{1,2})-(\d{1,2})(?:(?:[Tt]|[ \t]+)(\d{1,2}):(\d{2}):(\d{2})(?:\.\d*)?` +
	`(?:[ \t]*(?:Z|[-+](\d{1,2})(?::(\d{2}))?))?)?$`)

// validTime reports whether value is a time that exists.
func validTime(value string) bool {
	m := timeParts.FindStringSubmatch(value)
	if m == nil {
		return false
	}
	n := make([]int, len(m))
	for i := 1; i < len(m); i++ {
		n[i], _ = strconv.Atoi("0" + m[i])
	}
	day := time.Date(n[1], time.Month(n[2]), n[3], 0, 0, 0, 0, time.UTC)
	return n[1] > 0 && day.Day() == n[3] && int(day.Month()) == n[2] &&
		n[4] < 24 && n[5] < 60 && n[6] < 60 && 60*n[7]+n[8] < 24*60
}

// validBinary reports whether Python can decode value as base64. It ignores characters that
// are not of the alphabet.
func validBinary(value string) bool {
	code := strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z', r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '+', r == '/', r == '=':
			return r
		}
		return -1
	}, value)
	_, err := base64.StdEncoding.DecodeString(code)
	return err == nil && isASCII(value)
}

// isASCII reports whether s has only ASCII characters.
func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
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

var (
	yamlLine   = regexp.MustCompile(`^line (\d+): (.*)$`)
	yamlAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
)

// yamlFault returns an error of the YAML parser with the number of the faulty line. The parser
// omits the number of line 1 and of an alias without an anchor, and reports a wrong number for
// a violation of the grammar.
func yamlFault(err error, text string) error {
	line, detail := parseFault(err)
	if line == 0 || strings.HasPrefix(detail, grammarFault) {
		line = grammarLine(text, line, detail)
	}
	if m := yamlAnchor.FindStringSubmatch(detail); m != nil {
		before, _, _ := strings.Cut(text, "*"+m[1])
		line = 1 + strings.Count(before, "\n")
	}
	return lineFaultf(line, "%s", detail)
}

// grammarFault is the beginning of the parser's errors about a violation of the grammar.
const grammarFault = "did not find expected"

// parseFault splits an error of the parser into the line number, 0 if it has none, and the text.
func parseFault(err error) (line int, detail string) {
	line, detail = 0, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(detail); m != nil {
		fmt.Sscan(m[1], &line)
		detail = m[2]
	}
	return line, detail
}

// grammarLine returns the number of the line at which the parser finds the violation with the
// given detail: the shortest beginning of text that has it. Since the search parses the text
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
