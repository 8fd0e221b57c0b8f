package harness

import "vmand/openapi"

// A Census is what the API lists, by id or name.
type Census struct {
	VMs      map[string]openapi.VM
	Disks    map[string]openapi.Disk
	Images   map[string]openapi.Image
	Networks map[string]openapi.Network
}

// Census returns what the API lists now.
func (d *Daemon) Census() Census {
	d.T.Helper()
	return Census{
		VMs:      byKey(d, "/vms", func(v openapi.VM) string { return v.ID }),
		Disks:    byKey(d, "/disks", func(disk openapi.Disk) string { return disk.ID }),
		Images:   byKey(d, "/images", func(i openapi.Image) string { return i.Name }),
		Networks: byKey(d, "/networks", func(n openapi.Network) string { return n.Name }),
	}
}

func byKey[T any](d *Daemon, path string, key func(T) string) map[string]T {
	d.T.Helper()
	m := map[string]T{}
	for _, v := range Get[[]T](d, path) {
		m[key(v)] = v
	}
	return m
}
