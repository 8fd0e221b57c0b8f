package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
)

// dhcp6 INTERFACE requests an address by DHCPv6 (solicit, advertise, request, reply) and
// prints the result as lines of KEY=VALUE.
func dhcp6(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: vmt dhcp6 INTERFACE")
	}
	ifi, err := net.InterfaceByName(args[0])
	if err != nil {
		return fmt.Errorf("interface %s: %w", args[0], err)
	}
	client, err := nclient6.New(args[0], nclient6.WithTimeout(2*time.Second), nclient6.WithRetry(5))
	if err != nil {
		return fmt.Errorf("open a DHCPv6 client: %w", err)
	}
	defer client.Close()
	// The id of the identity association is the index of the interface, as in most clients.
	iaid := [4]byte(ifi.HardwareAddr[2:6])
	options := dhcpv6.WithRequestedOptions(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList)
	advertise, err := client.Solicit(ctx, dhcpv6.WithIAID(iaid), options)
	if err != nil {
		return fmt.Errorf("solicit: %w", err)
	}
	reply, err := client.Request(ctx, advertise)
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	if status := reply.Options.Status(); status != nil && status.StatusCode != 0 {
		return fmt.Errorf("refused: %s", status)
	}
	ia := reply.Options.OneIANA()
	if ia == nil || ia.Options.OneAddress() == nil {
		return fmt.Errorf("no address in %s", reply.Summary())
	}
	fmt.Printf("address=%s\n", ia.Options.OneAddress().IPv6Addr)
	for _, server := range reply.Options.DNS() {
		fmt.Printf("dns=%s\n", server)
	}
	if labels := reply.Options.DomainSearchList(); labels != nil {
		for _, name := range labels.Labels {
			fmt.Printf("search=%s\n", name)
		}
	}
	return nil
}
