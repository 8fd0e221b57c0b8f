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

// sharedVMs are used by all clients, so that no client knows their state. Under an emulated
// KVM it is one VM, beside the one of the only client: see [lanes].
var sharedVMs = []string{"shared-0", "shared-1"}[:min(lanes(), 2)]

// A belief is the set of values that a property may have, as far as a client knows: one
// value after an acknowledged request, several after a request without an answer.
type belief[T comparable] []T

func (b belief[T]) allows(v T) bool { return slices.Contains(b, v) }

// learn updates the belief after a request that sets the property to after.
func (b *belief[T]) learn(end outcome, after T) {
	switch {
	case end == acknowledged:
		*b = belief[T]{after}
	case end == unknown && !b.allows(after):
		*b = append(*b, after)
	}
}

// An outcome is a client's knowledge of the end of its request.
type outcome int

const (
	refused      outcome = iota // the request had no effect
	acknowledged                // it had its effect
	unknown                     // it had its whole effect or none
)

// A tenant is a client with a VM and disks that no other client uses.
type tenant struct {
	*torture
	r  *rand.Rand
	vm string

	there       belief[bool] // whether the VM exists
	description belief[string]
	state       string // empty: unknown
	mark        int64  // the VM's mark when state was acknowledged
	disks       map[string]*modelDisk
	creating    *modelDisk // a disk without an answer to its creation
	accepted    []string   // the operations that must end

	number    int          // of the tenant
	nics      belief[int]  // the number of NICs of the VM
	forward   belief[int]  // the guest port of the tenant's port forward; 0: none
	forwardID string       // the id of the last known port forward
	network   belief[bool] // whether the tenant's network exists
	image     belief[bool] // whether the tenant's image is available
}

// A modelDisk is a client's knowledge of a disk.
type modelDisk struct {
	key   string // the Idempotency-Key of its creation
	asked float64
	image string // its image; empty: none
	there belief[bool]
	size  belief[float64]
	on    belief[string]
}

func newTenant(x *torture, i int, r *rand.Rand) *tenant {
	return &tenant{
		torture: x,
		r:       r,
		vm:      fmt.Sprintf("own-%d", i),
		there:   belief[bool]{false},
		disks:   map[string]*modelDisk{},
		number:  i,
		nics:    belief[int]{1},
		forward: belief[int]{0},
		network: belief[bool]{false},
		image:   belief[bool]{false},
	}
}

// run sends requests until the torture ends.
func (c *tenant) run() {
	for c.rest(time.Duration(c.r.IntN(120)) * time.Millisecond) {
		c.gate.RLock()
		c.step()
		c.gate.RUnlock()
	}
}

// step sends one request.
func (c *tenant) step() {
	if c.creating != nil {
		c.createDisk(c.creating)
		return
	}
	switch n := c.r.IntN(100); {
	case !c.there.allows(true) || n < 3:
		body := map[string]any{
			"name":           c.vm,
			"template_name":  "small",
			"restart_policy": c.pick("never", "on-failure", "always"),
		}
		end, _ := c.send("POST", "/vms", body)
		c.there.learn(end, true)
		c.description.learn(end, "")
		c.nics.learn(end, 1)
		c.forward.learn(end, 0)
		c.learnState(end, "stopped", c.marks[c.vm].Load())
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
		c.changeNIC()
	case n < 22:
		c.changeForward()
	case n < 25:
		c.changeNetwork()
	case n < 30:
		c.changeImage()
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
		c.changeDisk()
	}
}

func (c *tenant) pick(words ...string) string { return words[c.r.IntN(len(words))] }

// act runs a random action of a VM.
func (c *tenant) act(id string) {
	action := c.pick("start", "start", "stop", "stop", "restart", "pause", "resume", "reset")
	var body any
	if action == "stop" || action == "restart" {
		body = map[string]any{"force": c.r.IntN(2) == 0, "timeout_seconds": c.r.IntN(2)}
	}
	mark := c.marks[id].Load()
	end, _ := c.send("POST", "/vms/"+id+"/actions/"+action, body)
	if id == c.vm {
		state := "running"
		switch action {
		case "stop":
			state = "stopped"
		case "pause":
			state = "paused"
		}
		c.learnState(end, state, mark)
	}
}

// learnState updates the known state after a request for a state. mark is the VM's mark
// before the request.
func (c *tenant) learnState(end outcome, state string, mark int64) {
	switch end {
	case acknowledged:
		c.state, c.mark = state, mark
	case unknown:
		c.state = ""
	}
}

// createDisk requests a disk. A request without an answer is repeated with the same key in
// the next step.
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

// changeNIC plugs a NIC into the VM or unplugs one. A running guest never releases its NIC,
// because it is a firmware.
func (c *tenant) changeNIC() {
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

// changeForward creates or deletes the tenant's port forward.
func (c *tenant) changeForward() {
	if c.r.IntN(3) > 0 || c.forwardID == "" {
		to := 1 + c.r.IntN(1000)
		body := map[string]any{"host_port": 30000 + c.number, "guest_port": to}
		end, a := c.send("POST", "/vms/"+c.vm+"/port_forwards", body)
		if c.forward.learn(end, to); end == acknowledged {
			c.forwardID = harness.As[openapi.PortForward](a).ID
		}
		return
	}
	end, _ := c.send("DELETE", "/vms/"+c.vm+"/port_forwards/"+c.forwardID, nil)
	c.forward.learn(end, 0)
}

// changeNetwork creates or deletes the tenant's network.
func (c *tenant) changeNetwork() {
	name := fmt.Sprintf("net-%d", c.number)
	if c.r.IntN(2) == 0 {
		subnet := fmt.Sprintf("10.60.%d.0/24", c.number)
		end, _ := c.send("POST", "/networks", map[string]any{"name": name, "mode": "nat", "subnet": subnet})
		c.network.learn(end, true)
		return
	}
	end, _ := c.send("DELETE", "/networks/"+name, nil)
	c.network.learn(end, false)
}

func (c *tenant) imageName() string { return fmt.Sprintf("img-%d", c.number) }

// changeImage uploads or deletes the tenant's image. A disk of the image prevents the
// deletion.
func (c *tenant) changeImage() {
	if c.r.IntN(3) > 0 {
		content := harness.RawImage(c.r.IntN(4)) // some tenants upload the same content
		end, _ := c.send("POST", "/images?name="+c.imageName(), content)
		c.image.learn(end, true)
		return
	}
	end, _ := c.send("DELETE", "/images/"+c.imageName(), nil)
	c.image.learn(end, false)
}

// compareNetwork compares the network, the NICs and the port forward.
func (c *tenant) compareNetwork(v openapi.VM, there, network bool) {
	if !c.network.allows(network) {
		c.violation("the network of VM %s exists: %t, want one of %v", c.vm, network, c.network)
	}
	c.network = belief[bool]{network}
	if !there {
		return
	}
	to := 0
	for _, f := range v.PortForwards {
		to, c.forwardID = f.GuestPort, f.ID
	}
	if len(v.PortForwards) > 1 || !c.forward.allows(to) {
		c.violation("VM %s has the port forwards %+v, want one to a port of %v", c.vm, v.PortForwards, c.forward)
	}
	if !c.nics.allows(len(v.NICs)) {
		c.violation("VM %s has the NICs %+v, want one of the numbers %v", c.vm, v.NICs, c.nics)
	}
	c.forward, c.nics = belief[int]{to}, belief[int]{len(v.NICs)}
}

// changeDisk changes one of the disks.
func (c *tenant) changeDisk() {
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
		on := c.pick(append([]string{c.vm, c.vm}, sharedVMs...)...)
		end, _ := c.send("POST", "/disks/"+id+"/attach", map[string]any{"vm_id": on})
		disk.on.learn(end, on)
	default:
		end, _ := c.send("POST", "/disks/"+id+"/detach", nil)
		disk.on.learn(end, "")
	}
}

// send sends a request and returns its outcome.
func (c *tenant) send(method, path string, body any, headers ...string) (outcome, harness.Answer) {
	if c.r.IntN(3) > 0 {
		headers = append(headers, "Prefer: wait=30")
	}
	begun := time.Now()
	a, err := c.Try(method, path, body, headers...)
	c.operations.Add(1)
	switch took := time.Since(begun); {
	case took > requestTimeout-time.Second:
		c.violation("%s %s has no answer after %s: %v", method, path, took, err)
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

// compare reports differences between a census and the knowledge of the client. Afterwards the
// client knows the census.
func (c *tenant) compare(seen harness.Census) {
	for _, at := range c.accepted {
		if op := harness.Get[openapi.Operation](c.Daemon, at); op.FinishedAt == nil {
			c.violation("%s was accepted and has not ended: %+v", at, op)
		}
	}
	c.accepted = nil
	v, there := seen.VMs[c.vm]
	if !c.there.allows(there) {
		c.violation("VM %s exists: %t, want one of %v", c.vm, there, c.there)
	}
	if there {
		if c.there.allows(there) && !c.description.allows(v.Description) {
			c.violation("VM %s has the description %q, want one of %q", c.vm, v.Description, c.description)
		}
		if c.state != "" && c.mark == c.marks[c.vm].Load() && string(v.State) != c.state {
			c.violation("VM %s is %s (%s), but %s was acknowledged", c.vm, v.State, harness.Deref(v.StateReason), c.state)
		}
		c.description, c.state = belief[string]{v.Description}, ""
	}
	_, network := seen.Networks[fmt.Sprintf("net-%d", c.number)]
	c.compareNetwork(v, there && c.there.allows(true), network)
	c.there = belief[bool]{there}
	available := seen.Images[c.imageName()].State == "available"
	if !c.image.allows(available) {
		c.violation("image %s is available: %t, want one of %v", c.imageName(), available, c.image)
	}
	c.image = belief[bool]{available}
	for id, disk := range c.disks {
		is, there := seen.Disks[id]
		if !disk.there.allows(there) {
			c.violation("disk %s exists: %t, want one of %v", id, there, disk.there)
		}
		if !there {
			delete(c.disks, id)
			continue
		}
		if on := harness.Deref(is.VMID); !disk.size.allows(is.Size) || !disk.on.allows(on) {
			c.violation("disk %s has %g GiB and VM %q, want one of %v and one of %q", id, is.Size, on, disk.size, disk.on)
		}
		disk.there = belief[bool]{true}
		disk.size = belief[float64]{is.Size}
		disk.on = belief[string]{harness.Deref(is.VMID)}
	}
}

// expects reports whether the client may have requested the disk.
func (c *tenant) expects(id string, size float64) bool {
	return c.disks[id] != nil || c.creating != nil && c.creating.asked == size
}

var lastSize atomic.Int64

// unique returns a size in GiB that no other request has, so that the size of a disk
// identifies its request. Each size is larger than the one before.
func unique() float64 { return float64(lastSize.Add(1)) / 1024 }
