package vm

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// checkTemplate returns an error if cloud-init would drop a Jinja template: if its syntax is
// broken, as far as it shows without the values, or if it does not become user data.
func checkTemplate(text string) error {
	first, rest, _ := strings.Cut(text, "\n")
	if !strings.EqualFold(strings.Join(strings.Fields(first), " "), markTemplate) {
		return lineFaultf(1, "the first line of a template must be %q", markTemplate)
	}
	t := &template{text: rest}
	if err := t.scan(); err != nil {
		return err
	}
	mark := markOf(rest)
	switch {
	case strings.TrimSpace(rest) == "":
		return lineFaultf(2, "the template is empty")
	case mark == "" && !t.used, slices.Contains([]string{markArchive, "#include", "#include-once", "#part-handler", markTemplate}, mark):
		return lineFaultf(2, "the template must begin with %s, %s, %s or #cloud-boothook", markConfig, markPatch, markScript)
	case !t.used:
		if err := checkTyped(typeOfMark[mark], rest); err != nil {
			return fmt.Errorf("after the first line, %w", err)
		}
	}
	return nil
}

// A template is the state of a scan of a Jinja template.
type template struct {
	text string
	open []block
	used bool // it has an expression, a statement or a note
}

// A block is a statement that has no end yet.
type block struct {
	name string
	line int
}

// jinjaBlocks are the statements that have an end. The value says whether the statement needs
// something after its name.
var jinjaBlocks = map[string]bool{
	"if": true, "for": true, "block": true, "macro": true, "call": true, "filter": true,
	"set": true, "with": false, "raw": false, "autoescape": true,
}

// jinjaStatements are the statements without an end.
var jinjaStatements = []string{"include", "import", "from", "extends", "do"}

// jinjaEnds matches what ends each part of a template.
var jinjaEnds = map[string]string{"{{": "}}", "{%": "%}", "{#": "#}"}

var (
	rawEnd    = regexp.MustCompile(`\{%[-+]?\s*endraw\s*[-+]?%\}`)
	jinjaName = regexp.MustCompile(`^[a-z]+`)
)

// line returns the number of the line of the text that is left, in the whole template.
func (t *template) line(left string) int {
	return 2 + strings.Count(t.text[:len(t.text)-len(left)], "\n")
}

// scan checks that all parts of the template end, and that its statements are in order.
func (t *template) scan() error {
	left := t.text
	for {
		i := strings.IndexByte(left, '{')
		if i < 0 || i+1 == len(left) {
			break
		}
		begin, end := left[i:i+2], jinjaEnds[left[i:i+2]]
		if end == "" {
			left = left[i+1:]
			continue
		}
		line := t.line(left[i:])
		body, rest, ok := cutPart(left[i+2:], end)
		if !ok {
			return lineFaultf(line, "%s has no %s: write {{ '%s' }} for the characters themselves", begin, end, begin)
		}
		t.used, left = true, rest
		body = strings.TrimSpace(strings.Trim(body, "-+"))
		switch {
		case begin == "{{" && body == "":
			return lineFaultf(line, "{{ }} has no expression")
		case begin == "{%" && body == "raw":
			at := rawEnd.FindStringIndex(left)
			if at == nil {
				return lineFaultf(line, "{%% raw %%} has no {%% endraw %%}")
			}
			left = left[at[1]:]
		case begin == "{%":
			if err := t.statement(body, line); err != nil {
				return err
			}
		}
	}
	if n := len(t.open); n > 0 {
		b := t.open[n-1]
		return lineFaultf(b.line, "{%% %s %%} has no {%% end%s %%}", b.name, b.name)
	}
	return nil
}

// cutPart cuts text at the end of a part, which does not count in quotes, except in a note.
func cutPart(text, end string) (body, rest string, ok bool) {
	if end == "#}" {
		return strings.Cut(text, end)
	}
	quote := byte(0)
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quote != 0 && c == '\\':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case strings.HasPrefix(text[i:], end):
			return text[:i], text[i+len(end):], true
		}
	}
	return "", "", false
}

// statement checks a statement and remembers whether it needs an end.
func (t *template) statement(body string, line int) error {
	name := jinjaName.FindString(body)
	needsMore, isBlock := jinjaBlocks[name]
	switch {
	case isBlock && needsMore && len(body) == len(name):
		return lineFaultf(line, "{%% %s %%} must say what it is about", name)
	case name == "set" && strings.Contains(body, "="), slices.Contains(jinjaStatements, name):
		return nil
	case isBlock:
		t.open = append(t.open, block{name, line})
		return nil
	case name == "elif", name == "else":
		if n := len(t.open); n > 0 && (t.open[n-1].name == "if" || t.open[n-1].name == "for" && name == "else") {
			return nil
		}
		return lineFaultf(line, "{%% %s %%} has no {%% if %%} before it", name)
	}
	if started, isEnd := strings.CutPrefix(name, "end"); isEnd {
		n := len(t.open)
		if n == 0 || t.open[n-1].name != started {
			return lineFaultf(line, "{%% %s %%} ends nothing that is open", name)
		}
		t.open = t.open[:n-1]
		return nil
	}
	return lineFaultf(line, "{%% %.40s %%} is not a statement of Jinja", body)
}
