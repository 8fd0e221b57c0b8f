package harness

import (
	"vmand/openapi"
)

// CreatePortForward leads a port of the host to one of a VM.
func (d *Daemon) CreatePortForward(id, protocol, address string, port, guest int) openapi.PortForward {
	d.T.Helper()
	return As[openapi.PortForward](d.Call("POST", "/vms/"+id+"/port_forwards", map[string]any{
		"protocol": protocol, "host_address": address, "host_port": port, "guest_port": guest}).Want(201))
}

// Network returns a network with its leases.
func (d *Daemon) Network(name string) openapi.NetworkDetails {
	d.T.Helper()
	return As[openapi.NetworkDetails](d.Call("GET", "/networks/"+name, nil).Want(200))
}

// OnNetworks is the property of a new VM that has a NIC on each network.
func OnNetworks(networks ...string) map[string]any {
	nics := []any{}
	for _, n := range networks {
		nics = append(nics, map[string]any{"network": n})
	}
	return map[string]any{"nics": nics}
}

// CreateNetwork creates a network; more holds further fields of the request.
func (d *Daemon) CreateNetwork(name, mode, subnet string, more map[string]any) openapi.Network {
	d.T.Helper()
	body := map[string]any{"name": name, "mode": mode, "subnet": subnet}
	for k, v := range more {
		body[k] = v
	}
	return As[openapi.Network](d.Call("POST", "/networks", body).Want(201))
}
