package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmand/openapi/client"
)

// Exit statuses of the client; the help topic exit-codes describes them.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitNoDaemon    = 5
	exitNotAllowed  = 6
	exitTimedOut    = 7
	exitInterrupted = 130 // 128 + SIGINT, as shells report it
)

// errInterrupted is the cause of a context that Ctrl-C has ended.
var errInterrupted = errors.New("interrupted")

// A failure is an error with an exit status.
type failure struct {
	status int
	text   string
	code   client.ProblemCode // of the daemon's problem; empty for other failures
	http   int                // the status of the daemon's answer; 0 for other failures
	final  bool               // repeating the request is no use
	cause  error              // may be nil
	more   []string           // further lines: invalid fields, the hint, the request id
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.cause }

func failf(status int, format string, args ...any) *failure {
	return &failure{status: status, text: fmt.Sprintf(format, args...)}
}

func usagef(format string, args ...any) *failure { return failf(exitUsage, format, args...) }

// hint adds a line that says what to do next.
func (f *failure) hint(format string, args ...any) *failure {
	f.more = append(f.more, "hint: "+fmt.Sprintf(format, args...))
	return f
}

// An exitCode is the exit status of a program in a guest. It prints nothing.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// statusOf returns the exit status for an error. Several errors with different statuses
// have the status [exitFailed].
func statusOf(err error) int {
	var several interface{ Unwrap() []error }
	if errors.As(err, &several) {
		status := 0
		for _, e := range several.Unwrap() {
			if s := statusOf(e); status == 0 || s == status {
				status = s
			} else {
				return exitFailed
			}
		}
		return status
	}
	var f *failure
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &f):
		return f.status
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimedOut
	}
	return exitFailed
}

// report writes an error to w: one line for what failed, then further lines.
func report(w io.Writer, err error) {
	var several interface{ Unwrap() []error }
	if errors.As(err, &several) {
		for _, e := range several.Unwrap() {
			report(w, e)
		}
		return
	}
	if errors.As(err, new(exitCode)) || errors.Is(err, syscall.EPIPE) {
		return
	}
	fmt.Fprintln(w, "vman:", printable(err.Error()))
	var f *failure
	if errors.As(err, &f) {
		for _, line := range f.more {
			fmt.Fprintln(w, "  "+printable(line))
		}
	}
}

// printable replaces control characters, which could change the terminal: text of the
// daemon can contain what a guest has written.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '\uFFFD'
		}
		return r
	}, s)
}

// oneLine is printable without line breaks, for tables and progress.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(printable(s), func(r rune) bool { return r == '\n' || r == '\t' }), " ")
}

// statusOfProblem returns the exit status for an HTTP status.
func statusOfProblem(status int) int {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return exitUsage
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitNotAllowed
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return exitConflict
	}
	return exitFailed
}

// failureOf returns a problem of the daemon as an error.
func failureOf(p client.Problem, status int, request string) *failure {
	f := failf(statusOfProblem(status), "%s", cmp.Or(p.Detail, p.Title, "vmand answers "+http.StatusText(status)))
	f.code, f.http = p.Code, status
	for _, e := range p.Errors {
		if detail := e.Field + ": " + e.Detail; !strings.Contains(f.text, e.Detail) {
			f.more = append(f.more, detail)
		}
	}
	if p.Hint != "" {
		f.hint("%s", p.Hint)
	}
	if p.OperationID != "" {
		f.more = append(f.more, "operation: "+p.OperationID+" (vman op show "+p.OperationID+")")
	}
	if status == http.StatusUnauthorized {
		f.hint("set VMAN_TOKEN or VMAN_TOKEN_FILE; the first token is in the file admin.token in the daemon's state directory")
	}
	if id := cmp.Or(p.RequestID, request); id != "" {
		f.more = append(f.more, "request: "+id)
	}
	return f
}

// flagError names the nearest flag for one that does not exist.
func flagError(c *cobra.Command, err error) error {
	f := usagef("%s", err.Error())
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		if near := nearest(unknown.GetSpecifiedName(), flagNames(c)); near != "" {
			f.hint("did you mean --%s?", near)
		}
	}
	if c.Name() == "exec" {
		f.hint("write -- before the program and its arguments")
	}
	return f.hint("see %s --help", c.CommandPath())
}

func flagNames(c *cobra.Command) []string {
	var names []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	return names
}

// nearest returns the name with the smallest distance to word, "" if none is near.
func nearest(word string, names []string) string {
	best, least := "", max(2, len(word)/3)+1
	for _, name := range names {
		d := distance(word, name)
		if d < least {
			best, least = name, d
		}
	}
	return best
}

// distance returns the number of characters to insert, delete or replace to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
