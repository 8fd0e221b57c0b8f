package vm

import (
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maskYAML masks the secrets of a YAML document where they stand in its text, so
// that comments, order and lines stay. It reports false if the text cannot be
// read, or is no more than a string. patch says that it is a JSON patch.
func maskYAML(text string, patch bool) (string, bool) {
	bom := strings.HasPrefix(text, "\ufeff")
	text = strings.TrimPrefix(text, "\ufeff")
	root, _ := parseYAML(text)
	if root == nil || root.Kind == yaml.ScalarNode {
		return "", false
	}
	found := findSecrets(root, patch)
	out := maskComments(maskSpans(text, found))
	// Where a scalar ends is not in the tree. So look whether what has come out is
	// the same tree with nothing secret in it; if not, write it anew.
	again, _ := parseYAML(out)
	if again == nil || !findSecrets(again, patch).allMasked(found.keyed) {
		anew, err := yaml.Marshal(found.maskTree(root))
		if err != nil {
			return "", false
		}
		out = maskComments(string(anew))
		if mark := markOf(text); markOf(out) != mark {
			out = firstLine(text) + "\n" + out
		}
	}
	if bom {
		out = "\ufeff" + out
	}
	return out, true
}

// within says what a node is part of.
type within int

const (
	nothing    within = iota
	secretive         // the value of a key with a name of a secret
	chpasswd          // the value of chpasswd
	writeFiles        // the value of write_files
	patchOp           // a JSON patch
)

// secrets are what was found in a document.
type secrets struct {
	order  []*yaml.Node // all nodes, in the order of the text
	secret map[*yaml.Node]bool
	keyed  int // how many secrets are known by their keys
	seen   map[visit]bool
}

type visit struct {
	node *yaml.Node
	in   within
}

func findSecrets(root *yaml.Node, patch bool) *secrets {
	s := &secrets{secret: map[*yaml.Node]bool{}, seen: map[visit]bool{}}
	s.list(root)
	in := nothing
	if patch {
		in = patchOp
	}
	s.walk(root, in)
	return s
}

func (s *secrets) list(n *yaml.Node) {
	s.order = append(s.order, n)
	for _, c := range n.Content {
		s.list(c)
	}
}

func (s *secrets) allMasked(keyed int) bool {
	for n := range s.secret {
		if strings.TrimSpace(strings.ReplaceAll(n.Value, masked, "")) != "" {
			return false
		}
	}
	return s.keyed == keyed
}

func (s *secrets) walk(n *yaml.Node, in within) {
	n = resolve(n)
	if s.seen[visit{n, in}] {
		return
	}
	s.seen[visit{n, in}] = true
	switch n.Kind {
	case yaml.ScalarNode:
		if in == secretive && n.ShortTag() != "!!null" {
			s.keyed++
		}
		if in == secretive && n.ShortTag() != "!!null" || strings.Contains(n.Value, "PRIVATE KEY") {
			s.secret[n] = true
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			if i > 0 && isSecretOption(resolve(n.Content[i-1]).Value) { // the arguments of a command
				s.walk(c, secretive)
				continue
			}
			s.walk(c, in)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			s.walk(n.Content[i], nothing)
			s.walk(n.Content[i+1], valueWithin(in, resolve(n.Content[i]).Value))
		}
		if in == writeFiles {
			s.file(n)
		}
	}
}

// isSecretOption reports whether the argument after s is a secret: --password.
func isSecretOption(s string) bool {
	return strings.HasPrefix(s, "-") && isSecretName(s) && strings.TrimLeftFunc(s, inName) == ""
}

// valueWithin says what the value of a key is part of, in a mapping that is part
// of in.
func valueWithin(in within, key string) within {
	switch {
	case in == secretive, isSecretName(key), in == chpasswd && key == "list", in == patchOp && key == "value":
		return secretive
	case key == "chpasswd":
		return chpasswd
	case key == "write_files":
		return writeFiles
	}
	return nothing
}

// file decides about the content of one of write_files: it may be a private key,
// and what is encoded cannot be masked in part.
func (s *secrets) file(n *yaml.Node) {
	content := valueOf(n, "content")
	if content == nil || content.Kind != yaml.ScalarNode {
		return
	}
	var path, encoding string
	for key, to := range map[string]*string{"path": &path, "encoding": &encoding} {
		if v := valueOf(n, key); v != nil {
			*to = strings.ToLower(v.Value)
		}
	}
	data, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(content.Value), ""))
	encoded := err == nil && maskOutline(string(data)) != string(data)
	if strings.HasSuffix(path, "key") || strings.HasSuffix(path, "pem") || strings.Contains(encoding, "gz") || encoded || strings.Contains(content.Value, "PRIVATE KEY") {
		s.secret[content] = true
	}
}

// maskTree masks the secrets in root, where s was found, and returns it.
func (s *secrets) maskTree(root *yaml.Node) *yaml.Node {
	for _, n := range s.order {
		switch {
		case n.Kind != yaml.ScalarNode:
		case s.secret[n]:
			n.Value, n.Style, n.Tag = masked, yaml.DoubleQuotedStyle, "!!str"
		default:
			n.Value = maskOutline(n.Value)
		}
	}
	return root
}

// maskSpans masks the secrets in the text they were found in, and what other
// scalars say of secrets within them.
func maskSpans(text string, found *secrets) string {
	c := cursor{text: text, line: 1, column: 1}
	var b strings.Builder
	done := 0
	for i, n := range found.order {
		if n.Kind != yaml.ScalarNode {
			continue
		}
		from, to := c.seek(n), len(text)
		if i+1 < len(found.order) {
			to = c.seek(found.order[i+1])
		}
		if from < done {
			continue // it is not where it is said to be
		}
		start, end, with := maskScalar(text[from:to], n, found.secret[n])
		b.WriteString(text[done : from+start])
		b.WriteString(with)
		done = from + end
	}
	return b.String() + text[done:]
}

// maskScalar returns what to put in place of text[start:end], where text begins
// with the scalar n and goes on to the next node.
func maskScalar(text string, n *yaml.Node, secret bool) (start, end int, with string) {
	start = skipProperties(text)
	body := text[start:]
	if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		skip, size := blockSpan(body)
		start, end = start+skip, start+size
		if secret {
			return start, end, maskWords(text[start:end])
		}
		return start, end, maskLines(text[start:end])
	}
	size := flowSpan(body, n)
	with = strconv.Quote(masked)
	if !secret {
		if len(n.Value) < len("token=x") || !strings.ContainsAny(n.Value, ":=$|-") {
			return start, start, ""
		}
		// Its lines may have been at the margin, as those of a document are.
		if with = maskOutline(n.Value); with == n.Value {
			return start, start, ""
		}
		with = strconv.Quote(with)
	} else if n.Value == "" {
		return start, start, ""
	}
	return start, start + size, with
}

// skipProperties returns where the content of a node begins, after its anchor and
// its tag.
func skipProperties(text string) int {
	i := 0
	for i < len(text) && (text[i] == '&' || text[i] == '!') {
		for i < len(text) && !strings.ContainsRune(" \t\r\n", rune(text[i])) {
			i++
		}
		for i < len(text) && strings.ContainsRune(" \t\r\n", rune(text[i])) {
			i++
		}
	}
	return i
}

// flowSpan returns the length of a quoted or plain scalar that text begins with.
// If that cannot be seen it is all of text.
func flowSpan(text string, n *yaml.Node) int {
	quote := byte(0)
	switch {
	case n.Style&yaml.DoubleQuotedStyle != 0:
		quote = '"'
	case n.Style&yaml.SingleQuotedStyle != 0:
		quote = '\''
	}
	switch {
	case quote == 0 && strings.HasPrefix(text, n.Value):
		return len(n.Value)
	case quote != 0 && text != "" && text[0] == quote:
		for i := 1; i < len(text); i++ {
			switch {
			case quote == '"' && text[i] == '\\':
				i++
			case text[i] != quote:
			case quote == '\'' && i+1 < len(text) && text[i+1] == quote:
				i++
			default:
				return i + 1
			}
		}
	}
	return len(strings.TrimRight(text, " \t\r\n"))
}

// blockSpan returns where the lines of a block scalar begin and end in text,
// which begins with its header. The first line that is not blank says how far all
// are indented, unless the header does.
func blockSpan(text string) (start, end int) {
	indent := -1
	for line := range strings.SplitAfterSeq(text, "\n") {
		if start == 0 {
			header, _, _ := strings.Cut(line, "#")
			if strings.ContainsAny(header, "123456789") {
				return len(line), len(text) - len(trailingIndent(text))
			}
			start, end = len(line), len(line)
			continue
		}
		body := strings.TrimLeft(line, " ")
		switch depth := len(line) - len(body); {
		case strings.TrimSpace(body) == "":
		case indent < 0:
			indent = depth
		case depth < indent:
			return start, end
		}
		end += len(line)
	}
	return start, min(end, max(start, len(text)-len(trailingIndent(text))))
}

// trailingIndent returns what of the line of the next node stands before it.
func trailingIndent(text string) string {
	last := text[strings.LastIndex(text, "\n")+1:]
	if strings.Trim(last, " -?") == "" {
		return last
	}
	return ""
}

// maskComments masks what comments say of secrets.
func maskComments(text string) string {
	lines := strings.SplitAfter(text, "\n")
	for i, line := range lines {
		at := strings.Index(line, " #")
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			at = 0
		}
		if at >= 0 {
			lines[i] = line[:at] + maskLines(line[at:])
		}
	}
	return strings.Join(lines, "")
}

// A cursor finds where nodes begin in a text, in the order they stand there.
type cursor struct {
	text         string
	at           int
	line, column int // from 1, as YAML 1.1 counts lines; columns are characters
}

// seek returns where n begins.
func (c *cursor) seek(n *yaml.Node) int {
	for c.at < len(c.text) && (c.line < n.Line || c.line == n.Line && c.column < n.Column) {
		r, size := utf8.DecodeRuneInString(c.text[c.at:])
		c.at += size
		c.column++
		switch {
		case r == '\r' && strings.HasPrefix(c.text[c.at:], "\n"):
		case strings.ContainsRune("\r\n\u0085\u2028\u2029", r):
			c.line, c.column = c.line+1, 1
		}
	}
	return c.at
}
