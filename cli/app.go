package cli

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
)

// parallel is how many resources one command works on at the same time.
const parallel = 8

// An app is one run of the client.
type app struct {
	std     Streams
	version string

	// Global flags.
	url, context, form string
	force              bool
	quiet              bool
	noWait             bool
	wait               bool
	timeout            time.Duration

	out      *output
	progress *progress

	printing sync.Mutex // of results, by several goroutines

	once        sync.Once // for connect
	http        *http.Client
	endpoint    *endpoint
	endpointErr error
}

// defaultTimeout is how long a command waits by default.
const defaultTimeout = 10 * time.Minute

// Main runs the client vman with the arguments after the name of the program, and returns
// its exit status. The first Ctrl-C, SIGTERM or SIGHUP ends the command and restores the
// terminal; what the daemon is doing continues. The second one ends the process at once.
func Main(args []string, std Streams, version string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) { // as nohup does
			signal.Notify(signals, s)
		}
	}
	defer signal.Stop(signals)
	go func() {
		select {
		case <-signals:
			signal.Stop(signals)
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return Run(ctx, args, std, version)
}

// Run is [Main] without signals: the command ends when ctx is done.
func Run(ctx context.Context, args []string, std Streams, version string) int {
	a := &app{std: std, version: version}
	defer func() {
		if a.http != nil {
			a.http.CloseIdleConnections()
		}
	}()
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if a.progress != nil {
		a.progress.clear()
	}
	if err == nil {
		return 0
	}
	err = asUsage(err)
	report(std.Err, err)
	return statusOf(err)
}

// newAppOf returns an app for the requests to one daemon, without the command line of the
// client.
func newAppOf(e *endpoint, transport http.RoundTripper) *app {
	a := &app{endpoint: e, http: &http.Client{Transport: transport}}
	a.once.Do(func() {}) // connected
	return a
}

// asUsage gives the errors that cobra makes itself their exit status.
func asUsage(err error) error {
	var f *failure
	if errors.As(err, &f) {
		return err
	}
	text, suggestions, _ := strings.Cut(err.Error(), "\n\nDid you mean this?\n")
	for _, begin := range []string{"unknown command", "accepts ", "requires ", "required flag", "if any flags", "at least one"} {
		if strings.HasPrefix(text, begin) {
			u := usagef("%s", text)
			if words := strings.Fields(suggestions); len(words) > 0 {
				u.hint("did you mean %s?", strings.Join(words, " or "))
			}
			return u.hint("see vman --help")
		}
	}
	return err
}

// prepare reads the global flags. It runs before each command.
func (a *app) prepare(c *cobra.Command, _ []string) error {
	var err error
	if a.out, err = newOutput(a.std.Out, a.form, a.quiet); err != nil {
		return err
	}
	if a.timeout < 0 {
		return usagef("--timeout must not be negative")
	}
	if c.Flags().Changed("wait") && !a.wait {
		a.noWait = true
	}
	a.progress = newProgress(a.std.Err, a.quiet)
	return nil
}

// limited returns a context that ends after --timeout; 0 is no limit.
func (a *app) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout == 0 {
		return context.WithCancel(ctx)
	}
	gaveUp := failf(exitTimedOut, "gave up waiting after %s", a.timeout).
		hint("vman op ls shows what continues; --timeout waits longer")
	gaveUp.cause = context.DeadlineExceeded
	return context.WithTimeoutCause(ctx, a.timeout, gaveUp)
}

// forEach calls do for every name, several at a time. An error does not keep it from the
// others.
func (a *app) forEach(ctx context.Context, names []string, do func(ctx context.Context, name string) error) error {
	var group errgroup.Group
	group.SetLimit(parallel)
	errs := make([]error, len(names))
	for i, name := range names {
		group.Go(func() error {
			if ctx.Err() == nil {
				errs[i] = do(ctx, name)
			} else {
				errs[i] = context.Cause(ctx)
			}
			return nil
		})
	}
	_ = group.Wait()
	return errors.Join(errs...)
}

// globalFlags adds the flags that every command has.
func (a *app) globalFlags(f *pflag.FlagSet) {
	f.StringVar(&a.url, "url", "", "the daemon: unix:PATH, http://HOST:PORT or https://HOST:PORT (VMAN_URL)")
	f.StringVar(&a.context, "context", "", "the context that names the daemon (VMAN_CONTEXT)")
	f.StringVarP(&a.form, "output", "o", "", "the form of the output: json, yaml, name, wide or go-template=TEXT")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print only names, and no progress")
	f.BoolVar(&a.wait, "wait", true, "wait until the operation has ended")
	f.BoolVar(&a.noWait, "no-wait", false, "print the id of the operation instead of waiting")
	f.DurationVar(&a.timeout, "timeout", defaultTimeout, "how long to wait; 0 is without limit")
}
