package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
)

// maxEdit is the maximum size of an edited resource in bytes.
const maxEdit = 1 << 20

// An editable is a kind of resource with properties that can be changed. U is the body of
// the request that changes it: its JSON properties are those that can be changed.
type editable[T, U any] struct {
	resource[T]
	update func(name, tag string, body U) (*http.Request, error)
}

// properties returns the names of the properties that can be changed.
func (e editable[T, U]) properties() []string {
	var names []string
	for f := range reflect.TypeFor[U]().Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" && name != "force" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// values returns the current values of the properties that can be changed.
func (e editable[T, U]) values(raw json.RawMessage) (map[string]any, error) {
	var present map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&present); err != nil {
		return nil, err
	}
	values := map[string]any{}
	for _, name := range e.properties() {
		if v, ok := present[name]; ok {
			values[name] = plain(v)
		}
	}
	return values, nil
}

// send sends the changed properties, for the version of the resource that was read.
func (e editable[T, U]) send(ctx context.Context, a *app, name string, read reply[T], changed map[string]any) error {
	text, err := json.Marshal(changed)
	if err != nil {
		return usagef("%v", err)
	}
	var body U
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		return usagef("%s: %s", e.subject(name), strings.TrimPrefix(err.Error(), "json: "))
	}
	v, err := change[T](ctx, a)(e.update(name, read.header.Get("ETag"), body))
	v, err = settle(ctx, a, e.subject(name), v, err, func() (*http.Request, error) { return e.get(name) })
	if done, err := detached(err); done || err != nil {
		return err
	}
	return a.did(e.subject(name)+" changed: "+strings.Join(sortedKeys(changed), ", "), name, v.raw)
}

func (e editable[T, U]) setCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "set NAME KEY=VALUE...",
		Short: "Change properties of a " + e.noun,
		Long: wrap("Change properties: "+strings.Join(e.properties(), ", ")+".") + "A VALUE is YAML. " +
			"labels.KEY=VALUE changes one label, labels.KEY= removes it.",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return names(2, -1)(c, args)
			}
			return names(1, 1)(c, args[:1])
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return e.complete(a)(c, args, word)
			}
			var keys []string
			for _, name := range e.properties() {
				keys = append(keys, name+"=")
			}
			return keys, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			read, err := call[T](c.Context(), a)(e.get(args[0]))
			if err != nil {
				return err
			}
			values, err := e.values(read.raw)
			if err != nil {
				return err
			}
			changed := map[string]any{}
			for _, arg := range args[1:] {
				if err := e.assign(changed, values, arg); err != nil {
					return err
				}
			}
			return e.send(c.Context(), a, args[0], read, changed)
		},
	}
}

// assign adds the change that an argument KEY=VALUE requests.
func (e editable[T, U]) assign(changed, values map[string]any, arg string) error {
	key, text, ok := strings.Cut(arg, "=")
	if !ok {
		return usagef("%q: use KEY=VALUE", arg)
	}
	key, label, isLabel := strings.Cut(key, ".")
	if !contains(e.properties(), key) || isLabel && key != "labels" {
		f := usagef("a %s has no property %q that can be changed", e.noun, key)
		if near := nearest(key, e.properties()); near != "" {
			f.hint("did you mean %s?", near)
		}
		return f.hint("these can be changed: %s", strings.Join(e.properties(), ", "))
	}
	if isLabel {
		labels, _ := cmp.Or[any](changed[key], values[key]).(map[string]any)
		labels = copyOf(labels)
		if labels[label] = text; text == "" {
			delete(labels, label)
		}
		changed[key] = labels
		return nil
	}
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		return usagef("%s: %v", key, err)
	}
	if _, isText := values[key].(string); isText { // such as a description that is a number
		v = text
	}
	changed[key] = v
	return nil
}

func copyOf(m map[string]any) map[string]any {
	c := map[string]any{}
	for key, v := range m {
		c[key] = v
	}
	return c
}

func (e editable[T, U]) editCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "edit NAME",
		Short:             "Edit a " + e.noun + " as YAML in $EDITOR",
		Args:              names(1, 1),
		ValidArgsFunction: e.complete(a),
		RunE: func(c *cobra.Command, args []string) error {
			read, err := call[T](c.Context(), a)(e.get(args[0]))
			if err != nil {
				return err
			}
			values, err := e.values(read.raw)
			if err != nil {
				return err
			}
			before, err := yaml.Marshal(values)
			if err != nil {
				return err
			}
			head := fmt.Sprintf("# %s: the properties that can be changed. Lines that start with # are ignored.\n"+
				"# A property that is missing is not changed.\n", e.subject(args[0]))
			// The text is kept until it has been sent.
			after, file, err := a.editText(head + string(before))
			if err == nil {
				ctx := c.Context()
				if ctx.Err() != nil { // by a Ctrl-C that was for the editor
					ctx = context.WithoutCancel(ctx)
				}
				err = e.sendEdited(ctx, a, args[0], read, values, after)
			}
			switch {
			case err == nil:
				return os.RemoveAll(filepath.Dir(file))
			case file != "":
				fmt.Fprintln(a.std.Err, "vman: your text is kept in", file)
			}
			return err
		},
	}
}

// sendEdited sends the properties that differ from values.
func (e editable[T, U]) sendEdited(ctx context.Context, a *app, name string, read reply[T], values map[string]any, text []byte) error {
	var edited map[string]any
	if err := yaml.Unmarshal(text, &edited); err != nil {
		return usagef("the text is not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	changed := map[string]any{}
	for key, v := range edited {
		was, err1 := json.Marshal(values[key])
		is, err2 := json.Marshal(v)
		if err1 != nil || err2 != nil || !bytes.Equal(was, is) {
			changed[key] = v
		}
	}
	if len(changed) == 0 {
		return a.did(e.subject(name)+" not changed", name, read.raw)
	}
	return e.send(ctx, a, name, read, changed)
}

// editText lets the user edit text. It returns the result and the file that has it. Ctrl-C
// belongs to the editor meanwhile.
func (a *app) editText(text string) (edited []byte, file string, err error) {
	dir, err := os.MkdirTemp("", "vman-edit") // its mode is 0700
	if err != nil {
		return nil, "", err
	}
	file = filepath.Join(dir, "resource.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, "", err
	}
	words := strings.Fields(cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi"))
	if len(words) == 0 {
		words = []string{"vi"}
	}
	editor := exec.Command(words[0], append(words[1:], file)...)
	editor.Stdin, editor.Stdout, editor.Stderr = a.std.In, a.std.Out, a.std.Err
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt) // also a second one does not end the process
	defer signal.Stop(interrupts)
	if err := editor.Run(); err != nil {
		return nil, file, failf(exitFailed, "the editor %s: %v", words[0], err).hint("set EDITOR")
	}
	info, err := os.Stat(file)
	if err == nil && info.Size() > maxEdit {
		err = usagef("%s is larger than %s", file, formatSize(maxEdit))
	}
	if err != nil {
		return nil, file, err
	}
	edited, err = os.ReadFile(file)
	return edited, file, err
}

// textWidth is the longest line of a text that is wrapped.
const textWidth = 110

// wrap breaks a paragraph into lines.
func wrap(text string) string {
	var lines strings.Builder
	width := 0
	for _, word := range strings.Fields(text) {
		switch {
		case width == 0:
		case width+1+len(word) > textWidth:
			lines.WriteByte('\n')
			width = 0
		default:
			lines.WriteByte(' ')
			width++
		}
		lines.WriteString(word)
		width += len(word)
	}
	lines.WriteByte('\n')
	return lines.String()
}
