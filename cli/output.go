package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// A column of a table. Columns are only added at the end, so that scripts that cut a column
// keep working.
type column[T any] struct {
	head  string
	wide  bool // only shown with -o wide
	state bool // a state, which is coloured
	cell  func(T) string
}

// An output writes results in the form that -o asks for.
type output struct {
	w        io.Writer
	form     string // empty for people; wide, name, json, yaml, go-template
	template *template.Template
	quiet    bool
	colour   bool
	now      func() time.Time
	written  int // YAML documents
}

// outputForms are the values of -o.
var outputForms = []string{"json", "yaml", "name", "wide", "go-template="}

// newOutput returns the output for a value of -o.
func newOutput(w io.Writer, flag string, quiet bool) (*output, error) {
	o := &output{w: w, quiet: quiet, colour: isTerminal(w) && os.Getenv("NO_COLOR") == "", now: time.Now}
	form, text, _ := strings.Cut(flag, "=")
	switch form {
	case "", "wide", "name", "json", "yaml":
		if text != "" {
			return nil, usagef("-o %s takes no argument", form)
		}
	case "go-template":
		var err error
		if o.template, err = template.New("-o").Parse(text); err != nil {
			return nil, usagef("-o go-template: %v", err)
		}
	default:
		return nil, usagef("-o %s: use json, yaml, name, wide or go-template=TEXT", flag)
	}
	o.form = form
	return o, nil
}

// isTerminal reports whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// people reports whether the output is for people, not for programs.
func (o *output) people() bool { return !o.quiet && (o.form == "" || o.form == "wide") }

// named reports whether only names are written.
func (o *output) named() bool {
	return o.form == "name" || o.quiet && (o.form == "" || o.form == "wide")
}

// item writes one resource in a form for programs.
func (o *output) item(name string, raw json.RawMessage) error {
	switch {
	case o.named():
		_, err := fmt.Fprintln(o.w, name)
		return err
	case o.form == "json":
		var b bytes.Buffer
		if err := json.Indent(&b, raw, "", "  "); err != nil {
			return err
		}
		b.WriteByte('\n')
		_, err := b.WriteTo(o.w)
		return err
	case o.form == "go-template":
		v, err := decode(raw)
		if err != nil {
			return err
		}
		if err := o.template.Execute(o.w, v); err != nil {
			return usagef("-o go-template: %v", err)
		}
		_, err = fmt.Fprintln(o.w)
		return err
	}
	return o.yaml(raw)
}

// yaml writes JSON as a YAML document. The keys keep their order.
func (o *output) yaml(raw json.RawMessage) error {
	node, err := yamlOf(raw)
	if err != nil {
		return err
	}
	if o.written++; o.written > 1 {
		if _, err := fmt.Fprintln(o.w, "---"); err != nil {
			return err
		}
	}
	e := yaml.NewEncoder(o.w)
	e.SetIndent(2)
	if err := e.Encode(node); err != nil {
		return err
	}
	return e.Close()
}

// A list writes the items of a list as they arrive; only a table waits for its end, with the
// text of its cells.
type list[T any] struct {
	o       *output
	name    func(T) string
	columns []column[T]
	table   *tabwriter.Writer
	count   int
}

func newList[T any](o *output, name func(T) string, columns []column[T]) *list[T] {
	l := &list[T]{o: o, name: name}
	for _, c := range columns {
		if !c.wide || o.form == "wide" {
			l.columns = append(l.columns, c)
		}
	}
	if o.people() {
		l.table = tabwriter.NewWriter(o.w, 0, 8, 2, ' ', 0)
		l.row(func(c column[T]) string { return c.head })
	}
	return l
}

// row adds a row to the table. The cells of a coloured column have equally long escape
// sequences, so that the columns stay aligned.
func (l *list[T]) row(text func(column[T]) string) {
	cells := make([]string, len(l.columns))
	for i, c := range l.columns {
		cells[i] = oneLine(text(c))
		if cells[i] == "" {
			cells[i] = "-"
		}
		if c.state && l.o.colour {
			cells[i] = colourOf(cells[i]) + cells[i] + "\x1b[00m"
		}
	}
	fmt.Fprintln(l.table, strings.Join(cells, "\t"))
}

func (l *list[T]) add(item T, raw json.RawMessage) error {
	l.count++
	switch {
	case l.table != nil:
		l.row(func(c column[T]) string { return c.cell(item) })
		return nil
	case l.o.named(), l.o.form == "go-template":
		return l.o.item(l.name(item), raw)
	case l.o.form == "yaml":
		node, err := yamlOf(raw)
		if err != nil {
			return err
		}
		text, err := yaml.Marshal([]*yaml.Node{node})
		if err == nil {
			_, err = l.o.w.Write(text)
		}
		return err
	}
	var b bytes.Buffer
	b.WriteString(map[bool]string{true: "[\n  ", false: ",\n  "}[l.count == 1])
	if err := json.Indent(&b, raw, "  ", "  "); err != nil {
		return err
	}
	_, err := b.WriteTo(l.o.w)
	return err
}

// end completes the list.
func (l *list[T]) end() error {
	var err error
	switch {
	case l.table != nil:
		err = l.table.Flush()
	case l.o.named() || l.o.form == "go-template":
	case l.count == 0:
		_, err = fmt.Fprintln(l.o.w, "[]")
	case l.o.form == "json":
		_, err = fmt.Fprint(l.o.w, "\n]\n")
	}
	return err
}

// colourOf returns the escape sequence for a state.
func colourOf(state string) string {
	switch state {
	case "running", "ok", "available", "attached", "succeeded", "connected", "up":
		return "\x1b[32m" // green
	case "error", "failed", "degraded", "crashed":
		return "\x1b[31m" // red
	case "stopped", "cancelled", "absent":
		return "\x1b[90m" // grey
	case "starting", "stopping", "paused", "creating", "attaching", "detaching", "importing", "uploading", "pending", "silent":
		return "\x1b[33m" // yellow
	}
	return "\x1b[39m" // the terminal's own
}

// pairs writes a resource for people: one property a line.
func (o *output) pairs(pairs [][2]string) error {
	t := tabwriter.NewWriter(o.w, 0, 8, 2, ' ', 0)
	for _, p := range pairs {
		if p[1] != "" {
			fmt.Fprintf(t, "%s:\t%s\n", p[0], oneLine(p[1]))
		}
	}
	return t.Flush()
}

// decode returns JSON as Go values for templates: whole numbers are int64.
func decode(raw []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return plain(v), err
}

func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			v[key] = plain(value)
		}
	case []any:
		for i, value := range v {
			v[i] = plain(value)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	}
	return v
}

// yamlOf returns JSON as a YAML document with the keys in the same order.
func yamlOf(raw []byte) (*yaml.Node, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	return yamlValue(d, token)
}

func yamlValue(d *json.Decoder, token json.Token) (*yaml.Node, error) {
	switch t := token.(type) {
	case json.Delim:
		return yamlContainer(d, t)
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: t.String()}, nil
	}
	n := new(yaml.Node)
	return n, n.Encode(token)
}

// yamlContainer reads an object or an array, after its first character.
func yamlContainer(d *json.Decoder, open json.Delim) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	if open == '[' {
		n.Kind = yaml.SequenceNode
	}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		child, err := yamlValue(d, token)
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, child)
	}
	if len(n.Content) == 0 {
		n.Style = yaml.FlowStyle
	}
	_, err := d.Token()
	return n, err
}
