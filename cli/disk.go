package cli

import (
	"context"
	"net/http"

	"github.com/spf13/cobra"

	"vmand/openapi/client"
)

func (a *app) disks() resource[client.Disk] {
	type disk = client.Disk
	return resource[disk]{
		noun:  "disk",
		name:  func(d disk) string { return d.ID },
		state: func(d disk) string { return string(d.State) },
		columns: []column[disk]{
			{head: "NAME", cell: func(d disk) string { return d.ID }},
			{head: "STATE", state: true, cell: func(d disk) string { return string(d.State) }},
			{head: "SIZE", cell: func(d disk) string { return formatSize(d.SizeBytes) }},
			{head: "VM", cell: func(d disk) string { return value(d.VMID) }},
			{head: "MOUNT POINT", cell: func(d disk) string { return value(d.MountPoint) }},
			{head: "AGE", cell: func(d disk) string { return formatAge(a.out.now(), d.CreatedAt) }},
			{head: "IMAGE", wide: true, cell: func(d disk) string { return value(d.Image) }},
			{head: "GUEST DEVICE", wide: true, cell: func(d disk) string { return value(d.GuestDevice) }},
			{head: "REASON", wide: true, cell: func(d disk) string { return value(d.StateReason) }},
		},
		list: func() (*http.Request, error) {
			return client.NewListDisksRequest(server, &client.ListDisksParams{Limit: new(pageSize)})
		},
		get: func(id string) (*http.Request, error) { return client.NewGetDiskRequest(server, id, nil) },
		remove: func(id string) (*http.Request, error) {
			return client.NewDeleteDiskRequest(server, id, &client.DeleteDiskParams{Force: &a.force})
		},
	}
}

func (a *app) diskCommand() *cobra.Command {
	r := a.disks()
	ls := r.listCommand(a)
	var state, vm string
	ls.Flags().StringVar(&state, "state", "", "only disks in this state")
	ls.Flags().StringVar(&vm, "vm", "", "only disks of this VM")
	a.completeFlag(ls, "state", fixed("creating", "available", "attaching", "attached", "detaching", "error"))
	a.completeFlag(ls, "vm", a.vms().complete(a))
	ls.RunE = func(c *cobra.Command, _ []string) error {
		req, err := client.NewListDisksRequest(server, &client.ListDisksParams{
			State: given(c, "state", client.DiskState(state)),
			VMID:  given(c, "vm", vm),
			Limit: new(pageSize),
		})
		return r.print(c.Context(), a, req, err, nil)
	}
	return group("disk", "Manage data disks", ls, r.showCommand(a), a.createDisk(), r.removeCommand(a, &a.force),
		a.attachDisk(), a.detachDisk(), a.resizeDisk())
}

func (a *app) createDisk() *cobra.Command {
	var size sizeFlag
	var image, from string
	c := &cobra.Command{
		Use:     "create [SIZE]",
		Short:   "Create a disk",
		Example: "  vman disk create 20G\n  vman disk create --image data-2026",
		Args:    names(0, 1),
	}
	c.Flags().StringVar(&image, "image", "", "the image to copy")
	c.Flags().StringVar(&from, "from", "", "the disk to copy")
	c.MarkFlagsMutuallyExclusive("image", "from")
	a.completeFlag(c, "image", a.images().complete(a))
	a.completeFlag(c, "from", a.disks().complete(a))
	c.RunE = func(c *cobra.Command, args []string) error {
		body := client.CreateDisk{Image: nonEmpty(image), FromDisk: nonEmpty(from)}
		if len(args) > 0 {
			if err := size.Set(args[0]); err != nil {
				return err
			}
			body.SizeBytes = new(int64(size))
		}
		if len(args) == 0 && image == "" && from == "" {
			return usagef("a new disk needs a size").hint("usage: %s", c.UseLine())
		}
		d, err := change[client.Disk](c.Context(), a)(client.NewCreateDiskRequest(server, nil, body))
		return a.diskDone(c.Context(), d, err, "created")
	}
	return c
}

// diskDone waits for the end of a change of a disk and prints the result.
func (a *app) diskDone(ctx context.Context, d reply[client.Disk], err error, done string) error {
	id := d.value.ID
	d, err = settle(ctx, a, "disk "+id, d, err, func() (*http.Request, error) { return a.disks().get(id) })
	if done, err := detached(err); done || err != nil {
		return err
	}
	return a.did("disk "+id+" "+done, id, d.raw)
}

func (a *app) attachDisk() *cobra.Command {
	var at string
	c := &cobra.Command{
		Use:   "attach DISK VM",
		Short: "Attach a disk to a VM, also while it runs",
		Args:  names(2, 2),
		ValidArgsFunction: func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.disks().complete(a, "available")(c, args, word)
			}
			return a.vms().complete(a)(c, nil, word)
		},
	}
	c.Flags().StringVar(&at, "mount-point", "", "the slot of the disk, such as /dev/sdb; the next free one by default")
	c.RunE = func(c *cobra.Command, args []string) error {
		body := client.AttachDisk{VMID: args[1], MountPoint: nonEmpty(at)}
		d, err := change[client.Disk](c.Context(), a)(client.NewAttachDiskRequest(server, args[0], nil, body))
		return a.diskDone(c.Context(), d, err, "attached to VM "+args[1])
	}
	return c
}

func (a *app) detachDisk() *cobra.Command {
	var body client.DetachDisk
	var sync, force bool
	c := &cobra.Command{
		Use:               "detach DISK...",
		Short:             "Detach disks from their VMs; unmount them in the guest first",
		Args:              names(1, -1),
		ValidArgsFunction: a.disks().complete(a, "attached", "attaching"),
	}
	c.Flags().BoolVar(&sync, "sync", false, "flush the disk in the guest first")
	c.Flags().BoolVar(&force, "force", false, "detach a disk that the guest has mounted")
	c.RunE = func(c *cobra.Command, args []string) error {
		body.Sync, body.Force = given(c, "sync", sync), given(c, "force", force)
		return a.forEach(c.Context(), args, func(ctx context.Context, id string) error {
			d, err := change[client.Disk](ctx, a)(client.NewDetachDiskRequest(server, id, nil, body))
			return a.diskDone(ctx, d, err, "detached")
		})
	}
	return c
}

func (a *app) resizeDisk() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:               "resize DISK SIZE",
		Short:             "Make a disk larger",
		Args:              names(2, 2),
		ValidArgsFunction: a.disks().complete(a),
	}
	c.Flags().BoolVar(&force, "force", false, "cancel an operation that reads the disk")
	c.RunE = func(c *cobra.Command, args []string) error {
		size, err := parseSize(args[1])
		if err != nil {
			return err
		}
		body := client.UpdateDisk{SizeBytes: &size, Force: given(c, "force", force)}
		d, err := change[client.Disk](c.Context(), a)(client.NewUpdateDiskRequest(server, args[0], nil, body))
		return a.diskDone(c.Context(), d, err, "resized to "+formatSize(size))
	}
	return c
}
