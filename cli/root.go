package cli

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

// The groups of commands in the help.
const (
	groupVM       = "vm"
	groupGuest    = "guest"
	groupResource = "resource"
	groupHost     = "host"
)

// root returns the tree of commands. docs/cli.md is made from it.
func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:                "vman",
		Short:              "Manage the VMs of vmand hosts",
		Long:               "vman manages the VMs of a host that runs vmand.\n\n  vman launch debian-12 --name web    a VM with SSH, from a cloud image\n  vman ls                             what there is",
		Version:            a.version,
		SilenceUsage:       true,
		SilenceErrors:      true,
		PersistentPreRunE:  a.prepare,
		DisableSuggestions: false,
		CompletionOptions:  cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	c.SuggestionsMinimumDistance = 2
	c.SetVersionTemplate("vman {{.Version}}\n")
	c.SetOut(a.std.Out)
	c.SetErr(a.std.Err)
	c.SetFlagErrorFunc(flagError)
	a.globalFlags(c.PersistentFlags())
	a.completeFlag(c, "output", fixed(outputForms...))
	a.completeFlag(c, "context", completeContexts)
	c.AddGroup(
		&cobra.Group{ID: groupVM, Title: "Virtual machines:"},
		&cobra.Group{ID: groupGuest, Title: "Guests:"},
		&cobra.Group{ID: groupResource, Title: "Resources:"},
		&cobra.Group{ID: groupHost, Title: "Host and client:"},
	)
	a.addVMCommands(c)
	c.AddCommand(a.execCommand(), a.copyCommand(), a.consoleCommand(), a.logsCommand(), a.guestCommand(),
		a.passwordCommand(), a.trimCommand())
	for _, g := range []*cobra.Command{a.diskCommand(), a.imageCommand(), a.networkCommand(), a.nicCommand(),
		a.forwardCommand(), a.cdromCommand(), a.templateCommand(), a.cloudInitCommand(), a.operationCommand()} {
		g.GroupID = groupResource
		c.AddCommand(g)
	}
	for _, g := range []*cobra.Command{a.eventCommand(), a.observerCommand(), a.healthCommand(), a.apiCommand(),
		a.contextCommand(), a.completionCommand(), a.versionCommand()} {
		g.GroupID = groupHost
		c.AddCommand(g)
	}
	c.SetHelpCommandGroupID(groupHost)
	c.AddCommand(topics()...)
	return c
}

func (a *app) addVMCommands(c *cobra.Command) {
	e := editable[client.VM, client.UpdateVM]{a.vms(), func(id, tag string, body client.UpdateVM) (*http.Request, error) {
		return client.NewUpdateVMRequest(server, id, &client.UpdateVMParams{IfMatch: nonEmpty(tag)}, body)
	}}
	show, edit, set := a.vms().showCommand(a), e.editCommand(a), e.setCommand(a)
	show.Use, edit.Use, set.Use = "show VM...", "edit VM", "set VM KEY=VALUE..."
	set.Example = "  vman set web-1 description='the web server' labels.team=web autostart=true"
	for _, command := range []*cobra.Command{show, edit, set} {
		command.GroupID = groupVM
	}
	c.AddCommand(a.launchCommand(), a.listVMs(), show, a.createVM())
	c.AddCommand(a.actions()...)
	c.AddCommand(a.removeVMs(), edit, set, a.whyCommand(), a.waitCommand())
}

// group returns a command that only has subcommands.
func group(name, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name, Aliases: []string{name + "s"}, Short: short}
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		f := usagef("unknown command %q for %q", args[0], c.CommandPath())
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			f.hint("did you mean %s?", strings.Join(near, " or "))
		}
		return f.hint("see %s --help", c.CommandPath())
	}
	c.SuggestionsMinimumDistance = 2
	c.AddCommand(commands...)
	return c
}

// fixed completes one of the words.
func fixed(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// completeFlag registers the completion of a flag that must exist.
func (a *app) completeFlag(c *cobra.Command, flag string, complete cobra.CompletionFunc) {
	if err := c.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err)
	}
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print the completions for bash, zsh or fish",
		Long: "Print the completions for a shell. They complete the names of VMs and other resources, with their states.\n\n" +
			"  bash: vman completion bash > /etc/bash_completion.d/vman\n" +
			"  zsh:  vman completion zsh > \"${fpath[1]}/_vman\"\n" +
			"  fish: vman completion fish > ~/.config/fish/completions/vman.fish",
		Args:      names(1, 1),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(c *cobra.Command, args []string) error {
			switch root := c.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.std.Out, true)
			case "zsh":
				return root.GenZshCompletion(a.std.Out)
			case "fish":
				return root.GenFishCompletion(a.std.Out, true)
			}
			return usagef("completion %s: use bash, zsh or fish", args[0])
		},
	}
}

// topics returns the help topics: commands without an effect.
func topics() []*cobra.Command {
	text := []struct{ name, short, long string }{
		{"exit-codes", "The exit statuses", `0    done
1    failed
2    wrong usage, or a value that the daemon refuses
3    not found
4    conflict: the state forbids it, the name is taken, the resource has changed, …
5    no daemon can be reached
6    not allowed
7    gave up waiting; what the daemon is doing continues
130  interrupted by Ctrl-C; what the daemon is doing continues

vman exec has the exit status of the program in the guest, 128 + N if signal N has ended it.
If several resources fail for different reasons, the status is 1.`},
		{"output", "The forms of the output", `Without -o, output is for people: tables do not wrap, and sizes are rounded (powers of 1024). States are
coloured on a terminal, unless NO_COLOR is set. New columns are only added at the end.

-o wide              more columns
-o name, -q          only names, one a line
-o json, -o yaml     the answer of the API, with exact values
-o go-template=TEXT  a template of Go for each resource, such as '{{.id}} {{.state}}'

Progress, questions and errors are written to standard error.`},
		{"contexts", "How the daemon is found", `The first of these names the daemon:

--url                unix:PATH, http://HOST:PORT or https://HOST:PORT
--context            a context of ~/.config/vman/config.yaml
VMAN_URL             as --url
VMAN_CONTEXT         as --context
the current context  set by vman context use
the unix socket      VMAN_SOCKET, VMAN_RUNTIME_DIR/vmand.sock, the socket of the user's own daemon, or
                     /run/vman/vmand.sock

A unix socket needs no token. Otherwise the token is that of the context, VMAN_TOKEN, or the content of the
file VMAN_TOKEN_FILE. A context with a fingerprint accepts exactly that certificate.`},
		{"waiting", "Waiting, interrupting and repeating", `Commands that change something wait until the daemon has done it, and show its steps: on a terminal in one
line, otherwise in several. --timeout limits the time; --no-wait prints the id of the operation instead.

Ctrl-C ends the command, not the operation: vman op wait ID follows it, vman op cancel ID cancels it.
A second Ctrl-C ends vman at once.

If the connection breaks, a request is repeated once with the same Idempotency-Key, so nothing is done twice.`},
	}
	list := "vman help TOPIC shows one of these:\n"
	for _, t := range text {
		list += fmt.Sprintf("\n%-12s %s", t.name, t.short)
	}
	all := []*cobra.Command{{Use: "topics", Short: "The help topics", Long: "The help topics\n\n" + list}}
	for _, t := range text {
		all = append(all, &cobra.Command{Use: t.name, Short: t.short, Long: t.short + "\n\n" + t.long})
	}
	return all
}

// usageLine returns the full usage of a command for the documentation.
func usageLine(c *cobra.Command) string {
	return fmt.Sprint(strings.TrimSuffix(c.UseLine(), " [flags]"))
}
