package crash

import (
	"fmt"
	"slices"

	"vmand/openapi"
	"vmand/test/harness"
)

// tapSeams are the fail points of connecting a NIC to a bridge.
var tapSeams = []string{"tap.made", "tap.bridged", "rules.added"}

// networkOperations are the changes of networks, NICs and port forwards, and the starts and
// ends of VMs with a NIC on a bridge.
var networkOperations = []operation{
	{
		name:    "network.create",
		nat:     true,
		inner:   []string{"bridge.made", "network.up"},
		request: func(x target) (string, string, any) { return "POST", "/networks", network(x) },
		status:  201,
		done:    exists(networkPath),
		refused: 409,
		refusal: "already exists",
	},
	{
		name:    "network.update",
		nat:     true,
		prepare: withNetwork,
		request: func(x target) (string, string, any) {
			return "PATCH", networkPath(x), map[string]any{"isolate_vms": true, "domain": "new.example"}
		},
		status: 200,
		done: func(d *harness.Daemon, x target) bool {
			n := d.Network(x.vm)
			return n.IsolateVMs && *n.Domain == "new.example"
		},
	},
	{
		name:    "network.delete",
		nat:     true,
		prepare: withNetwork,
		request: deleteRequest(networkPath),
		status:  204,
		done:    isGone(networkPath),
		refused: 404,
	},

	{
		name:    "vm.restart, on a bridge, with a seed",
		nat:     true,
		inner:   slices.Concat(stopSeams, []string{"vm.restart.between", "seed.written"}, tapSeams, startSeams),
		prepare: inOrder(withSeed, started),
		request: vmAction("restart", gentleStop),
		status:  200,
		done:    runsOnNewQEMU,
		vague:   true,
	},
	{
		name:    "vm.start, on a bridge",
		nat:     true,
		inner:   slices.Concat(tapSeams, startSeams),
		prepare: inOrder(stopped, withForward),
		request: vmAction("start", nil),
		status:  200,
		done:    is("running"),
		refused: 409,
		refusal: "already running",
	},
	{
		name:    "vm.delete, running, on a bridge",
		nat:     true,
		inner:   slices.Concat(endSeams, []string{"vm.delete.row-gone", "files.removed"}),
		prepare: inOrder(running, withForward),
		request: deleteRequest(vmPath),
		status:  204,
		done:    isGone(vmPath),
		refused: 404,
	},

	{
		name:    "nic.attach",
		nat:     true,
		prepare: stopped,
		request: attachNIC,
		status:  201,
		done:    hasSecondNIC,
	},
	{
		name:    "nic.attach, running",
		nat:     true,
		inner:   slices.Concat(tapSeams, []string{"network.connected", "nic.files-passed", "nic.netdev-added", "nic.device-added"}),
		prepare: running,
		request: attachNIC,
		status:  201,
		done:    hasSecondNIC,
	},
	{
		name:    "nic.detach",
		prepare: stopped,
		request: deleteRequest(nicPath),
		status:  204,
		done:    hasNoNIC,
		refused: 404,
	},
	{
		name:    "nic.detach, running",
		nat:     true,
		guest:   "normal",
		inner:   []string{"nic.device-deleted", "nic.netdev-deleted"},
		prepare: bootedVM,
		request: deleteRequest(nicPath),
		status:  204,
		done:    hasNoNIC,
		refused: 404,
	},
	{
		name:    "nic.update",
		nat:     true,
		prepare: stopped,
		request: limitNIC,
		status:  200,
		done:    isLimited,
	},
	{
		name:    "nic.update, running",
		nat:     true,
		prepare: running,
		request: limitNIC,
		status:  200,
		done:    isLimited,
	},

	{
		name:    "port_forward.create",
		prepare: stopped,
		request: forward,
		status:  201,
		done:    hasForward,
		refused: 409,
		refusal: "in-use",
	},
	{
		name:    "port_forward.create, running",
		nat:     true,
		prepare: running,
		request: forward,
		status:  201,
		done:    hasForward,
		refused: 409,
		refusal: "in-use",
	},
	{
		name:    "port_forward.delete",
		prepare: inOrder(stopped, withForward),
		request: deleteRequest(forwardPath),
		status:  204,
		done:    hasNoForward,
		refused: 404,
	},
	{
		name:    "port_forward.delete, running",
		nat:     true,
		prepare: inOrder(running, withForward),
		request: deleteRequest(forwardPath),
		status:  204,
		done:    hasNoForward,
		refused: 404,
	},
}

func networkPath(x target) string { return "/networks/" + x.vm }

func nicPath(x target) string { return "/vms/" + x.vm + "/nics/0" }

func forwardPath(x target) string { return "/vms/" + x.vm + "/port_forwards/" + x.forward }

func network(x target) map[string]any {
	return map[string]any{"name": x.vm, "mode": "nat", "subnet": fmt.Sprintf("10.50.%d.0/24", x.n)}
}

func withNetwork(d *harness.Daemon, x *target) {
	d.Call("POST", "/networks", network(*x)).Want(201)
}

// bootedVM starts a VM with a Linux guest, which releases its NIC on request.
func bootedVM(d *harness.Daemon, x *target) {
	running(d, x)
	d.Serial(x.vm).Expect("VMT: ready")
}

func withForward(d *harness.Daemon, x *target) {
	method, path, body := forward(*x)
	x.forward = harness.As[openapi.PortForward](d.Call(method, path, body).Want(201)).ID
}

func forward(x target) (string, string, any) {
	return "POST", "/vms/" + x.vm + "/port_forwards", map[string]any{"host_port": 20000 + x.n, "guest_port": 22}
}

func attachNIC(x target) (string, string, any) {
	return "POST", "/vms/" + x.vm + "/nics", map[string]any{}
}

func limitNIC(x target) (string, string, any) {
	return "PATCH", nicPath(x), map[string]any{"rate_in": 1000, "rate_out": 2000, "link": "down"}
}

func isLimited(d *harness.Daemon, x target) bool {
	n := d.VM(x.vm).NICs[0]
	return n.RateIn == 1000 && n.RateOut == 2000 && n.Link == "down"
}

func hasSecondNIC(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).NICs) > 1 }

func hasNoNIC(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).NICs) == 0 }

func hasForward(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).PortForwards) == 1 }

func hasNoForward(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).PortForwards) == 0 }
