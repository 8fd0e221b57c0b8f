package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"strings"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

func (a *app) operations() resource[client.Operation] {
	type op = client.Operation
	return resource[op]{
		noun:  "operation",
		name:  func(o op) string { return o.ID },
		state: func(o op) string { return string(o.State) },
		columns: []column[op]{
			{head: "ID", cell: func(o op) string { return o.ID }},
			{head: "STATE", state: true, cell: func(o op) string { return string(o.State) }},
			{head: "KIND", cell: func(o op) string { return string(o.Kind) }},
			{head: "RESOURCE", cell: func(o op) string { return o.Resource }},
			{head: "STEP", cell: func(o op) string { return value(o.Step) }},
			{head: "AGE", cell: func(o op) string { return formatAge(a.out.now(), o.CreatedAt) }},
			{head: "BY", wide: true, cell: func(o op) string { return o.RequestedBy }},
			{head: "PROBLEM", wide: true, cell: func(o op) string { return value(o.Problem).Detail }},
		},
		list: func() (*http.Request, error) {
			return client.NewListOperationsRequest(server, &client.ListOperationsParams{Limit: new(pageSize)})
		},
		get: func(id string) (*http.Request, error) { return client.NewGetOperationRequest(server, id, nil) },
	}
}

func (a *app) operationCommand() *cobra.Command {
	r := a.operations()
	ls := r.listCommand(a)
	var resource, state, kind string
	ls.Flags().StringVar(&resource, "resource", "", "only operations on this resource, such as vms/web-1")
	ls.Flags().StringVar(&state, "state", "", "only operations in this state")
	ls.Flags().StringVar(&kind, "kind", "", "only operations of this kind, such as vm.start")
	a.completeFlag(ls, "state", fixed("pending", "running", "succeeded", "failed", "cancelled"))
	ls.RunE = func(c *cobra.Command, _ []string) error {
		req, err := client.NewListOperationsRequest(server, &client.ListOperationsParams{
			Resource: given(c, "resource", resource),
			State:    given(c, "state", client.OperationState(state)),
			Kind:     given(c, "kind", client.OperationKind(kind)),
			Limit:    new(pageSize),
		})
		return r.print(c.Context(), a, req, err, nil)
	}
	wait := &cobra.Command{
		Use:               "wait ID...",
		Short:             "Wait for the end of operations",
		Args:              names(1, -1),
		ValidArgsFunction: r.complete(a, "pending", "running"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.forEach(c.Context(), args, func(ctx context.Context, id string) error {
				op, err := a.follow(ctx, "operation "+id, id)
				if err != nil {
					return err
				}
				raw, err := json.Marshal(op)
				return errors.Join(err, a.did("operation "+id+" "+string(op.State), id, raw))
			})
		},
	}
	cancel := &cobra.Command{
		Use:               "cancel ID...",
		Short:             "Cancel operations",
		Args:              names(1, -1),
		ValidArgsFunction: r.complete(a, "pending", "running"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.forEach(c.Context(), args, func(ctx context.Context, id string) error {
				op, err := change[client.Operation](ctx, a)(client.NewCancelOperationRequest(server, id, client.EmptyRequest{}))
				if err != nil {
					return err
				}
				return a.did("operation "+id+" is being cancelled", id, op.raw)
			})
		},
	}
	c := group("op", "Show, follow and cancel operations", ls, r.showCommand(a), wait, cancel)
	c.Aliases = []string{"operation", "operations"}
	return c
}

func (a *app) whyCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "why VM",
		Short:             "Explain why a VM is in its state",
		GroupID:           groupVM,
		Args:              names(1, 1),
		ValidArgsFunction: a.vms().complete(a),
		RunE: func(c *cobra.Command, args []string) error {
			w, err := call[client.Why](c.Context(), a)(client.NewWhyVMRequest(server, args[0]))
			if err != nil {
				return err
			}
			if !a.out.people() {
				return a.out.item(args[0], w.raw)
			}
			for _, line := range w.value.Words {
				if _, err := fmt.Fprintln(a.out.w, oneLine(line)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (a *app) observerCommand() *cobra.Command {
	issue := resource[client.Issue]{
		name: func(i client.Issue) string { return i.ResourceID },
		columns: []column[client.Issue]{
			{head: "ISSUE", cell: func(i client.Issue) string { return string(i.IssueType) }},
			{head: "RESOURCE", cell: func(i client.Issue) string { return i.ResourceID }},
			{head: "AGE", cell: func(i client.Issue) string { return formatAge(a.out.now(), i.FirstSeenAt) }},
			{head: "DETAILS", cell: func(i client.Issue) string { return i.Details }},
			{head: "REPAIR", wide: true, cell: func(i client.Issue) string { return value(i.Repair) }},
		},
	}
	status := &cobra.Command{
		Use:   "status",
		Short: "Show what the observer has found",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := call[client.ObserverStatus](c.Context(), a)(client.NewGetObserverStatusRequest(server))
			if err != nil {
				return err
			}
			if !a.out.people() {
				return a.out.item("observer", s.raw)
			}
			fmt.Fprintf(a.out.w, "%s, %d issues, repair mode %s\n", s.value.Status, s.value.LastIssuesCount, s.value.RepairMode)
			if len(s.value.LastIssues) == 0 {
				return nil
			}
			l := newList(a.out, issue.name, issue.columns)
			for _, i := range s.value.LastIssues {
				if err := l.add(i, nil); err != nil {
					return err
				}
			}
			return l.end()
		},
	}
	return group("observer", "Show issues, and decide about orphans", status, a.orphanCommand())
}

func (a *app) orphanCommand() *cobra.Command {
	var template string
	adopt := a.orphanAction("adopt", "Record a VM or disk that exists without a record", "adopted",
		func(id string) (*http.Request, error) {
			return client.NewAdoptOrphanRequest(server, id, client.AdoptOrphan{TemplateName: nonEmpty(template)})
		})
	adopt.Flags().StringVar(&template, "template", "", "the template of the VM")
	a.completeFlag(adopt, "template", a.templates().complete(a))
	terminate := a.orphanAction("terminate", "End the process of a VM without a record", "terminated",
		func(id string) (*http.Request, error) {
			return client.NewTerminateOrphanRequest(server, id, client.EmptyRequest{})
		})
	remove := a.orphanAction("delete", "Delete files without a record", "deleted",
		func(id string) (*http.Request, error) {
			return client.NewDeleteOrphanRequest(server, id, client.EmptyRequest{})
		})
	c := group("orphan", "Decide about what exists on the host without a record", adopt, terminate, remove)
	c.Aliases = []string{"orphans"}
	return c
}

func (a *app) orphanAction(word, short, done string, request func(string) (*http.Request, error)) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:     word + " KIND:NAME",
		Short:   short,
		Long:    short + ". The KIND is vms, disks or images; the NAME is in vman observer status.",
		Example: "  vman observer orphan " + word + " vms:web-1",
		Args:    names(1, 1),
	}
	if word != "adopt" {
		c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if word != "adopt" {
			if err := a.confirm(c.Context(), yes, "%s orphan %s?", strings.ToUpper(word[:1])+word[1:], args[0]); err != nil {
				return err
			}
		}
		op, err := change[client.Operation](c.Context(), a)(request(args[0]))
		if err == nil {
			err = operationError(op.value)
		}
		if err != nil {
			return err
		}
		return a.did("orphan "+args[0]+" "+done, args[0], op.raw)
	}
	return c
}

func (a *app) healthCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "health",
		Short:   "Show the health of the daemon",
		GroupID: groupHost,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := a.health(c.Context())
			if err != nil {
				return err
			}
			if a.out.people() {
				err = a.out.pairs(healthPairs(h.value))
			} else {
				err = a.out.item("vmand", h.raw)
			}
			if err != nil {
				return err
			}
			if h.value.Status != client.HealthStatusOk {
				return failf(exitFailed, "the daemon is %s", h.value.Status)
			}
			return nil
		},
	}
}

func healthPairs(h client.Health) [][2]string {
	pairs := [][2]string{{"status", string(h.Status)}, {"version", h.Version}}
	if h.DryRun {
		pairs = append(pairs, [2]string{"dry run", "no VM is started"})
	}
	checks := reflect.ValueOf(h.Checks)
	for i := range checks.NumField() {
		check, ok := checks.Field(i).Interface().(client.HealthCheck)
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(checks.Type().Field(i).Tag.Get("json"), ",")
		text := string(check.Status)
		if detail := value(check.Detail); detail != "" {
			text += " (" + detail + ")"
		}
		pairs = append(pairs, [2]string{name, text})
	}
	return pairs
}

// health returns the health of the daemon. A daemon that is degraded answers 503 with it.
func (a *app) health(ctx context.Context) (reply[client.Health], error) {
	var h reply[client.Health]
	r, err := client.NewGetHealthRequest(server)
	if err != nil {
		return h, err
	}
	resp, err := a.send(ctx, r)
	if err != nil {
		return h, explain(ctx, err)
	}
	defer resp.Body.Close()
	if h.raw, err = io.ReadAll(io.LimitReader(resp.Body, maxProblem)); err != nil {
		return h, explain(ctx, err)
	}
	if err := json.Unmarshal(h.raw, &h.value); err != nil || h.value.Service != client.HealthServiceVmand {
		return h, failf(exitFailed, "what answers at %s is not vmand (%s)", a.endpoint, resp.Status)
	}
	return h, nil
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the versions of the client and the daemon",
		GroupID: groupHost,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := a.health(c.Context())
			if a.out.people() {
				fmt.Fprintf(a.out.w, "vman  %s\nvmand %s\n", a.version, cmp.Or(oneLine(h.value.Version), "unknown"))
				return err
			}
			raw, _ := json.Marshal(map[string]string{"client": a.version, "daemon": h.value.Version})
			return errors.Join(a.out.item(a.version, raw), err)
		},
	}
}

func (a *app) apiCommand() *cobra.Command {
	var data, contentType string
	var headers []string
	var show bool
	c := &cobra.Command{
		Use:   "api METHOD PATH",
		Short: "Send a request to the API and print the answer",
		Long: "Send a request to the API and print the answer as it arrives. The API is described at PATH /docs.\n" +
			"Requests are not repeated.",
		Example: "  vman api GET /vms\n  vman api POST /vms/web-1/actions/start -H 'Prefer: wait=60'\n" +
			"  vman api POST /templates -d '{\"name\":\"small\",\"cpu_count\":1,\"ram_amount\":512}'",
		GroupID: groupHost,
		Args:    names(2, 2),
	}
	c.Flags().StringVarP(&data, "data", "d", "", "the body; @FILE is the content of a file, @- standard input")
	c.Flags().StringVar(&contentType, "content-type", "application/json", "the type of the body")
	c.Flags().StringArrayVarP(&headers, "header", "H", nil, "a header NAME: VALUE")
	c.Flags().BoolVarP(&show, "include", "i", false, "print the status and the headers of the answer")
	c.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return []string{"GET", "POST", "PATCH", "PUT", "DELETE"}, cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		body, size, err := a.openBody(c.Context(), data)
		if err != nil {
			return err
		}
		r, err := http.NewRequestWithContext(c.Context(), strings.ToUpper(args[0]), server+"/"+strings.TrimPrefix(args[1], "/"), body)
		if err != nil {
			return usagef("%v", err)
		}
		if body != nil {
			defer body.Close()
			r.Header.Set("Content-Type", contentType)
			r.ContentLength = size
		}
		for _, h := range headers {
			name, text, ok := strings.Cut(h, ":")
			if !ok {
				return usagef("header %q: use NAME: VALUE", h)
			}
			r.Header.Set(strings.TrimSpace(name), strings.TrimSpace(text))
		}
		return a.raw(c.Context(), r, show)
	}
	return c
}

// openBody returns the body that -d names and its size; nil for none.
func (a *app) openBody(ctx context.Context, data string) (io.ReadCloser, int64, error) {
	switch {
	case data == "":
		return nil, 0, nil
	case data == "@-":
		text, err := a.readText(ctx, "-", maxAnswer)
		if err != nil {
			return nil, 0, err
		}
		data = *text
	case strings.HasPrefix(data, "@"):
		f, err := os.Open(data[1:])
		if err != nil {
			return nil, 0, usagef("%v", err)
		}
		info, err := f.Stat()
		if err != nil || !info.Mode().IsRegular() {
			f.Close()
			return nil, 0, usagef("%s is not a file", data[1:])
		}
		return f, info.Size(), nil
	}
	return io.NopCloser(strings.NewReader(data)), int64(len(data)), nil
}

// raw sends a request and copies the answer to the output. A problem is printed too.
func (a *app) raw(ctx context.Context, r *http.Request, show bool) error {
	resp, err := a.send(ctx, r)
	if err != nil {
		return explain(ctx, err)
	}
	defer resp.Body.Close()
	unlimited(resp)
	if show {
		var b bytes.Buffer
		fmt.Fprintf(&b, "%s %s\n", resp.Proto, resp.Status)
		for _, name := range sortedKeys(resp.Header) {
			fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(resp.Header[name], ", "))
		}
		fmt.Fprintln(&b)
		if _, err := b.WriteTo(a.std.Out); err != nil {
			return err
		}
	}
	if _, err := io.Copy(struct{ io.Writer }{a.std.Out}, resp.Body); err != nil {
		return explain(ctx, err)
	}
	if isTerminal(a.std.Out) {
		fmt.Fprintln(a.std.Out)
	}
	if resp.StatusCode >= 400 {
		return exitCode(statusOfProblem(resp.StatusCode))
	}
	return nil
}
