package harness

import (
	"maps"

	"vmand/openapi"
)

// CreateNetwork creates a network with more properties.
func (d *Daemon) CreateNetwork(name, mode, subnet string, more map[string]any) openapi.Network {
	d.T.Helper()
	body := map[string]any{"name": name, "mode": mode, "subnet": subnet}
	maps.Copy(body, more)
	return As[openapi.Network](d.Call("POST", "/networks", body).Want(201))
}

// Network returns a network.
func (d *Daemon) Network(name string) openapi.NetworkDetails {
	d.T.Helper()
	return Get[openapi.NetworkDetails](d, "/networks/"+name)
}

// OnNetworks returns the property of a new VM with a NIC on each of the networks.
func OnNetworks(networks ...string) map[string]any {
	nics := []any{}
	for _, n := range networks {
		nics = append(nics, map[string]any{"network": n})
	}
	return map[string]any{"nics": nics}
}

// CreatePortForward forwards a port of the host to a port of a VM.
func (d *Daemon) CreatePortForward(vm, protocol, address string, hostPort, guestPort int) openapi.PortForward {
	d.T.Helper()
	body := map[string]any{
		"protocol":     protocol,
		"host_address": address,
		"host_port":    hostPort,
		"guest_port":   guestPort,
	}
	return As[openapi.PortForward](d.Call("POST", "/vms/"+vm+"/port_forwards", body).Want(201))
}
