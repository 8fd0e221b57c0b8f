package cli

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

const (
	// maxHold is how long the daemon holds an answer at most, in seconds.
	maxHold = 300
	// probePatience limits one attempt to reach a port of a guest.
	probePatience = time.Second
	// probeSilence is how long a connection must stay open to count: the proxy of a
	// user-mode network accepts connections before it knows whether the guest does.
	probeSilence = 200 * time.Millisecond
)

// hold sends a request that starts a VM and waits until the condition in it is met. It
// shows the steps of the boot as they happen.
func (a *app) hold(ctx context.Context, subject, id, condition string, request func(string) (*http.Request, error)) (reply[client.VM], error) {
	ctx, stop := a.limited(ctx)
	defer stop()
	r, err := request(id)
	if err != nil {
		return reply[client.VM]{}, err
	}
	seconds := maxHold
	if deadline, ok := ctx.Deadline(); ok {
		seconds = max(1, min(maxHold, int(time.Until(deadline).Seconds())))
	}
	r.Header.Set("Prefer", "wait="+strconv.Itoa(seconds))
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
	holds, err := a.condition(ctx, condition)
	if err != nil {
		return reply[client.VM]{}, err
	}
	a.progress.step("VM "+id, "waiting for "+condition)
	v, err := watch(ctx, a, client.ListEventsParams{Resource: new("vms/" + id)},
		func() (*http.Request, error) { return getVM(id) }, holds)
	if errors.Is(err, context.DeadlineExceeded) {
		err = failf(exitTimedOut, "VM %s: gave up waiting for %s; the VM is %s", id, condition, v.value.State).
			hint("vman why %s says more", id)
	}
	return v, err
}

// condition returns the function that reports whether a condition holds.
func (a *app) condition(ctx context.Context, condition string) (func(client.VM) (bool, error), error) {
	state, isState := strings.CutPrefix(condition, "state=")
	port, isPort := strings.CutPrefix(condition, "port:")
	number, err := strconv.ParseUint(port, 10, 16)
	var holds func(client.VM) (bool, error)
	switch {
	case isState && contains(vmStates, state):
		return func(v client.VM) (bool, error) { return string(v.State) == state, nil }, nil
	case isPort && err == nil && number > 0:
		holds = func(v client.VM) (bool, error) { return a.probe(ctx, v, int(number)) }
	case condition == "ip":
		holds = func(v client.VM) (bool, error) { return v.Boot.DHCPAckAt != nil, nil }
	case condition == "agent":
		holds = func(v client.VM) (bool, error) { return v.Agent.State == client.AgentStateConnected, nil }
	case condition == "cloud-init":
		holds = func(v client.VM) (bool, error) { return a.cloudInitDone(ctx, v) }
	default:
		return nil, usagef("--for %s: use state=STATE, ip, agent, cloud-init or port:N", condition)
	}
	return func(v client.VM) (bool, error) {
		if v.State == client.VMStateStopped || v.State == client.VMStateError {
			return false, failf(exitConflict, "VM %s is %s (%s), so %s cannot be waited for", v.ID, v.State,
				value(v.StateReason), condition).hint("vman start %s --for %s", v.ID, condition)
		}
		return holds(v)
	}, nil
}

// cloudInitDone reports whether cloud-init in a guest has ended.
func (a *app) cloudInitDone(ctx context.Context, v client.VM) (bool, error) {
	if v.Agent.State != client.AgentStateConnected {
		return false, nil
	}
	c, err := call[client.CloudInitDetails](ctx, a)(client.NewGetCloudInitRequest(server, v.ID))
	if err != nil {
		return false, err
	}
	status := value(c.value.Status)
	switch status.Status {
	case "done", "disabled":
		return true, nil
	case "error":
		return false, failf(exitConflict, "cloud-init of VM %s has failed: %s", v.ID, value(status.Detail))
	}
	return false, nil
}

// probe reports whether a guest accepts connections on a TCP port, by its address or by a
// port forward.
func (a *app) probe(ctx context.Context, v client.VM, port int) (bool, error) {
	_, e, err := a.connect()
	if err != nil {
		return false, err
	}
	address := ""
	if v.LocalIP != nil && v.ReachableFromHost && e.socket != "" {
		address = net.JoinHostPort(*v.LocalIP, strconv.Itoa(port))
	}
	for _, f := range v.PortForwards {
		if f.GuestPort != port || f.Protocol != client.ProtocolTcp {
			continue
		}
		host := f.HostAddress
		if host == "0.0.0.0" {
			host = "127.0.0.1"
			if e.socket == "" {
				host = e.url.Hostname()
			}
		}
		address = net.JoinHostPort(host, strconv.Itoa(f.HostPort))
	}
	if address == "" {
		return false, failf(exitFailed, "port %d of VM %s cannot be reached from here", port, v.ID).
			hint("forward it: vman forward add %s PORT:%d", v.ID, port)
	}
	ctx, stop := context.WithTimeout(ctx, probePatience)
	defer stop()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false, nil
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(probeSilence))
	_, err = conn.Read(make([]byte, 1))
	var timeout net.Error
	return err == nil || errors.As(err, &timeout) && timeout.Timeout(), nil
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
