package crash

import (
	"fmt"

	"vmand/openapi"
	"vmand/test/harness"
)

var tapSeams = []string{"tap.made", "tap.bridged", "rules.added"}

// networkOperations are those on networks, NICs and port forwards, and what they
// add to starts and ends.
var networkOperations = []operation{
	{name: "network.create", nat: true, inner: []string{"bridge.made", "network.up"},
		request: func(x target) (string, string, any) { return "POST", "/networks", network(x) }, status: 201,
		done: there(networkPath), refused: 409, why: "already exists"},
	{name: "network.update", nat: true, prepare: networked,
		request: func(x target) (string, string, any) {
			return "PATCH", networkPath(x), map[string]any{"isolate_vms": true, "domain": "new.example"}
		}, status: 200,
		done: func(d *harness.Daemon, x target) bool {
			n := d.Network(x.vm)
			return n.IsolateVMs && *n.Domain == "new.example"
		}},
	{name: "network.delete", nat: true, prepare: networked,
		request: remove(networkPath), status: 204, done: gone(networkPath), refused: 404},

	{name: "vm.start, on a bridge", nat: true, inner: join(tapSeams, startSeams), prepare: both(stopped, forwarded),
		request: act("start", nil), status: 200, done: is("running"), refused: 409, why: "already running"},
	{name: "vm.delete, running, on a bridge", nat: true, inner: join(endSeams, []string{"vm.delete.row-gone", "files.removed"}), prepare: both(running, forwarded),
		request: remove(vmPath), status: 204, done: gone(vmPath), refused: 404},

	{name: "nic.attach", nat: true, prepare: stopped, request: attachNIC, status: 201, done: hasNICs},
	{name: "nic.attach, running", nat: true, inner: join(tapSeams, []string{"network.connected", "nic.files-passed", "nic.netdev-added", "nic.device-added"}), prepare: running,
		request: attachNIC, status: 201, done: hasNICs},
	{name: "nic.detach", prepare: stopped, request: remove(nicPath), status: 204, done: hasNone, refused: 404},
	{name: "nic.detach, running", nat: true, guest: "normal", inner: []string{"nic.device-deleted", "nic.netdev-deleted"}, prepare: booted,
		request: remove(nicPath), status: 204, done: hasNone, refused: 404},
	{name: "nic.update", nat: true, prepare: stopped, request: limit, status: 200, done: limited},
	{name: "nic.update, running", nat: true, prepare: running, request: limit, status: 200, done: limited},

	{name: "port_forward.create", prepare: stopped, request: forward, status: 201, done: hasForward, refused: 409, why: "in-use"},
	{name: "port_forward.create, running", nat: true, prepare: running, request: forward, status: 201, done: hasForward, refused: 409, why: "in-use"},
	{name: "port_forward.delete", prepare: both(stopped, forwarded), request: remove(forwardPath), status: 204, done: hasNoForward, refused: 404},
	{name: "port_forward.delete, running", nat: true, prepare: both(running, forwarded), request: remove(forwardPath), status: 204, done: hasNoForward, refused: 404},
}

func networkPath(x target) string { return "/networks/" + x.vm }

func nicPath(x target) string { return "/vms/" + x.vm + "/nics/0" }

func forwardPath(x target) string { return "/vms/" + x.vm + "/port_forwards/" + x.forward }

func network(x target) map[string]any {
	return map[string]any{"name": x.vm, "mode": "nat", "subnet": fmt.Sprintf("10.50.%d.0/24", x.n)}
}

func networked(d *harness.Daemon, x *target) { d.Call("POST", "/networks", network(*x)).Want(201) }

// booted has a guest that lets go of a NIC when it is asked to.
func booted(d *harness.Daemon, x *target) {
	running(d, x)
	d.Serial(x.vm).Expect("VMT: ready")
}

func forwarded(d *harness.Daemon, x *target) {
	method, path, body := forward(*x)
	x.forward = harness.As[openapi.PortForward](d.Call(method, path, body).Want(201)).ID
}

func forward(x target) (string, string, any) {
	return "POST", "/vms/" + x.vm + "/port_forwards", map[string]any{"host_port": 20000 + x.n, "guest_port": 22}
}

func attachNIC(x target) (string, string, any) {
	return "POST", "/vms/" + x.vm + "/nics", map[string]any{}
}

func limit(x target) (string, string, any) {
	return "PATCH", nicPath(x), map[string]any{"rate_in": 1000, "rate_out": 2000, "link": "down"}
}

func limited(d *harness.Daemon, x target) bool {
	n := d.VM(x.vm).NICs[0]
	return n.RateIn == 1000 && n.RateOut == 2000 && n.Link == "down"
}

func hasNICs(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).NICs) > 1 }

func hasNone(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).NICs) == 0 }

func hasForward(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).PortForwards) == 1 }

func hasNoForward(d *harness.Daemon, x target) bool { return len(d.VM(x.vm).PortForwards) == 0 }
