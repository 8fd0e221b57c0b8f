package harness

import (
	"vmand/openapi"
)

// A Census is what the API says there is.
type Census struct {
	VMs      map[string]openapi.VM
	Disks    map[string]openapi.Disk
	Networks map[string]bool
	Images   map[string]openapi.Image
}

// Census returns what the API shows: every VM, disk and image.
func (d *Daemon) Census() Census {
	d.T.Helper()
	c := Census{map[string]openapi.VM{}, map[string]openapi.Disk{}, map[string]bool{}, map[string]openapi.Image{}}
	for _, n := range As[[]openapi.Network](d.Call("GET", "/networks", nil).Want(200)) {
		c.Networks[n.Name] = true
	}
	for _, i := range As[[]openapi.Image](d.Call("GET", "/images", nil).Want(200)) {
		c.Images[i.Name] = i
	}
	for _, v := range As[[]openapi.VM](d.Call("GET", "/vms", nil).Want(200)) {
		c.VMs[v.ID] = v
	}
	for _, disk := range As[[]openapi.Disk](d.Call("GET", "/disks", nil).Want(200)) {
		c.Disks[disk.ID] = disk
	}
	return c
}
