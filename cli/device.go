package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

// A device is a kind of resource that belongs to a VM: its requests have the id of the VM.
type device[T any] struct {
	resource[T]
	list   func(vm string) (*http.Request, error)
	remove func(vm, name string) (*http.Request, error)
}

func (d device[T]) listCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "ls VM",
		Aliases:           []string{"list"},
		Short:             "List the " + d.noun + "s of a VM",
		Args:              names(1, 1),
		ValidArgsFunction: a.vms().complete(a),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := d.list(args[0])
			return d.print(c.Context(), a, req, err, nil)
		},
	}
}

func (d device[T]) removeCommand(a *app, use, done string) *cobra.Command {
	return &cobra.Command{
		Use:               use + " VM NAME...",
		Short:             "Remove " + d.noun + "s of a VM",
		Args:              names(2, -1),
		ValidArgsFunction: d.complete(a),
		RunE: func(c *cobra.Command, args []string) error {
			vm := args[0]
			return a.forEach(c.Context(), args[1:], func(ctx context.Context, name string) error {
				subject := d.subject(name) + " of VM " + vm
				v, err := change[T](ctx, a)(d.remove(vm, name))
				v, err = settle(ctx, a, subject, v, err, nil)
				if done, err := detached(err); done || err != nil {
					return err
				}
				return a.did(subject+" "+done, name, v.raw)
			})
		},
	}
}

// complete completes a VM, then its devices.
func (d device[T]) complete(a *app) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.vms().complete(a)(c, args, word)
		}
		r := d.resource
		r.list = func() (*http.Request, error) { return d.list(args[0]) }
		return r.complete(a)(c, args[1:], word)
	}
}

func (a *app) nics() device[client.NIC] {
	type nic = client.NIC
	return device[nic]{
		resource: resource[nic]{
			noun:  "NIC",
			name:  func(n nic) string { return strconv.Itoa(n.Slot) },
			state: func(n nic) string { return string(n.State) },
			columns: []column[nic]{
				{head: "SLOT", cell: func(n nic) string { return strconv.Itoa(n.Slot) }},
				{head: "STATE", state: true, cell: func(n nic) string { return string(n.State) }},
				{head: "NETWORK", cell: func(n nic) string { return n.Network }},
				{head: "MAC", cell: func(n nic) string { return n.MAC }},
				{head: "ADDRESS", cell: func(n nic) string { return value(n.IP) }},
				{head: "LINK", state: true, cell: func(n nic) string { return string(n.Link) }},
				{head: "MODEL", wide: true, cell: func(n nic) string { return string(n.Model) }},
				{head: "IPV6", wide: true, cell: func(n nic) string { return value(n.IPv6) }},
				{head: "RATE IN", wide: true, cell: func(n nic) string { return strconv.Itoa(n.RateIn) }},
				{head: "RATE OUT", wide: true, cell: func(n nic) string { return strconv.Itoa(n.RateOut) }},
			},
		},
		list: func(vm string) (*http.Request, error) { return client.NewListNICsRequest(server, vm, nil) },
		remove: func(vm, name string) (*http.Request, error) {
			slot, err := parseSlot(name)
			if err != nil {
				return nil, err
			}
			return client.NewDetachNICRequest(server, vm, slot, nil)
		},
	}
}

func parseSlot(s string) (int, error) {
	slot, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, usagef("%q is not the slot of a NIC, a number from 0 to 7", s)
	}
	return int(slot), nil
}

func (a *app) nicCommand() *cobra.Command {
	d := a.nics()
	var network, ip, mac, model string
	add := &cobra.Command{
		Use:     "add VM",
		Aliases: []string{"attach"},
		Short:   "Add a NIC to a VM, also while it runs",
		Args:    names(1, 1), ValidArgsFunction: a.vms().complete(a),
	}
	rateIn, rateOut, down := rateFlags(add)
	add.Flags().StringVar(&network, "network", "", "the network to connect to")
	add.Flags().StringVar(&ip, "ip", "", "the address")
	add.Flags().StringVar(&mac, "mac", "", "the hardware address")
	add.Flags().StringVar(&model, "model", "", "virtio or e1000e")
	a.completeFlag(add, "network", a.networks().complete(a))
	a.completeFlag(add, "model", fixed("virtio", "e1000e"))
	add.RunE = func(c *cobra.Command, args []string) error {
		body := client.CreateNIC{Network: nonEmpty(network), IP: nonEmpty(ip), MAC: nonEmpty(mac),
			RateIn: given(c, "rate-in", *rateIn), RateOut: given(c, "rate-out", *rateOut)}
		if model != "" {
			body.Model = new(client.CreateNICModel(model))
		}
		if *down {
			body.Link = new(client.CreateNICLinkDown)
		}
		n, err := change[client.NIC](c.Context(), a)(client.NewAttachNICRequest(server, args[0], body))
		slot := n.value.Slot
		return a.nicDone(c.Context(), args[0], slot, n, err, "added")
	}
	return group("nic", "Manage the NICs of VMs", d.listCommand(a), add, a.setNIC(), d.removeCommand(a, "rm", "removed"))
}

func rateFlags(c *cobra.Command) (in, out *int, down *bool) {
	in = c.Flags().Int("rate-in", 0, "the limit of the traffic to the guest in kbit/s; 0 is none")
	out = c.Flags().Int("rate-out", 0, "the limit of the traffic from the guest in kbit/s; 0 is none")
	return in, out, c.Flags().Bool("link-down", false, "unplug the cable")
}

func (a *app) nicDone(ctx context.Context, vm string, slot int, n reply[client.NIC], err error, done string) error {
	subject := fmt.Sprintf("NIC %d of VM %s", slot, vm)
	n, err = settle(ctx, a, subject, n, err, func() (*http.Request, error) {
		return client.NewGetNICRequest(server, vm, slot, nil)
	})
	if done, err := detached(err); done || err != nil {
		return err
	}
	return a.did(subject+" "+done, strconv.Itoa(slot), n.raw)
}

func (a *app) setNIC() *cobra.Command {
	c := &cobra.Command{
		Use:               "set VM SLOT",
		Short:             "Change a NIC: its rates and its link",
		Args:              names(2, 2),
		ValidArgsFunction: a.nics().complete(a),
	}
	rateIn, rateOut, down := rateFlags(c)
	c.MarkFlagsOneRequired("rate-in", "rate-out", "link-down")
	c.RunE = func(c *cobra.Command, args []string) error {
		slot, err := parseSlot(args[1])
		if err != nil {
			return err
		}
		body := client.UpdateNIC{RateIn: given(c, "rate-in", *rateIn), RateOut: given(c, "rate-out", *rateOut)}
		if c.Flags().Changed("link-down") {
			body.Link = new(map[bool]client.NICLink{true: client.NICLinkDown, false: client.NICLinkUp}[*down])
		}
		n, err := change[client.NIC](c.Context(), a)(client.NewUpdateNICRequest(server, args[0], slot, nil, body))
		return a.nicDone(c.Context(), args[0], slot, n, err, "changed")
	}
	return c
}

func formatForward(f client.PortForward) string {
	host := net.JoinHostPort(f.HostAddress, formatPorts(f.HostPort, f.Ports))
	return fmt.Sprintf("%s to port %s/%s", host, formatPorts(f.GuestPort, f.Ports), f.Protocol)
}

// formatPorts formats a port, or a range as first-last.
func formatPorts(first, count int) string {
	if count <= 1 {
		return strconv.Itoa(first)
	}
	return fmt.Sprintf("%d-%d", first, first+count-1)
}

func (a *app) forwards() device[client.PortForward] {
	type forward = client.PortForward
	return device[forward]{
		resource: resource[forward]{
			noun: "port forward",
			name: func(f forward) string { return f.ID },
			columns: []column[forward]{
				{head: "NAME", cell: func(f forward) string { return f.ID }},
				{head: "PROTOCOL", cell: func(f forward) string { return string(f.Protocol) }},
				{head: "HOST ADDRESS", cell: func(f forward) string { return f.HostAddress }},
				{head: "HOST PORT", cell: func(f forward) string { return formatPorts(f.HostPort, f.Ports) }},
				{head: "GUEST PORT", cell: func(f forward) string { return formatPorts(f.GuestPort, f.Ports) }},
				{head: "NIC", cell: func(f forward) string { return strconv.Itoa(f.NIC) }},
			},
		},
		list: func(vm string) (*http.Request, error) { return client.NewListPortForwardsRequest(server, vm, nil) },
		remove: func(vm, name string) (*http.Request, error) {
			return client.NewRemovePortForwardRequest(server, vm, name, nil)
		},
	}
}

func (a *app) forwardCommand() *cobra.Command {
	d := a.forwards()
	var nic int
	add := &cobra.Command{
		Use:   "add VM [ADDRESS:]HOSTPORT[-LAST]:GUESTPORT[/udp]",
		Short: "Forward a port of the host to a port of a VM",
		Example: "  vman forward add web-1 8080:80\n  vman forward add web-1 127.0.0.1:5353:53/udp\n" +
			"  vman forward add web-1 8000-8009:80\n  vman forward add web-1 [::]:8080:80",
		Args:              names(2, 2),
		ValidArgsFunction: a.vms().complete(a),
	}
	add.Flags().IntVar(&nic, "nic", 0, "the slot of the NIC")
	add.RunE = func(c *cobra.Command, args []string) error {
		body, err := parseForward(args[1])
		if err != nil {
			return err
		}
		body.NIC = given(c, "nic", nic)
		f, err := change[client.PortForward](c.Context(), a)(client.NewAddPortForwardRequest(server, args[0], body))
		if err != nil {
			return err
		}
		return a.did("VM "+args[0]+": "+formatForward(f.value), f.value.ID, f.raw)
	}
	return group("forward", "Manage the port forwards of VMs", d.listCommand(a), add, d.removeCommand(a, "rm", "removed"))
}

// parseForward parses [ADDRESS:]HOSTPORT[-LAST]:GUESTPORT[-LAST][/PROTOCOL]. An IPv6 address
// is in brackets.
func parseForward(arg string) (client.CreatePortForward, error) {
	var body client.CreatePortForward
	ports, protocol, ok := strings.Cut(arg, "/")
	if ok {
		body.Protocol = new(client.CreatePortForwardProtocol(protocol))
	}
	host, guest, ok := cutLast(ports)
	if !ok {
		return body, usagef("%q is not a port forward", arg).
			hint("use [ADDRESS:]HOSTPORT[-LAST]:GUESTPORT[/udp], such as 8080:80, 8000-8009:80 or [::]:8080:80")
	}
	if address, port, ok := cutLast(host); ok {
		body.HostAddress = new(strings.Trim(address, "[]"))
		host = port
	}
	first, count, err := parsePorts(host)
	if err != nil {
		return body, err
	}
	to, guests, err := parsePorts(guest)
	if err != nil {
		return body, err
	}
	if guests != 1 && guests != count {
		return body, usagef("%s are %d ports of the host, %s are %d of the guest", host, count, guest, guests).
			hint("use ranges of the same length, or only the first port of the guest")
	}
	body.HostPort, body.GuestPort = first, to
	if count > 1 {
		body.Ports = &count
	}
	return body, nil
}

// cutLast cuts a text around its last colon.
func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// parsePorts parses a port, or the first and the last port of a range.
func parsePorts(s string) (first, count int, err error) {
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		to = from
	}
	var ports [2]uint64
	for i, word := range []string{from, to} {
		if ports[i], err = strconv.ParseUint(word, 10, 16); err != nil || ports[i] == 0 {
			return 0, 0, usagef("%q is not a port, a number from 1 to 65535", word)
		}
	}
	if ports[1] < ports[0] {
		return 0, 0, usagef("the range of ports %s ends before it begins", s)
	}
	return int(ports[0]), int(ports[1]-ports[0]) + 1, nil
}

func (a *app) cdroms() device[client.CDROM] {
	type cdrom = client.CDROM
	return device[cdrom]{
		resource: resource[cdrom]{
			noun:  "CD-ROM",
			name:  func(d cdrom) string { return d.ID },
			state: func(d cdrom) string { return value(d.Image) },
			columns: []column[cdrom]{
				{head: "NAME", cell: func(d cdrom) string { return d.ID }},
				{head: "IMAGE", cell: func(d cdrom) string { return value(d.Image) }},
				{head: "BOOT INDEX", cell: func(d cdrom) string { return formatOptional(d.BootIndex) }},
			},
		},
		list: func(vm string) (*http.Request, error) { return client.NewListCDROMsRequest(server, vm, nil) },
		remove: func(vm, name string) (*http.Request, error) {
			return client.NewEjectCDROMRequest(server, vm, name, nil)
		},
	}
}

func (a *app) cdromCommand() *cobra.Command {
	d := a.cdroms()
	var boot int
	add := &cobra.Command{
		Use:     "insert VM IMAGE",
		Aliases: []string{"add"},
		Short:   "Add a CD-ROM drive with an image to a VM",
		Args:    names(2, 2),
		ValidArgsFunction: func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.vms().complete(a)(c, args, word)
			}
			return a.images().complete(a, "available")(c, nil, word)
		},
	}
	add.Flags().IntVar(&boot, "boot-index", 0, "the place in the boot order, 1 to 99")
	add.RunE = func(c *cobra.Command, args []string) error {
		body := client.CreateCDROM{Image: args[1], BootIndex: given(c, "boot-index", boot)}
		v, err := change[client.CDROM](c.Context(), a)(client.NewAttachCDROMRequest(server, args[0], body))
		if err != nil {
			return err
		}
		return a.did("VM "+args[0]+": image "+args[1]+" is in drive "+v.value.ID, v.value.ID, v.raw)
	}
	return group("cdrom", "Manage the CD-ROM drives of VMs", d.listCommand(a), add, d.removeCommand(a, "eject", "removed"))
}

func (a *app) templates() resource[client.Template] {
	type template = client.Template
	return resource[template]{
		noun:  "template",
		name:  func(t template) string { return t.Name },
		state: func(t template) string { return fmt.Sprintf("%d CPUs, %s", t.CPUCount, formatExact(t.RAMAmount)) },
		columns: []column[template]{
			{head: "NAME", cell: func(t template) string { return t.Name }},
			{head: "CPUS", cell: func(t template) string { return strconv.Itoa(t.CPUCount) }},
			{head: "MEMORY", cell: func(t template) string { return formatSize(int64(t.RAMAmount) * mib) }},
			{head: "AGE", cell: func(t template) string { return formatAge(a.out.now(), t.CreatedAt) }},
		},
		list: func() (*http.Request, error) {
			return client.NewListTemplatesRequest(server, &client.ListTemplatesParams{Limit: new(pageSize)})
		},
		get: func(name string) (*http.Request, error) { return client.NewGetTemplateRequest(server, name, nil) },
		remove: func(name string) (*http.Request, error) {
			return client.NewDeleteTemplateRequest(server, name, nil)
		},
	}
}

func (a *app) templateCommand() *cobra.Command {
	r := a.templates()
	var cpus int
	memory := sizeFlag(defaultMemory)
	create := &cobra.Command{
		Use:     "create NAME",
		Short:   "Create a template, the size of VMs",
		Example: "  vman template create small --cpus 1 --memory 512M",
		Args:    names(1, 1),
	}
	create.Flags().IntVar(&cpus, "cpus", defaultCPUs, "the number of CPUs")
	create.Flags().Var(&memory, "memory", "the size of the memory, such as 2G")
	create.RunE = func(c *cobra.Command, args []string) error {
		size, err := memory.mebibytes()
		if err != nil {
			return err
		}
		body := client.CreateTemplate{Name: args[0], CPUCount: cpus, RAMAmount: size}
		t, err := change[client.Template](c.Context(), a)(client.NewCreateTemplateRequest(server, body))
		if err != nil {
			return err
		}
		return a.did("template "+args[0]+" created", args[0], t.raw)
	}
	return group("template", "Manage templates, the sizes of VMs", r.listCommand(a), r.showCommand(a), create, r.removeCommand(a, nil))
}

func (a *app) cloudInitCommand() *cobra.Command {
	show := &cobra.Command{
		Use:               "show VM",
		Short:             "Show the cloud-init data of a VM",
		Args:              names(1, 1),
		ValidArgsFunction: a.vms().complete(a),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := call[client.CloudInitDetails](c.Context(), a)(client.NewGetCloudInitRequest(server, args[0]))
			if err != nil {
				return err
			}
			return a.out.item(args[0], d.raw)
		},
	}
	var flags vmFlags
	var reprovision bool
	set := &cobra.Command{
		Use:               "set VM",
		Short:             "Replace the cloud-init data of a VM",
		Args:              names(1, 1),
		ValidArgsFunction: a.vms().complete(a),
	}
	set.Flags().StringArrayVar(&flags.keys, "ssh-key", nil, "a file with public SSH keys for the default user")
	set.Flags().StringVar(&flags.hostname, "hostname", "", "the host name")
	set.Flags().StringVar(&flags.userData, "user-data", "", "a file with user data; - is standard input")
	set.Flags().StringVar(&flags.networkConfig, "network-config", "", "a file with the network configuration")
	set.Flags().BoolVar(&reprovision, "reprovision", false, "let cloud-init run again at the next boot")
	set.RunE = func(c *cobra.Command, args []string) error {
		data, err := flags.cloudInit(c.Context(), a)
		if err != nil {
			return err
		}
		var body client.SetCloudInit
		if data != nil {
			body = client.SetCloudInit{Hostname: data.Hostname, SSHAuthorizedKeys: data.SSHAuthorizedKeys,
				UserData: data.UserData, NetworkConfig: data.NetworkConfig}
		}
		body.Reprovision = given(c, "reprovision", reprovision)
		d, err := change[json.RawMessage](c.Context(), a)(client.NewSetCloudInitRequest(server, args[0], nil, body))
		if err != nil {
			return err
		}
		return a.did("VM "+args[0]+": cloud-init data replaced", args[0], d.raw)
	}
	return group("cloud-init", "Manage the cloud-init data of VMs", show, set)
}
