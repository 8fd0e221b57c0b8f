package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

// teardown implements vmand network teardown.
func teardown(ctx context.Context, h Host, out io.Writer) error {
	removed, err := h.Teardown(ctx)
	for _, name := range removed {
		fmt.Fprintln(out, "removed", name)
	}
	if err != nil {
		return err
	}
	if len(removed) == 0 {
		_, err = fmt.Fprintln(out, "nothing to remove")
	}
	return err
}

func (a *app) networks() resource[client.Network] {
	type network = client.Network
	return resource[network]{
		noun:  "network",
		name:  func(n network) string { return n.Name },
		state: func(n network) string { return string(n.Mode) },
		columns: []column[network]{
			{head: "NAME", cell: func(n network) string { return n.Name }},
			{head: "MODE", cell: func(n network) string { return string(n.Mode) }},
			{head: "SUBNET", cell: func(n network) string { return value(n.Subnet) }},
			{head: "GATEWAY", cell: func(n network) string { return value(n.Gateway) }},
			{head: "BRIDGE", cell: func(n network) string { return value(n.Bridge) }},
			{head: "DOMAIN", cell: func(n network) string { return value(n.Domain) }},
			{head: "AGE", cell: func(n network) string { return formatAge(a.out.now(), n.CreatedAt) }},
			{head: "IPV6", wide: true, cell: func(n network) string { return value(n.IPv6Subnet) }},
			{head: "MTU", wide: true, cell: func(n network) string { return fmt.Sprint(n.MTU) }},
			{head: "VLAN", wide: true, cell: func(n network) string { return formatOptional(n.VLANID) }},
		},
		list: func() (*http.Request, error) {
			return client.NewListNetworksRequest(server, &client.ListNetworksParams{Limit: new(pageSize)})
		},
		get: func(name string) (*http.Request, error) { return client.NewGetNetworkRequest(server, name, nil) },
		remove: func(name string) (*http.Request, error) {
			return client.NewDeleteNetworkRequest(server, name, nil)
		},
	}
}

func formatOptional(n *int) string {
	if n == nil {
		return ""
	}
	return strconv.Itoa(*n)
}

func (a *app) networkCommand() *cobra.Command {
	r := a.networks()
	e := editable[client.Network, client.UpdateNetwork]{r, func(name, tag string, body client.UpdateNetwork) (*http.Request, error) {
		if a.force {
			body.Force = &a.force
		}
		return client.NewUpdateNetworkRequest(server, name, &client.UpdateNetworkParams{IfMatch: nonEmpty(tag)}, body)
	}}
	set, edit := e.setCommand(a), e.editCommand(a)
	for _, c := range []*cobra.Command{set, edit} {
		c.Flags().BoolVar(&a.force, "force", false, "change what running VMs do not follow")
	}
	return group("network", "Manage networks", r.listCommand(a), r.showCommand(a), a.createNetwork(),
		r.removeCommand(a, nil), set, edit)
}

func (a *app) createNetwork() *cobra.Command {
	var mode, bridge, subnet, gateway, ipv6, domain string
	var dns, ntp, routes []string
	var mtu, vlan int
	var isolate, restrict bool
	c := &cobra.Command{
		Use:     "create NAME",
		Short:   "Create a network",
		Example: "  vman network create lab --subnet 10.9.0.0/24\n  vman network create office --mode bridge --bridge br0",
		Args:    names(1, 1),
	}
	f := c.Flags()
	f.StringVar(&mode, "mode", "nat", "nat, isolated, bridge or user")
	f.StringVar(&bridge, "bridge", "", "the bridge of the host, for the mode bridge")
	f.StringVar(&subnet, "subnet", "", "the IPv4 subnet, such as 10.9.0.0/24")
	f.StringVar(&gateway, "gateway", "", "the address of the host in the subnet")
	f.StringVar(&ipv6, "ipv6-subnet", "", "the IPv6 subnet")
	f.StringVar(&domain, "domain", "", "the DNS domain of the VMs")
	f.StringSliceVar(&dns, "dns", nil, "DNS servers for the guests")
	f.StringSliceVar(&ntp, "ntp", nil, "NTP servers for the guests")
	f.StringArrayVar(&routes, "route", nil, "a route for the guests: DESTINATION=GATEWAY")
	f.IntVar(&mtu, "mtu", 1500, "the MTU")
	f.IntVar(&vlan, "vlan", 0, "the VLAN id on the bridge")
	f.BoolVar(&isolate, "isolate-vms", false, "VMs cannot reach one another")
	f.BoolVar(&restrict, "restrict", false, "guests cannot reach anything outside of the network")
	a.completeFlag(c, "mode", fixed("nat", "isolated", "bridge", "user"))
	c.RunE = func(c *cobra.Command, args []string) error {
		body := client.CreateNetwork{
			Name:       args[0],
			Mode:       client.NetworkMode(mode),
			Bridge:     nonEmpty(bridge),
			Subnet:     nonEmpty(subnet),
			Gateway:    nonEmpty(gateway),
			IPv6Subnet: nonEmpty(ipv6),
			Domain:     nonEmpty(domain),
			DNS:        given(c, "dns", dns),
			NTP:        given(c, "ntp", ntp),
			MTU:        given(c, "mtu", mtu),
			VLANID:     given(c, "vlan", vlan),
			IsolateVMs: given(c, "isolate-vms", isolate),
			Restrict:   given(c, "restrict", restrict),
		}
		var list []client.NetworkRoute
		for _, route := range routes {
			to, by, ok := strings.Cut(route, "=")
			if !ok {
				return usagef("--route %q: use DESTINATION=GATEWAY", route)
			}
			list = append(list, client.NetworkRoute{Destination: to, Gateway: by})
		}
		body.Routes = given(c, "route", list)
		n, err := change[client.Network](c.Context(), a)(client.NewCreateNetworkRequest(server, body))
		if err != nil {
			return err
		}
		return a.did("network "+args[0]+" created", args[0], n.raw)
	}
	return c
}
