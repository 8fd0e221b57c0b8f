package crash

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"vmand/openapi"
	"vmand/test/harness"
)

// sharedVMs are used by all clients, so that no client knows their state.
var sharedVMs = []string{"shared-0", "shared-1"}

// A belief is what a thing may be, as far as a client was told: one value when
// the daemon has acknowledged it, several after a request without an answer.
type belief[T comparable] []T

func (b belief[T]) allows(v T) bool { return slices.Contains(b, v) }

// learn takes the end of a request for after into account.
func (b *belief[T]) learn(end outcome, after T) {
	switch {
	case end == acknowledged:
		*b = belief[T]{after}
	case end == unknown && !b.allows(after):
		*b = append(*b, after)
	}
}

// An outcome is what a client knows of its request.
type outcome int

const (
	refused      outcome = iota // nothing was done
	acknowledged                // it is done
	unknown                     // wholly done, or not at all
)

// A tenant is a client that has a VM and disks of its own, which nobody else asks
// anything of.
type tenant struct {
	*torture
	r  *rand.Rand
	vm string

	there       belief[bool]
	description belief[string]
	state       string // empty: not known
	mark        int64  // of the VM, when state was known
	disks       map[string]*modelDisk
	creating    *modelDisk // a disk whose request was not answered
	accepted    []string   // operations that are to have an end

	nics    belief[int]  // how many the VM has
	forward belief[int]  // the guest's port that the tenant's port of the host leads to; 0: none
	network belief[bool] // whether the tenant's network is there
	number  int          // of the tenant
	leads   string       // id of the forward, as far as known
	image   belief[bool] // whether the tenant's image is available
}

// A modelDisk is what a client believes of a disk.
type modelDisk struct {
	key   string // the Idempotency-Key of its creation
	asked float64
	image string // that it is of, empty for none
	there belief[bool]
	size  belief[float64]
	on    belief[string]
}

func newTenant(x *torture, i int, r *rand.Rand) *tenant {
	return &tenant{torture: x, r: r, vm: fmt.Sprintf("own-%d", i), there: belief[bool]{false}, disks: map[string]*modelDisk{},
		nics: belief[int]{1}, forward: belief[int]{0}, network: belief[bool]{false}, image: belief[bool]{false}, number: i}
}

func (c *tenant) run() {
	for c.rest(time.Duration(c.r.IntN(120)) * time.Millisecond) {
		c.gate.RLock()
		c.step()
		c.gate.RUnlock()
	}
}

// step makes one request.
func (c *tenant) step() {
	if c.creating != nil {
		c.createDisk(c.creating)
		return
	}
	switch n := c.r.IntN(100); {
	case !c.there.allows(true) || n < 3:
		end, _ := c.send("POST", "/vms", map[string]any{"name": c.vm, "template_name": "small", "restart_policy": c.pick("never", "on-failure", "always")})
		c.there.learn(end, true)
		c.description.learn(end, "")
		c.nics.learn(end, 1)
		c.forward.learn(end, 0)
		c.now(end, "stopped", c.marks[c.vm].Load())
	case n < 6:
		end, _ := c.send("DELETE", "/vms/"+c.vm, nil)
		c.there.learn(end, false)
		c.state = ""
		for _, disk := range c.disks {
			if disk.on.allows(c.vm) {
				disk.on.learn(end, "")
			}
		}
	case n < 12:
		text := fmt.Sprint(c.r.Uint32())
		end, _ := c.send("PATCH", "/vms/"+c.vm, map[string]any{"description": text})
		c.description.learn(end, text)
	case n < 17:
		c.nic()
	case n < 22:
		c.lead()
	case n < 25:
		c.net()
	case n < 30:
		c.picture()
	case n < 57:
		c.act(c.vm)
	case n < 65:
		c.act(sharedVMs[c.r.IntN(len(sharedVMs))])
	case n < 70 || len(c.disks) == 0:
		size := unique()
		disk := &modelDisk{key: fmt.Sprintf("%s-%g", c.vm, size), asked: size}
		if c.r.IntN(2) == 0 && c.image.allows(true) {
			disk.image = c.imageName()
		}
		c.createDisk(disk)
	default:
		c.disk()
	}
}

func (c *tenant) pick(words ...string) string { return words[c.r.IntN(len(words))] }

// act does an action of a VM.
func (c *tenant) act(id string) {
	action := c.pick("start", "start", "stop", "stop", "restart", "pause", "resume", "reset")
	var body any
	if action == "stop" || action == "restart" {
		body = map[string]any{"force": c.r.IntN(2) == 0, "timeout_seconds": c.r.IntN(2)}
	}
	mark := c.marks[id].Load()
	end, _ := c.send("POST", "/vms/"+id+"/actions/"+action, body)
	if id == c.vm {
		c.now(end, map[string]string{"start": "running", "stop": "stopped", "restart": "running", "pause": "paused", "resume": "running", "reset": "running"}[action], mark)
	}
}

// now is what a request for a state has come to, and the VM's mark before it.
func (c *tenant) now(end outcome, state string, mark int64) {
	switch end {
	case acknowledged:
		c.state, c.mark = state, mark
	case unknown:
		c.state = ""
	}
}

// createDisk asks for a disk until there is an answer, always under the same key.
func (c *tenant) createDisk(disk *modelDisk) {
	body := map[string]any{"size": disk.asked}
	if disk.image != "" {
		body["image"] = disk.image
	}
	end, a := c.send("POST", "/disks", body, "Idempotency-Key: "+disk.key)
	c.creating = nil
	switch {
	case end == acknowledged:
		made := harness.As[openapi.Disk](a)
		disk.there, disk.size, disk.on = belief[bool]{true}, belief[float64]{made.Size}, belief[string]{""}
		c.disks[made.ID] = disk
	case end == unknown && a.Status == 0:
		c.creating = disk
	}
}

// nic plugs a NIC into the VM or unplugs one. Nobody in the guest lets go of it
// while the VM runs.
func (c *tenant) nic() {
	end, more := refused, 1
	if c.r.IntN(2) == 0 {
		end, _ = c.send("POST", "/vms/"+c.vm+"/nics", map[string]any{})
	} else {
		more = -1
		end, _ = c.send("DELETE", "/vms/"+c.vm+"/nics/1", nil)
	}
	if end == refused {
		return
	}
	after := belief[int]{}
	for _, n := range c.nics {
		after = append(after, n+more)
	}
	if end == unknown {
		after = append(after, c.nics...)
	}
	c.nics = after
}

// lead makes or ends the tenant's port forward.
func (c *tenant) lead() {
	if c.r.IntN(3) > 0 || c.leads == "" {
		to := 1 + c.r.IntN(1000)
		end, a := c.send("POST", "/vms/"+c.vm+"/port_forwards", map[string]any{"host_port": 30000 + c.number, "guest_port": to})
		if c.forward.learn(end, to); end == acknowledged {
			c.leads = harness.As[openapi.PortForward](a).ID
		}
		return
	}
	end, _ := c.send("DELETE", "/vms/"+c.vm+"/port_forwards/"+c.leads, nil)
	c.forward.learn(end, 0)
}

// net makes or deletes the tenant's network.
func (c *tenant) net() {
	name := fmt.Sprintf("net-%d", c.number)
	if c.r.IntN(2) == 0 {
		end, _ := c.send("POST", "/networks", map[string]any{"name": name, "mode": "nat", "subnet": fmt.Sprintf("10.60.%d.0/24", c.number)})
		c.network.learn(end, true)
		return
	}
	end, _ := c.send("DELETE", "/networks/"+name, nil)
	c.network.learn(end, false)
}

func (c *tenant) imageName() string { return fmt.Sprintf("img-%d", c.number) }

// picture brings in the tenant's image or deletes it, which a disk of it forbids.
func (c *tenant) picture() {
	if c.r.IntN(3) > 0 {
		end, _ := c.send("POST", "/images?name="+c.imageName(), harness.RawImage(c.r.IntN(4))) // some have the same content
		c.image.learn(end, true)
		return
	}
	end, _ := c.send("DELETE", "/images/"+c.imageName(), nil)
	c.image.learn(end, false)
}

// compareNetwork is compare for what the tenant has of networks.
func (c *tenant) compareNetwork(v openapi.VM, there, network bool) {
	if !c.network.allows(network) {
		c.violation("the network of %s is there: %t; expected %v", c.vm, network, c.network)
	}
	c.network = belief[bool]{network}
	if !there {
		return
	}
	to := 0
	for _, f := range v.PortForwards {
		to, c.leads = f.GuestPort, f.ID
	}
	if len(v.PortForwards) > 1 || !c.forward.allows(to) {
		c.violation("VM %s has the port forwards %+v; expected one to %v", c.vm, v.PortForwards, c.forward)
	}
	if !c.nics.allows(len(v.NICs)) {
		c.violation("VM %s has the NICs %+v; expected %v of them", c.vm, v.NICs, c.nics)
	}
	c.forward, c.nics = belief[int]{to}, belief[int]{len(v.NICs)}
}

// disk does something to one of the disks.
func (c *tenant) disk() {
	ids := make([]string, 0, len(c.disks))
	for id := range c.disks {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	id := ids[c.r.IntN(len(ids))]
	disk := c.disks[id]
	switch c.r.IntN(8) {
	case 0:
		end, _ := c.send("DELETE", "/disks/"+id, nil)
		disk.there.learn(end, false)
		if end == acknowledged {
			delete(c.disks, id)
		}
	case 1:
		size := unique()
		end, _ := c.send("PATCH", "/disks/"+id, map[string]any{"size": size})
		disk.size.learn(end, size)
	case 2, 3, 4:
		on := c.pick(c.vm, c.vm, sharedVMs[0], sharedVMs[1])
		end, _ := c.send("POST", "/disks/"+id+"/attach", map[string]any{"vm_id": on})
		disk.on.learn(end, on)
	default:
		end, _ := c.send("POST", "/disks/"+id+"/detach", nil)
		disk.on.learn(end, "")
	}
}

// send makes a request and says what is known of its end.
func (c *tenant) send(method, path string, body any, headers ...string) (outcome, harness.Answer) {
	if c.r.IntN(3) > 0 {
		headers = append(headers, "Prefer: wait=30")
	}
	begun := time.Now()
	a, err := c.Try(method, path, body, headers...)
	c.operations.Add(1)
	switch took := time.Since(begun); {
	case took > requestPatience-time.Second:
		c.violation("%s %s had no answer after %s: %v", method, path, took, err)
		return unknown, a
	case err != nil:
		return unknown, harness.Answer{}
	case a.Status == 202:
		if at := a.Header.Get("Location"); at != "" {
			c.accepted = append(c.accepted, at)
		}
		return unknown, a
	case a.Status < 300:
		return acknowledged, a
	case a.Status == 500:
		c.violation("%s %s answered %s", method, path, a.Body)
		return unknown, a
	case a.Status > 500, strings.Contains(string(a.Body), `"cancelled"`):
		return unknown, a
	}
	c.refused.Add(1)
	return refused, a
}

// compare is the check of what the client was told. Afterwards it believes what
// it sees.
func (c *tenant) compare(seen harness.Census) {
	for _, at := range c.accepted {
		if op := harness.As[openapi.Operation](c.Call("GET", at, nil).Want(200)); op.FinishedAt == nil {
			c.violation("%s was accepted and has no end: %+v", at, op)
		}
	}
	c.accepted = nil
	v, there := seen.VMs[c.vm]
	if !c.there.allows(there) {
		c.violation("VM %s is there: %t; expected %v", c.vm, there, c.there)
	}
	if there {
		if c.there.allows(there) && !c.description.allows(v.Description) {
			c.violation("VM %s has the description %q; expected %q", c.vm, v.Description, c.description)
		}
		if c.state != "" && c.mark == c.marks[c.vm].Load() && string(v.State) != c.state {
			c.violation("VM %s is %s (%s); it was acknowledged as %s", c.vm, v.State, harness.Deref(v.StateReason), c.state)
		}
		c.description, c.state = belief[string]{v.Description}, ""
	}
	_, network := seen.Networks[fmt.Sprintf("net-%d", c.number)]
	c.compareNetwork(v, there && c.there.allows(true), network)
	c.there = belief[bool]{there}
	available := seen.Images[c.imageName()].State == "available"
	if !c.image.allows(available) {
		c.violation("image %s is available: %t; expected %v", c.imageName(), available, c.image)
	}
	c.image = belief[bool]{available}
	for id, disk := range c.disks {
		is, there := seen.Disks[id]
		if !disk.there.allows(there) {
			c.violation("disk %s is there: %t; expected %v", id, there, disk.there)
		}
		if !there {
			delete(c.disks, id)
			continue
		}
		if on := harness.Deref(is.VMID); !disk.size.allows(is.Size) || !disk.on.allows(on) {
			c.violation("disk %s has %g GiB and is on %q; expected %v, %q", id, is.Size, on, disk.size, disk.on)
		}
		disk.there, disk.size, disk.on = belief[bool]{true}, belief[float64]{is.Size}, belief[string]{harness.Deref(is.VMID)}
	}
}

// expects reports whether the client may have asked for the disk.
func (c *tenant) expects(id string, size float64) bool {
	return c.disks[id] != nil || c.creating != nil && c.creating.asked == size
}

var lastSize atomic.Int64

// unique returns a size in GiB that nobody has asked for, so that a disk tells
// which request it comes from. Each is larger than the one before.
func unique() float64 { return float64(lastSize.Add(1)) / 1024 }
