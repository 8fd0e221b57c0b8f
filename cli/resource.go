package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// A resource describes one kind of resource to the commands that all kinds have.
type resource[T any] struct {
	noun    string // in messages, such as VM
	name    func(T) string
	state   func(T) string // nil if it has none
	columns []column[T]
	pairs   func(T) [][2]string // what show prints for people; nil for YAML
	list    func() (*http.Request, error)
	get     func(name string) (*http.Request, error)
	remove  func(name string) (*http.Request, error)
}

// subject names one resource in messages.
func (r resource[T]) subject(name string) string { return r.noun + " " + name }

// print lists the items that a request returns, those that keep accepts.
func (r resource[T]) print(ctx context.Context, a *app, req *http.Request, err error, keep func(T) bool) error {
	l := newList(a.out, r.name, r.columns)
	err = each(ctx, a, func(item T, raw json.RawMessage) error {
		if keep != nil && !keep(item) {
			return nil
		}
		return l.add(item, raw)
	})(req, err)
	if err != nil {
		return err
	}
	return l.end()
}

// show prints one resource.
func (r resource[T]) show(a *app, v reply[T]) error {
	if a.out.people() && r.pairs != nil {
		return a.out.pairs(r.pairs(v.value))
	}
	return a.out.item(r.name(v.value), v.raw)
}

func (r resource[T]) listCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List " + r.noun + "s",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			req, err := r.list()
			return r.print(c.Context(), a, req, err, nil)
		},
	}
}

func (r resource[T]) showCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME...",
		Aliases:           []string{"get", "info"},
		Short:             "Show " + r.noun + "s",
		Args:              names(1, -1),
		ValidArgsFunction: r.complete(a),
		RunE: func(c *cobra.Command, args []string) error {
			for _, name := range args {
				v, err := call[T](c.Context(), a)(r.get(name))
				if err == nil {
					err = r.show(a, v)
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// removeCommand deletes resources. force is nil if the deletion of the kind has no force.
func (r resource[T]) removeCommand(a *app, force *bool) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:               "rm NAME...",
		Aliases:           []string{"delete"},
		Short:             "Delete " + r.noun + "s",
		Args:              names(1, -1),
		ValidArgsFunction: r.complete(a),
		RunE: func(c *cobra.Command, args []string) error {
			return r.removeAll(c.Context(), a, args, yes)
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	if force != nil {
		c.Flags().BoolVar(force, "force", false, "cancel an operation that reads the "+r.noun)
	}
	return c
}

func (r resource[T]) removeAll(ctx context.Context, a *app, names []string, yes bool) error {
	if err := a.confirm(ctx, yes, "Delete %s %s?", r.noun, strings.Join(names, ", ")); err != nil {
		return err
	}
	return a.forEach(ctx, names, func(ctx context.Context, name string) error {
		a.progress.step(r.subject(name), "deleting")
		v, err := change[T](ctx, a)(r.remove(name))
		v, err = settle(ctx, a, r.subject(name), v, err, nil)
		if done, err := detached(err); done || err != nil {
			return err
		}
		return a.did(r.subject(name)+" deleted", name, v.raw)
	})
}

// complete completes names of resources in one of the states, all without states.
func (r resource[T]) complete(a *app, states ...string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, stop := context.WithTimeout(c.Context(), completionPatience)
		defer stop()
		var out []string
		err := each(ctx, a, func(item T, _ json.RawMessage) error {
			name, state := r.name(item), ""
			if r.state != nil {
				state = r.state(item)
			}
			if len(states) > 0 && !contains(states, state) || contains(args, name) {
				return nil
			}
			out = append(out, cobra.CompletionWithDesc(name, state))
			return nil
		})(r.list())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveError
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completionPatience limits how long the shell waits for completions.
const completionPatience = 2 * time.Second

func contains(list []string, s string) bool {
	for _, item := range list {
		if item == s {
			return true
		}
	}
	return false
}

// names accepts from least to most arguments that are names; most is -1 for no limit. It
// refuses names that would change the path of a request.
func names(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least && most < 0:
			return usagef("%s requires at least %d argument(s)", c.CommandPath(), least).hint("usage: %s", c.UseLine())
		case len(args) < least || most >= 0 && len(args) > most:
			return usagef("%s requires %s, received %d", c.CommandPath(), count(least, most), len(args)).
				hint("usage: %s", c.UseLine())
		}
		for _, arg := range args {
			if arg == "" || arg == "." || arg == ".." {
				return usagef("%q is not a name", arg)
			}
		}
		return nil
	}
}

func count(least, most int) string {
	if least == most {
		return fmt.Sprintf("%d argument(s)", least)
	}
	return fmt.Sprintf("%d to %d arguments", least, most)
}

// confirm asks the user. It fails unless the answer is yes.
func (a *app) confirm(ctx context.Context, yes bool, format string, args ...any) error {
	question := printable(fmt.Sprintf(format, args...))
	switch {
	case yes:
		return nil
	case !isTerminal(a.std.In):
		return usagef("there is no terminal to ask: %s", question).hint("--yes answers yes")
	}
	fmt.Fprint(a.std.Err, question+" [y/N] ")
	line, err := bufio.NewReader(io.LimitReader(a.input(ctx), 1000)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(a.std.Err)
		return err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return failf(exitFailed, "nothing was changed")
}

// did prints the result of a change: a sentence for people, the resource for programs.
func (a *app) did(sentence, name string, raw json.RawMessage) error {
	a.printing.Lock()
	defer a.printing.Unlock()
	a.progress.clear()
	switch {
	case a.out.people():
		_, err := fmt.Fprintln(a.out.w, oneLine(sentence))
		return err
	case len(raw) == 0 && !a.out.named():
		return nil
	}
	return a.out.item(name, raw)
}
