package cli

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

// maxHold is how long the daemon holds an answer at most, in seconds.
const maxHold = 300

// hold sends a request that starts a VM and waits until the condition in it is met. It
// shows the steps of the boot as they happen.
func (a *app) hold(ctx context.Context, subject, id, condition string, request func(string) (*http.Request, error)) (reply[client.VM], error) {
	ctx, stop := a.limited(ctx)
	defer stop()
	r, err := request(id)
	if err != nil {
		return reply[client.VM]{}, err
	}
	r.Header.Set("Prefer", preferWait(ctx))
	n := narrator{a: a, subject: subject, id: id, told: map[string]bool{}}
	narrating, end := context.WithCancel(ctx)
	var listener sync.WaitGroup
	listener.Go(func() { n.listen(narrating) })
	v, err := change[client.VM](ctx, a)(r, nil)
	end()
	listener.Wait()
	op := n.operation
	if err == nil {
		n.rest(ctx, v.value.Boot)
	}
	if err != nil && ctx.Err() != nil {
		if op == "" {
			op = a.runningOperation(ctx, id)
		}
		if op != "" {
			return v, stillRunning(ctx, err, op)
		}
	}
	if err != nil || v.status != http.StatusAccepted {
		return v, err
	}
	// The daemon holds answers for five minutes at most; the rest is waited for here.
	if op = v.operation(); op != "" {
		if _, err := a.follow(ctx, subject, op); err != nil {
			return v, err
		}
	}
	return a.await(ctx, id, condition)
}

// preferWait returns the preference to hold an answer as long as the daemon does, and ctx lives.
func preferWait(ctx context.Context) string {
	seconds := maxHold
	if deadline, ok := ctx.Deadline(); ok {
		seconds = max(1, min(maxHold, int(time.Until(deadline).Seconds())))
	}
	return "wait=" + strconv.Itoa(seconds)
}

// runningOperation returns the operation that changes a VM at the moment; empty if that is not
// known.
func (a *app) runningOperation(ctx context.Context, id string) string {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), completionPatience)
	defer stop()
	running, resource := client.OperationStateRunning, "vms/"+id
	ops, err := all[client.Operation](ctx, a)(client.NewListOperationsRequest(server,
		&client.ListOperationsParams{Resource: &resource, State: &running}))
	if err != nil || len(ops) == 0 {
		return ""
	}
	return ops[len(ops)-1].ID
}

// bootSteps describes the steps of a boot, after those in the log of the start: their keys in
// the event vm.boot, and when they happened.
var bootSteps = []struct {
	key, text string
	at        func(client.Boot) *time.Time
}{
	{"serial", "the guest writes to its console", func(b client.Boot) *time.Time { return b.FirstSerialAt }},
	{"dhcp", "the guest has its address", func(b client.Boot) *time.Time { return b.DHCPAckAt }},
	{"agent", "the guest agent answers", func(b client.Boot) *time.Time { return b.AgentAt }},
	{"tcp", "the guest accepts connections", func(b client.Boot) *time.Time { return b.FirstTCPAt }},
	{"cloud-init", "cloud-init is done", func(b client.Boot) *time.Time { return b.CloudInitAt }},
}

// A narrator shows the steps of a VM's start and boot as they happen.
type narrator struct {
	a           *app
	subject, id string
	operation   string          // the operation that starts the VM
	lines       int             // of its log that were shown
	told        map[string]bool // the steps of the boot that were shown
}

// listen shows the steps until ctx is done.
func (n *narrator) listen(ctx context.Context) {
	_ = n.a.listen(ctx, client.ListEventsParams{}, func(e client.Event, _ json.RawMessage) error {
		id, isOperation := strings.CutPrefix(e.Resource, "operations/")
		switch {
		case e.Resource == "vms/"+n.id && e.Type == client.EventTypeVmBoot:
			for _, step := range bootSteps {
				if _, ok := e.Data[step.key]; ok {
					n.tell(step.key, step.text)
				}
			}
		case isOperation && e.Data["resource"] == "vms/"+n.id:
			n.operation = id
			n.log(ctx)
		}
		return nil
	})
}

func (n *narrator) tell(key, text string) {
	if !n.told[key] {
		n.told[key] = true
		n.a.progress.step(n.subject, text)
	}
}

// log shows the new steps of the operation.
func (n *narrator) log(ctx context.Context) {
	if n.operation == "" {
		return
	}
	op, err := call[client.Operation](ctx, n.a)(client.NewGetOperationRequest(server, n.operation, nil))
	if err == nil {
		n.lines = n.a.showLog(n.subject, op.value, n.lines)
	}
}

// rest shows the steps that happened right before the answer.
func (n *narrator) rest(ctx context.Context, b client.Boot) {
	n.log(ctx)
	for _, step := range bootSteps {
		if step.at(b) != nil {
			n.tell(step.key, step.text)
		}
	}
}

// await waits until a condition holds for a VM: state=S, ip, agent, cloud-init or port:N.
func (a *app) await(ctx context.Context, id, condition string) (reply[client.VM], error) {
	ctx, stop := a.limited(ctx)
	defer stop()
	if err := checkCondition(condition); err != nil {
		return reply[client.VM]{}, err
	}
	a.progress.step("VM "+id, "waiting for "+condition)
	var v reply[client.VM]
	var err error
	if state, isState := strings.CutPrefix(condition, "state="); isState {
		v, err = watch(ctx, a, client.ListEventsParams{Resource: new("vms/" + id)},
			func() (*http.Request, error) { return getVM(id) },
			func(v client.VM) (bool, error) { return string(v.State) == state, nil })
	} else {
		v, err = a.awaitGuest(ctx, id, condition)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = failf(exitTimedOut, "VM %s: gave up waiting for %s", id, condition).hint("vman why %s says more", id)
	}
	return v, err
}

// awaitGuest lets the daemon wait for a condition of a guest.
func (a *app) awaitGuest(ctx context.Context, id, condition string) (reply[client.VM], error) {
	for {
		v, err := whileAway(ctx, func() (reply[client.VM], error) {
			return call[client.VM](ctx, a)(client.NewGetVMRequest(server, id,
				&client.GetVMParams{WaitFor: &condition, Prefer: new(preferWait(ctx))}))
		})
		var f *failure
		if errors.As(err, &f) && f.code == client.ProblemCodeInvalidState {
			f.hint("vman start %s --for %s", id, condition)
		}
		if err != nil || v.status != http.StatusAccepted {
			return v, err
		}
		if !pause(ctx, dialPause) {
			return v, context.Cause(ctx)
		}
	}
}

// checkCondition refuses conditions that do not exist.
func checkCondition(condition string) error {
	state, isState := strings.CutPrefix(condition, "state=")
	port, isPort := strings.CutPrefix(condition, "port:")
	number, err := strconv.ParseUint(port, 10, 16)
	switch {
	case isState && contains(vmStates, state),
		isPort && err == nil && number > 0,
		contains([]string{"ip", "agent", "cloud-init"}, condition):
		return nil
	}
	return usagef("--for %s: use state=STATE, ip, agent, cloud-init or port:N", condition)
}

func (a *app) waitCommand() *cobra.Command {
	var s selection
	var condition string
	c := &cobra.Command{
		Use:               "wait VM... --for CONDITION",
		Short:             "Wait until VMs meet a condition",
		GroupID:           groupVM,
		Example:           "  vman wait web-1 --for state=stopped\n  vman wait web-1 --for port:22 --timeout 2m",
		ValidArgsFunction: a.vms().complete(a),
	}
	s.flag(c)
	c.Flags().StringVar(&condition, "for", "state=running", "state=STATE, ip, agent, cloud-init or port:N")
	a.completeFlag(c, "for", fixed("state=running", "state=stopped", "ip", "agent", "cloud-init", "port:22"))
	c.RunE = func(c *cobra.Command, args []string) error {
		ids, err := s.names(c.Context(), a, args)
		if err != nil {
			return err
		}
		return a.forEach(c.Context(), ids, func(ctx context.Context, id string) error {
			v, err := a.await(ctx, id, condition)
			if err != nil {
				return err
			}
			return a.did("VM "+id+": "+condition, id, v.raw)
		})
	}
	return c
}
