package cli

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/spf13/cobra"
)

func completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	c, err := readContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for _, name := range c.names() {
		out = append(out, cobra.CompletionWithDesc(name, c.Contexts[name].URL))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// A namedContext is a context in tables.
type namedContext struct {
	Name    string `json:"name"`
	Current bool   `json:"current"`
	contextEntry
}

func (a *app) contextCommand() *cobra.Command {
	columns := []column[namedContext]{
		{head: "NAME", cell: func(n namedContext) string { return n.Name }},
		{head: "CURRENT", cell: func(n namedContext) string { return map[bool]string{true: "yes"}[n.Current] }},
		{head: "URL", cell: func(n namedContext) string { return n.URL }},
		{head: "CREDENTIALS", cell: func(n namedContext) string { return n.credentials() }},
		{head: "FINGERPRINT", wide: true, cell: func(n namedContext) string { return n.Fingerprint }},
	}
	ls := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List contexts", Args: cobra.NoArgs}
	ls.RunE = func(*cobra.Command, []string) error {
		c, err := readContexts()
		if err != nil {
			return err
		}
		l := newList(a.out, func(n namedContext) string { return n.Name }, columns)
		for _, name := range c.names() {
			n := namedContext{name, name == c.Current, c.Contexts[name]}
			raw, err := json.Marshal(n)
			if err == nil {
				err = l.add(n, raw)
			}
			if err != nil {
				return err
			}
		}
		return l.end()
	}
	show := &cobra.Command{Use: "show", Short: "Show which daemon commands talk to", Args: cobra.NoArgs}
	show.RunE = func(*cobra.Command, []string) error {
		e, err := a.findEndpoint()
		if err != nil {
			return err
		}
		raw, err := json.Marshal(map[string]any{"url": e.String(), "token": e.token != "", "fingerprint": e.fingerprint})
		if err != nil {
			return err
		}
		return a.out.item(e.String(), raw)
	}
	use := &cobra.Command{Use: "use NAME", Short: "Make a context the current one", Args: names(1, 1),
		Long: "Make a context the current one. The name \"none\" makes the daemon of this host the current one.", ValidArgsFunction: completeContexts}
	use.RunE = func(_ *cobra.Command, args []string) error {
		return a.changeContexts("context "+args[0]+" is used", args[0], func(c *contexts) error {
			if args[0] == "none" {
				c.Current = ""
				return nil
			}
			c.Current = args[0]
			_, err := c.find(args[0])
			return err
		})
	}
	rm := &cobra.Command{Use: "rm NAME", Aliases: []string{"delete"}, Short: "Remove a context", Args: names(1, 1), ValidArgsFunction: completeContexts}
	rm.RunE = func(_ *cobra.Command, args []string) error {
		return a.changeContexts("context "+args[0]+" removed", args[0], func(c *contexts) error {
			_, err := c.find(args[0])
			delete(c.Contexts, args[0])
			if c.Current == args[0] {
				c.Current = ""
			}
			return err
		})
	}
	return group("context", "Name daemons and choose one", ls, show, a.addContext(), use, rm)
}

// changeContexts changes the configuration file.
func (a *app) changeContexts(done, name string, change func(*contexts) error) error {
	c, err := readContexts()
	if err == nil {
		err = change(&c)
	}
	if err == nil {
		err = c.write()
	}
	if err != nil {
		return err
	}
	return a.did(done, name, nil)
}

func (a *app) addContext() *cobra.Command {
	var e contextEntry
	var force, pin, use bool
	c := &cobra.Command{
		Use:   "add NAME URL",
		Short: "Add a context",
		Long: "Add a context. With --pin the certificate that the server shows now is the only one that is accepted\n" +
			"later; compare the fingerprint that is printed with that of the server.",
		Example: "  vman context add lab https://lab.example:8443 --token-file ~/.config/vman/lab.token --pin",
		Args:    func(c *cobra.Command, args []string) error { return names(2, 2)(c, args) },
	}
	c.Flags().StringVar(&e.TokenFile, "token-file", "", "a file with the token")
	c.Flags().StringVar(&e.Fingerprint, "fingerprint", "", "the certificate to accept: sha256:HEX")
	c.Flags().BoolVar(&pin, "pin", false, "pin the certificate that the server shows now")
	c.Flags().BoolVar(&use, "use", false, "make it the current context")
	c.Flags().BoolVar(&force, "force", false, "replace a context of this name")
	c.MarkFlagsMutuallyExclusive("fingerprint", "pin")
	c.RunE = func(c *cobra.Command, args []string) error {
		name := args[0]
		e.URL = args[1]
		if e.TokenFile != "" {
			path, err := filepath.Abs(e.TokenFile)
			if err != nil {
				return err
			}
			if _, err := readToken(path); err != nil {
				return err
			}
			e.TokenFile = path
		}
		if err := e.check(name); err != nil {
			return err
		}
		if pin {
			sum, err := shownFingerprint(c.Context(), e.URL)
			if err != nil {
				return err
			}
			e.Fingerprint = "sha256:" + sum
			fmt.Fprintln(a.std.Err, "the fingerprint is", e.Fingerprint)
		}
		if u, _ := url.Parse(e.URL); e.TokenFile != "" && u.Scheme == "http" && !isLoopback(u.Hostname()) {
			fmt.Fprintln(a.std.Err, "vman: warning: http sends the token unencrypted over the network")
		}
		return a.changeContexts("context "+name+" added", name, func(c *contexts) error {
			if _, exists := c.Contexts[name]; exists && !force {
				return failf(exitConflict, "context %s already exists", name).hint("--force replaces it")
			}
			if c.Contexts == nil {
				c.Contexts = map[string]contextEntry{}
			}
			if c.Contexts[name] = e; use {
				c.Current = name
			}
			return nil
		})
	}
	return c
}

func isLoopback(host string) bool { return host == "localhost" || host == "127.0.0.1" || host == "::1" }

// shownFingerprint returns the SHA-256 of the certificate that a server shows.
func shownFingerprint(ctx context.Context, where string) (string, error) {
	e, err := parseEndpoint(where)
	if err != nil {
		return "", err
	}
	if e.url.Scheme != "https" {
		return "", usagef("--pin needs an https URL, not %s", where)
	}
	conn, err := e.dial(ctx)
	if err != nil {
		return "", explain(ctx, err)
	}
	defer conn.Close()
	// Nothing is sent over this connection; the user compares the fingerprint.
	secure := tls.Client(conn, &tls.Config{ServerName: e.url.Hostname(), InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	ctx, stop := context.WithTimeout(ctx, dialTimeout)
	defer stop()
	if err := secure.HandshakeContext(ctx); err != nil {
		return "", failf(exitNoDaemon, "%s: %v", where, err)
	}
	sum := sha256.Sum256(secure.ConnectionState().PeerCertificates[0].Raw)
	return hex.EncodeToString(sum[:]), nil
}
