package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

func (a *app) vms() resource[client.VM] {
	return resource[client.VM]{
		noun:    "VM",
		name:    func(v client.VM) string { return v.ID },
		state:   func(v client.VM) string { return string(v.State) },
		columns: a.vmColumns(),
		pairs:   a.vmPairs,
		list: func() (*http.Request, error) {
			return client.NewListVMsRequest(server, &client.ListVMsParams{Limit: new(pageSize)})
		},
		get: getVM,
		remove: func(id string) (*http.Request, error) {
			return client.NewDeleteVMRequest(server, id, &client.DeleteVMParams{Force: &a.force})
		},
	}
}

// getVM makes the request that reads a VM.
func getVM(id string) (*http.Request, error) { return client.NewGetVMRequest(server, id, nil) }

func (a *app) vmColumns() []column[client.VM] {
	type vm = client.VM
	return []column[vm]{
		{head: "NAME", cell: func(v vm) string { return v.ID }},
		{head: "STATE", state: true, cell: func(v vm) string { return string(v.State) }},
		{head: "CPUS", cell: func(v vm) string { return fmt.Sprint(v.VMTemplate.CPUCount) }},
		{head: "MEMORY", cell: func(v vm) string { return formatSize(int64(v.VMTemplate.RAMAmount) * mib) }},
		{head: "DISK", cell: func(v vm) string { return formatSize(v.RootDiskSizeBytes) }},
		{head: "ADDRESS", cell: func(v vm) string { return value(v.LocalIP) }},
		{head: "IMAGE", cell: func(v vm) string { return value(v.Image) }},
		{head: "AGE", cell: func(v vm) string { return formatAge(a.out.now(), v.CreatedAt) }},
		{head: "REASON", wide: true, cell: func(v vm) string { return string(value(v.StateReason)) }},
		{head: "AGENT", wide: true, state: true, cell: func(v vm) string { return string(v.Agent.State) }},
		{head: "ACCEL", wide: true, cell: func(v vm) string { return string(value(v.Accel)) }},
		{head: "TEMPLATE", wide: true, cell: func(v vm) string { return v.VMTemplate.Name }},
		{head: "LABELS", wide: true, cell: func(v vm) string { return formatLabels(v.Labels) }},
	}
}

// vmPairs describes a VM for people.
func (a *app) vmPairs(v client.VM) [][2]string {
	size := fmt.Sprintf("%d CPUs, %s of memory, %s of disk", v.VMTemplate.CPUCount,
		formatSize(int64(v.VMTemplate.RAMAmount)*mib), formatSize(v.RootDiskSizeBytes))
	state := string(v.State)
	if reason := string(value(v.StateReason)); reason != "" {
		state += " (" + reason + ")"
	}
	pairs := [][2]string{
		{"Name", v.ID},
		{"State", state},
		{"Detail", value(v.StateReasonDetail)},
		{"Desired", string(v.DesiredState)},
		{"Size", size},
		{"Template", v.VMTemplate.Name},
		{"Image", value(v.Image)},
		{"Address", value(v.LocalIP)},
		{"Agent", string(v.Agent.State)},
		{"Accelerator", string(value(v.Accel))},
		{"Restart policy", fmt.Sprintf("%s, restarted %d times", v.RestartPolicy, v.RestartCount)},
		{"Autostart", fmt.Sprint(v.Autostart)},
		{"Labels", formatLabels(v.Labels)},
		{"Description", v.Description},
		{"UUID", v.UUID},
		{"Created", v.CreatedAt.Local().Format(time.DateTime)},
	}
	if v.StartedAt != nil {
		pairs = append(pairs, [2]string{"Started", v.StartedAt.Local().Format(time.DateTime)})
	}
	for _, n := range v.NICs {
		text := fmt.Sprintf("%s on %s, %s", n.MAC, n.Network, n.State)
		if n.IP != nil {
			text += ", " + *n.IP
		}
		pairs = append(pairs, [2]string{fmt.Sprintf("NIC %d", n.Slot), text})
	}
	for _, f := range v.PortForwards {
		pairs = append(pairs, [2]string{"Forward", formatForward(f)})
	}
	for _, d := range v.CDROMs {
		pairs = append(pairs, [2]string{"CD-ROM " + d.ID, value(d.Image)})
	}
	return pairs
}

func (a *app) listVMs() *cobra.Command {
	var labels []string
	var state, template, network string
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list", "ps"},
		Short:   "List VMs",
		GroupID: groupVM,
		Args:    cobra.NoArgs,
		Example: "  vman ls --state running -l team=web\n  vman ls -o wide",
	}
	f := c.Flags()
	f.StringArrayVarP(&labels, "label", "l", nil, "only VMs with the label KEY=VALUE; several must all match")
	f.StringVar(&state, "state", "", "only VMs in this state")
	f.StringVar(&template, "template", "", "only VMs of this template")
	f.StringVar(&network, "network", "", "only VMs with a NIC on this network")
	a.completeFlag(c, "state", fixed(vmStates...))
	a.completeFlag(c, "template", a.templates().complete(a))
	a.completeFlag(c, "network", a.networks().complete(a))
	c.RunE = func(c *cobra.Command, _ []string) error {
		params := client.ListVMsParams{
			State:        given(c, "state", client.VMState(state)),
			TemplateName: given(c, "template", template),
			Network:      given(c, "network", network),
			Limit:        new(pageSize),
		}
		wanted, err := parseLabels(labels)
		if err != nil {
			return err
		}
		if len(labels) > 0 {
			params.Label = &labels[0] // the API takes one; the others are compared here
		}
		req, err := client.NewListVMsRequest(server, &params)
		return a.vms().print(c.Context(), a, req, err, func(v client.VM) bool { return hasLabels(v.Labels, wanted) })
	}
	return c
}

var vmStates = []string{"stopped", "starting", "running", "paused", "stopping", "error"}

func hasLabels(labels, wanted map[string]string) bool {
	for key, text := range wanted {
		if has, ok := labels[key]; !ok || has != text {
			return false
		}
	}
	return true
}

// A selection is the VMs that a command works on: by name or by labels.
type selection struct{ labels []string }

// flag adds -l to a command that takes the names of VMs.
func (s *selection) flag(c *cobra.Command) {
	c.Flags().StringArrayVarP(&s.labels, "label", "l", nil, "all VMs with the label KEY=VALUE, instead of names")
	c.Args = func(c *cobra.Command, args []string) error {
		switch {
		case len(s.labels) == 0:
			return names(1, -1)(c, args)
		case len(args) > 0:
			return usagef("name VMs or use --label, not both")
		}
		return nil
	}
}

// names returns the names of the selected VMs.
func (s *selection) names(ctx context.Context, a *app, args []string) ([]string, error) {
	if len(s.labels) == 0 {
		slices.Sort(args)
		return slices.Compact(args), nil
	}
	wanted, err := parseLabels(s.labels)
	if err != nil {
		return nil, err
	}
	var ids []string
	params := client.ListVMsParams{Label: &s.labels[0], Limit: new(pageSize)}
	err = each(ctx, a, func(v client.VM, _ json.RawMessage) error {
		if hasLabels(v.Labels, wanted) {
			ids = append(ids, v.ID)
		}
		return nil
	})(client.NewListVMsRequest(server, &params))
	if err == nil && len(ids) == 0 {
		err = failf(exitNotFound, "no VM has the label %s", strings.Join(s.labels, " and "))
	}
	return ids, err
}

func (a *app) removeVMs() *cobra.Command {
	var s selection
	c := a.vms().removeCommand(a, &a.force)
	c.Short = "Delete VMs and their root disks"
	c.Use, c.GroupID = "rm VM...", groupVM
	c.Example = "  vman rm web-1 web-2\n  vman rm -l team=web --yes"
	s.flag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		ids, err := s.names(c.Context(), a, args)
		if err != nil {
			return err
		}
		yes, _ := c.Flags().GetBool("yes")
		return a.vms().removeAll(c.Context(), a, ids, yes)
	}
	return c
}

// An action is a command that changes the state of VMs.
type action struct {
	use, short string
	from       []string // the states for completions
	request    func(id string) (*http.Request, error)
	done       string // what the VM then is, "" for its state
	flags      func(*cobra.Command)
	condition  *string      // what to wait for; nil if the action takes none
	prepare    func() error // reads the flags, once for all VMs; may be nil
}

func (a *app) actions() []*cobra.Command {
	empty := client.EmptyRequest{}
	var actions []*cobra.Command
	simple := []action{
		{use: "pause", short: "Pause running VMs", from: []string{"running"},
			request: func(id string) (*http.Request, error) { return client.NewPauseVMRequest(server, id, nil, empty) }},
		{use: "resume", short: "Resume paused VMs", from: []string{"paused"},
			request: func(id string) (*http.Request, error) { return client.NewResumeVMRequest(server, id, nil, empty) }},
		{use: "reset", short: "Reset running VMs, like the reset button", from: []string{"running", "paused"}, done: "reset",
			request: func(id string) (*http.Request, error) { return client.NewResetVMRequest(server, id, nil, empty) }},
		{use: "nmi", short: "Send a non-maskable interrupt to running VMs", from: []string{"running"}, done: "interrupted",
			request: func(id string) (*http.Request, error) { return client.NewSendNMIRequest(server, id, nil, empty) }},
	}
	actions = append(actions, a.startCommand(), a.stopCommand(), a.restartCommand())
	for _, act := range simple {
		actions = append(actions, a.actionCommand(act))
	}
	return actions
}

func (a *app) actionCommand(act action) *cobra.Command {
	var s selection
	c := &cobra.Command{
		Use:               act.use + " VM...",
		Short:             act.short,
		GroupID:           groupVM,
		ValidArgsFunction: a.vms().complete(a, act.from...),
	}
	s.flag(c)
	if act.flags != nil {
		act.flags(c)
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if act.prepare != nil {
			if err := act.prepare(); err != nil {
				return err
			}
		}
		ids, err := s.names(c.Context(), a, args)
		if err != nil {
			return err
		}
		return a.forEach(c.Context(), ids, func(ctx context.Context, id string) error { return a.act(ctx, act, id) })
	}
	return c
}

// act sends an action for one VM and waits for its end.
func (a *app) act(ctx context.Context, act action, id string) error {
	subject := "VM " + id
	var v reply[client.VM]
	var err error
	if condition := value(act.condition); condition != "" && !a.noWait {
		v, err = a.hold(ctx, subject, id, condition, act.request)
	} else {
		v, err = change[client.VM](ctx, a)(act.request(id))
		v, err = settle(ctx, a, subject, v, err, func() (*http.Request, error) { return getVM(id) })
	}
	if done, err := detached(err); done || err != nil {
		return err
	}
	done := act.done
	if done == "" {
		done = "is " + string(v.value.State)
	}
	return a.did(subject+" "+done, id, v.raw)
}

func (a *app) startCommand() *cobra.Command {
	var condition string
	return a.actionCommand(action{
		use: "start", short: "Start VMs", from: []string{"stopped", "error"}, condition: &condition,
		flags: func(c *cobra.Command) { a.conditionFlag(c, &condition) },
		request: func(id string) (*http.Request, error) {
			return client.NewStartVMRequest(server, id, &client.StartVMParams{WaitFor: a.waitFor(condition)}, client.EmptyRequest{})
		},
	})
}

// conditionFlag adds the flag that names what to wait for after a start.
func (a *app) conditionFlag(c *cobra.Command, condition *string) {
	c.Flags().StringVar(condition, "for", "", "also wait for the guest: ip, agent, cloud-init or port:N")
	a.completeFlag(c, "for", fixed("ip", "agent", "cloud-init", "port:22"))
}

// waitFor returns the condition of a request that starts a VM; nil with --no-wait, because the
// daemon refuses a condition that is not waited for.
func (a *app) waitFor(condition string) *string {
	if a.noWait {
		return nil
	}
	return nonEmpty(condition)
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// stopFlags adds the flags of stop and restart. The time that the guest has to shut down
// replaces the time to wait.
func (a *app) stopFlags(c *cobra.Command, force *bool, grace *time.Duration) {
	c.Flags().BoolVar(force, "force", false, "end the VM at once, like a power cut")
	c.Flags().DurationVar(grace, "timeout", time.Minute, "how long the guest may take to shut down before it is forced")
}

// allow extends the time to wait by the time that the guest has.
func (a *app) allow(grace time.Duration) error {
	if grace < 0 || grace > time.Hour {
		return usagef("--timeout %s: use 0s to 1h", grace)
	}
	a.timeout = grace + defaultTimeout
	return nil
}

// seconds rounds a duration up to whole seconds.
func seconds(d time.Duration) *int { return new(int((d + time.Second - 1) / time.Second)) }

func (a *app) stopCommand() *cobra.Command {
	var force bool
	var grace time.Duration
	return a.actionCommand(action{
		use: "stop", short: "Shut VMs down", from: []string{"running", "paused", "starting"},
		flags:   func(c *cobra.Command) { a.stopFlags(c, &force, &grace) },
		prepare: func() error { return a.allow(grace) },
		request: func(id string) (*http.Request, error) {
			return client.NewStopVMRequest(server, id, nil, client.StopRequest{Force: &force, TimeoutSeconds: seconds(grace)})
		},
	})
}

func (a *app) restartCommand() *cobra.Command {
	var force bool
	var grace time.Duration
	var condition string
	return a.actionCommand(action{
		use: "restart", short: "Shut VMs down and start them again", from: []string{"running", "paused"}, condition: &condition,
		flags: func(c *cobra.Command) {
			a.stopFlags(c, &force, &grace)
			a.conditionFlag(c, &condition)
		},
		prepare: func() error { return a.allow(grace) },
		request: func(id string) (*http.Request, error) {
			return client.NewRestartVMRequest(server, id, &client.RestartVMParams{WaitFor: a.waitFor(condition)},
				client.RestartRequest{Force: &force, TimeoutSeconds: seconds(grace)})
		},
	})
}
