package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"vmand/openapi/client"
)

const (
	// maxStdin is how much standard input exec passes to a program, in bytes.
	maxStdin = 1 << 20
	// maxCopy is the maximum size of a file that the API copies, in bytes.
	maxCopy = 64 << 20
	// maxPassword is the maximum length of a password in bytes.
	maxPassword = 1024
)

func (a *app) execCommand() *cobra.Command {
	var env []string
	var program []string // and its arguments
	var input bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "exec VM [flags] -- COMMAND [ARG...]",
		Short: "Run a program in a guest",
		Long: "Run a program in a guest through its guest agent, without a shell. The exit status is that of the\n" +
			"program, 128 + N if signal N has ended it, 255 if it is not 0 to 255. The output appears when the\n" +
			"program has ended.",
		Example:           "  vman exec web-1 -- uname -a\n  vman exec web-1 -i -- sh -c 'cat > /etc/motd' < motd",
		GroupID:           groupGuest,
		Args:              names(2, -1),
		ValidArgsFunction: a.vms().complete(a, "running"),
	}
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) < 2 {
			return names(2, -1)(c, args)
		}
		if err := names(1, 1)(c, args[:1]); err != nil {
			return err
		}
		// Flags end at the program: what follows is for it.
		if err := c.Flags().Parse(args[1:]); err != nil {
			return flagError(c, err)
		}
		if help, _ := c.Flags().GetBool("help"); help {
			return pflag.ErrHelp
		}
		if program = c.Flags().Args(); len(program) == 0 {
			return names(2, -1)(c, args[:1])
		}
		return nil
	}
	c.Flags().StringArrayVarP(&env, "env", "e", nil, "an environment variable KEY=VALUE of the program")
	c.Flags().BoolVarP(&input, "stdin", "i", false, "pass standard input to the program, at most 1M")
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for the program, at most 5m")
	c.Flags().SetInterspersed(false)
	c.RunE = func(c *cobra.Command, args []string) error {
		body := client.ExecRequest{Command: program, TimeoutSeconds: new(int(timeout.Seconds()))}
		if len(env) > 0 {
			vars, err := parseLabels(env)
			if err != nil {
				return err
			}
			body.Env = &vars
		}
		if input {
			text, err := io.ReadAll(io.LimitReader(a.input(c.Context()), maxStdin+1))
			if err != nil {
				return err
			}
			if base64.StdEncoding.EncodedLen(len(text)) > maxStdin && (len(text) > maxStdin || !utf8.Valid(text)) {
				return usagef("standard input is larger than %s", formatSize(maxStdin)).hint("copy it with vman cp first")
			}
			if utf8.Valid(text) {
				body.Stdin = new(string(text))
			} else {
				body.StdinBase64 = new(base64.StdEncoding.EncodeToString(text))
			}
		}
		return a.exec(c.Context(), args[0], body)
	}
	return c
}

// exec runs a program in a guest and passes its output and its exit status on.
func (a *app) exec(ctx context.Context, id string, body client.ExecRequest) error {
	r, err := call[client.ExecResult](ctx, a)(client.NewExecCommandRequest(server, id, body))
	if err != nil {
		return err
	}
	if a.out.form != "" {
		return a.out.item(id, r.raw)
	}
	out, err1 := streamOf(r.value.Stdout, r.value.StdoutBase64)
	said, err2 := streamOf(r.value.Stderr, r.value.StderrBase64)
	_, err3 := a.std.Out.Write(out)
	_, err4 := a.std.Err.Write(said)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	if r.value.Truncated {
		fmt.Fprintln(a.std.Err, "vman: the output was longer than the guest agent keeps; its end is missing")
	}
	switch {
	case !r.value.Exited:
		return failf(exitTimedOut, "VM %s: the program has not ended after %d s; it continues in the guest", id,
			value(body.TimeoutSeconds)).hint("--timeout waits longer, at most 5m")
	case r.value.Signal != nil:
		return exitCode(128 + *r.value.Signal)
	case value(r.value.ExitCode) != 0:
		if code := *r.value.ExitCode; code > 0 && code <= 255 {
			return exitCode(code)
		}
		return exitCode(255) // such as a status of Windows, of which the last 8 bits can be 0
	}
	return nil
}

func streamOf(text, encoded *string) ([]byte, error) {
	if encoded != nil {
		return base64.StdEncoding.DecodeString(*encoded)
	}
	return []byte(value(text)), nil
}

func (a *app) copyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SOURCE TARGET",
		Short: "Copy a file to or from a guest",
		Long: "Copy a file of at most 64M to or from a guest through its guest agent. VM:PATH is a file in a guest;\n" +
			"- is standard input or output. A PATH in the guest is absolute. If the target ends with a slash or is a\n" +
			"local directory, the file keeps its name.",
		Example: "  vman cp app.conf web-1:/etc/app.conf\n  vman cp web-1:/var/log/syslog .",
		GroupID: groupGuest,
		Args:    names(0, 2),
		PreRunE: func(c *cobra.Command, args []string) error { return exactly(c, args, 2) },
		RunE: func(c *cobra.Command, args []string) error {
			from, isFrom := guestPath(args[0])
			to, isTo := guestPath(args[1])
			switch {
			case isFrom == isTo:
				return usagef("one of %s and %s must be a file in a guest: VM:PATH", args[0], args[1])
			case isFrom:
				return a.copyFrom(c.Context(), from, args[1])
			}
			return a.copyTo(c.Context(), args[0], to)
		},
	}
}

func exactly(c *cobra.Command, args []string, n int) error { return names(n, n)(c, args) }

// A guestFile is a file in a guest.
type guestFile struct{ vm, path string }

// guestPath parses VM:PATH. A path with a slash before the colon is a local one.
func guestPath(arg string) (guestFile, bool) {
	vm, path, ok := strings.Cut(arg, ":")
	if !ok || len(vm) < 2 || strings.ContainsAny(vm, `/\.`) { // C:\x is local
		return guestFile{}, false
	}
	return guestFile{vm, path}, true
}

func (a *app) copyTo(ctx context.Context, from string, to guestFile) error {
	if strings.HasSuffix(to.path, "/") {
		if from == "-" {
			return usagef("%s: name the file in the guest", to.path)
		}
		to.path = path.Join(to.path, filepath.Base(from))
	}
	in, size := a.input(ctx), int64(-1)
	if from != "-" {
		f, err := os.Open(from)
		if err != nil {
			return usagef("%v", err)
		}
		defer f.Close()
		info, err := f.Stat()
		switch {
		case err != nil:
			return err
		case info.IsDir():
			return usagef("%s is a directory", from).hint("copy an archive: tar cf - %s | vman cp - %s:/tmp/a.tar", from, to.vm)
		case info.Size() > maxCopy:
			return tooLarge(from, info.Size())
		}
		in, size = f, info.Size()
	}
	// The limit is checked before anything is sent, so that no part is left in the guest.
	content, err := io.ReadAll(io.LimitReader(in, maxCopy+1))
	if err != nil {
		return err
	}
	if len(content) > maxCopy {
		return tooLarge(from, max(size, int64(len(content))))
	}
	m := a.progress.meter(to.vm+":"+to.path, 0, int64(len(content)))
	body := struct{ io.Reader }{io.TeeReader(bytes.NewReader(content), m)}
	r, err := client.NewWriteFileRequestWithBody(server, to.vm, &client.WriteFileParams{Path: to.path}, "application/octet-stream", body)
	if err == nil {
		r.ContentLength = int64(len(content))
	}
	resp, err := a.stream(ctx, r, err)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func tooLarge(name string, size int64) error {
	return usagef("%s has %s; the guest agent copies at most %s", name, formatSize(size), formatSize(maxCopy)).
		hint("use scp, or attach a disk")
}

func (a *app) copyFrom(ctx context.Context, from guestFile, to string) error {
	r, err := client.NewReadFileRequest(server, from.vm, &client.ReadFileParams{Path: from.path})
	resp, err := a.stream(ctx, r, err)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if info, err := os.Stat(to); err == nil && info.IsDir() {
		to = filepath.Join(to, path.Base(from.path))
	}
	return a.save(ctx, to, io.TeeReader(resp.Body, a.meterTo(to, from.vm+":"+from.path, resp.ContentLength)))
}

// meterTo returns the meter of a download; none if the content appears on the terminal itself.
func (a *app) meterTo(target, subject string, total int64) io.Writer {
	if target == "-" && isTerminal(a.std.Out) {
		return io.Discard
	}
	return a.progress.meter(subject, 0, total)
}

// save writes a local file, or standard output for -. A file that is not complete is removed.
// An existing file keeps its mode, and what is not a regular file is written to.
func (a *app) save(ctx context.Context, name string, content io.Reader) error {
	if name == "-" {
		_, err := io.Copy(struct{ io.Writer }{a.std.Out}, content)
		return explain(ctx, err)
	}
	if target, err := filepath.EvalSymlinks(name); err == nil {
		name = target
	}
	was, err := os.Stat(name)
	if err == nil && !was.Mode().IsRegular() {
		return writeThrough(ctx, name, content)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return usagef("%v", err)
	}
	if link, err := os.Lstat(name); err == nil && link.Mode()&fs.ModeSymlink != 0 {
		return usagef("%s is a symbolic link to a file that does not exist", name)
	}
	partial := filepath.Join(filepath.Dir(name), "."+uuid.NewString()+".partial")
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return usagef("%v", err)
	}
	defer os.Remove(partial)
	if was != nil {
		err = f.Chmod(was.Mode().Perm())
	}
	if err == nil {
		_, err = io.Copy(f, content)
	}
	if err := errors.Join(explain(ctx, err), f.Close()); err != nil {
		return err
	}
	return os.Rename(partial, name)
}

// writeThrough writes to a device or a FIFO.
func writeThrough(ctx context.Context, name string, content io.Reader) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return usagef("%v", err)
	}
	_, err = io.Copy(f, content)
	return errors.Join(explain(ctx, err), f.Close())
}

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var tail sizeFlag
	c := &cobra.Command{
		Use:               "logs VM",
		Short:             "Show the console log of a VM",
		GroupID:           groupGuest,
		Args:              names(1, 1),
		ValidArgsFunction: a.vms().complete(a),
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "wait for new output until the VM stops")
	c.Flags().Var(&tail, "tail", "only the end of this size, such as 4K")
	c.RunE = func(c *cobra.Command, args []string) error {
		params := client.GetConsoleLogParams{Follow: &follow}
		if tail > 0 {
			params.Tail = new(int64(tail))
		}
		r, err := client.NewGetConsoleLogRequest(server, args[0], &params)
		resp, err := a.stream(c.Context(), r, err)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(struct{ io.Writer }{a.std.Out}, resp.Body)
		if follow && errors.Is(context.Cause(c.Context()), errInterrupted) {
			return exitCode(exitInterrupted)
		}
		return explain(c.Context(), err)
	}
	return c
}

func (a *app) consoleCommand() *cobra.Command {
	var flags ConsoleFlags
	c := &cobra.Command{
		Use:   "console VM",
		Short: "Connect the terminal to the serial console of a VM",
		Long: "Connect the terminal to the serial console of a VM. Enter ~ . closes it, Enter ~ ? lists the other\n" +
			"escapes. If standard input is not a terminal, it is passed on unchanged and the command ends when the\n" +
			"VM stops.",
		GroupID:           groupGuest,
		Args:              names(1, 1),
		ValidArgsFunction: a.vms().complete(a, "running", "paused"),
	}
	c.Flags().BoolVar(&flags.ReadOnly, "read-only", false, "only show the output of the guest")
	c.Flags().BoolVar(&flags.TakeOver, "take-over", false, "take the keyboard from its current user")
	c.MarkFlagsMutuallyExclusive("read-only", "take-over")
	c.RunE = func(c *cobra.Command, args []string) error {
		_, e, err := a.connect()
		if err != nil {
			return err
		}
		return console(c.Context(), consoleOf(e, a.version), args[0], flags, a.std)
	}
	return c
}

func (a *app) guestCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "guest VM",
		Short:             "Show what the guest agent of a VM reports",
		GroupID:           groupGuest,
		Args:              names(1, 1),
		ValidArgsFunction: a.vms().complete(a, "running"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := call[client.Guest](c.Context(), a)(client.NewGetGuestRequest(server, args[0]))
			if err != nil {
				return err
			}
			return a.out.item(args[0], r.raw)
		},
	}
}

func (a *app) trimCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "trim VM...",
		Short:             "Return unused blocks of guests' file systems to the host",
		GroupID:           groupGuest,
		Args:              names(1, -1),
		ValidArgsFunction: a.vms().complete(a, "running"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.forEach(c.Context(), args, func(ctx context.Context, id string) error {
				_, err := call[struct{}](ctx, a)(client.NewTrimVMRequest(server, id, client.EmptyRequest{}))
				if err != nil {
					return err
				}
				return a.did("VM "+id+" trimmed", id, nil)
			})
		},
	}
}

func (a *app) passwordCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "password VM USER",
		Short:             "Set the password of a user of a guest",
		Long:              "Set the password of a user of a guest through its guest agent. The password is asked for, or read\nfrom the first line of standard input if that is not a terminal.",
		GroupID:           groupGuest,
		Args:              names(2, 2),
		ValidArgsFunction: a.vms().complete(a, "running"),
		RunE: func(c *cobra.Command, args []string) error {
			password, err := a.readPassword(c.Context(), fmt.Sprintf("New password of user %s of VM %s: ", args[1], args[0]))
			if err != nil {
				return err
			}
			body := client.SetPassword{User: args[1], Password: password}
			if _, err := call[struct{}](c.Context(), a)(client.NewSetPasswordRequest(server, args[0], body)); err != nil {
				return err
			}
			return a.did("VM "+args[0]+": password of user "+args[1]+" set", args[0], nil)
		},
	}
}

// readPassword asks for a password without showing it.
func (a *app) readPassword(ctx context.Context, prompt string) (string, error) {
	password, err := "", error(nil)
	if isTerminal(a.std.In) {
		password, err = a.askPassword(ctx, prompt)
	} else {
		var text []byte
		text, err = io.ReadAll(io.LimitReader(a.input(ctx), maxPassword+2))
		text, _, _ = bytes.Cut(text, []byte("\n"))
		password = strings.TrimSuffix(string(text), "\r")
	}
	if err != nil {
		return "", err
	}
	if password == "" || len(password) > maxPassword {
		return "", usagef("a password has 1 to %d bytes", maxPassword)
	}
	return password, nil
}

// askPassword reads a password from the terminal. The terminal stops showing what is typed
// before the question appears.
func (a *app) askPassword(ctx context.Context, prompt string) (string, error) {
	fd := int(a.std.In.Fd())
	was, err := term.MakeRaw(fd)
	if err != nil {
		return "", err
	}
	defer func() { _ = term.Restore(fd, was) }()
	t := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{a.input(ctx), a.std.Err}, "")
	password, err := t.ReadPassword(printable(prompt))
	if errors.Is(err, io.EOF) { // Ctrl-C or Ctrl-D, which are no signals here
		return "", failf(exitInterrupted, "interrupted; no password was set")
	}
	return password, err
}
