package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vmand/failpoint"
	"vmand/vm"
)

// Networks makes, changes and deletes networks.
type Networks struct{ *Engine }

const networkTimeout = time.Minute

// allNetworks is locked by every change of a network, so that no two get one subnet.
var allNetworks = vm.Resource{Kind: vm.NetworkKind}

var networkCreate = verb{
	kind: vm.NetworkCreate, timeout: networkTimeout, claim: claim{patient: true},
	cleanup: removeUnrecordedNetwork, reached: exists(true), answer: vm.AnswerCreated,
	points: []string{"bridge.made", "network.up"},
}

// The record of an update is written with the intent; Networks.Reconcile does the rest.
var networkUpdate = verb{
	kind: vm.NetworkUpdate, timeout: networkTimeout, claim: claim{patient: true},
	cleanup: removeUnrecordedNetwork, reached: exists(true), answer: vm.AnswerResource,
}

var networkDelete = verb{
	kind: vm.NetworkDelete, timeout: networkTimeout, claim: claim{patient: true},
	cleanup: removeUnrecordedNetwork, reached: exists(false), answer: vm.AnswerNothing,
}

// removeUnrecordedNetwork is the cleanup of networks.
func removeUnrecordedNetwork(ctx context.Context, e *Engine, op vm.Operation) error {
	return e.Networks.removeUnrecorded(ctx, op.Resource.ID)
}

// removeUnrecorded removes an unrecorded network from the host.
func (s *Networks) removeUnrecorded(ctx context.Context, name string) error {
	recorded, err := s.recorded(ctx, vm.NetworkResource(name))
	if err != nil || recorded {
		return err
	}
	return s.network.Down(ctx, vm.Network{Name: name, Bridge: name})
}

// Create makes a network, on the host and in the records, and returns it. A network without
// a subnet gets a free one.
func (s *Networks) Create(ctx context.Context, n vm.Network) (vm.Network, error) {
	if err := n.CheckName(); err != nil {
		return n, err
	}
	c := &networkCreation{s: s, n: n}
	if _, err := s.run(ctx, networkCreate.request(c, vm.NetworkResource(n.Name), allNetworks)); err != nil {
		return c.n, err
	}
	return s.store.Network(ctx, n.Name)
}

// A networkCreation is one [Networks.Create].
type networkCreation struct {
	s    *Networks
	n    vm.Network
	made bool // something of it may be on the host
}

func (c *networkCreation) intent(ctx context.Context, _ *run) (_ vm.Change, err error) {
	c.n, err = c.s.plan(ctx, c.n)
	return vm.Change{}, err
}

func (c *networkCreation) act(ctx context.Context, _ *run) (vm.Change, error) {
	c.made = true
	if err := c.s.network.Up(ctx, c.n); err != nil {
		return vm.Change{}, err
	}
	failpoint.Hit("network.up")
	c.n.CreatedAt = now()
	return vm.Change{NewNetwork: &c.n}, nil
}

func (c *networkCreation) truth(ctx context.Context) (vm.Change, error) {
	if !c.made {
		return vm.Change{}, nil
	}
	return vm.Change{}, c.s.removeUnrecorded(ctx, c.n.Name)
}

// plan completes and checks a new network.
func (s *Networks) plan(ctx context.Context, n vm.Network) (vm.Network, error) {
	recorded, err := s.recorded(ctx, vm.NetworkResource(n.Name))
	if err != nil {
		return n, err
	}
	if recorded {
		return n, &vm.Fault{Code: vm.CodeExists, Detail: fmt.Sprintf("network %s already exists", n.Name)}
	}
	if err := n.CheckMode(); err != nil {
		return n, err
	}
	if err := s.network.Check(n.Mode); err != nil {
		return n, err
	}
	if n.Mode.Managed() {
		n.Bridge = n.Name
		if err := s.placeSubnet(ctx, &n); err != nil {
			return n, err
		}
	}
	if n.Mode != vm.NetworkBridge {
		n.Domain = cmp.Or(n.Domain, n.Name+".internal")
	}
	if n.Mode == vm.NetworkUser && !n.Subnet.IsValid() {
		n.Subnet = userSubnet
	}
	if n.Subnet.IsValid() && !n.Gateway.IsValid() {
		n.Gateway = n.DefaultGateway()
	}
	if err := s.check(ctx, n); err != nil {
		return n, err
	}
	return n, s.network.Admit(ctx, n)
}

// check checks n on its own and against the other networks.
func (s *Networks) check(ctx context.Context, n vm.Network) error {
	if err := n.Check(); err != nil {
		return err
	}
	others, err := s.store.Networks(ctx, vm.Page{})
	if err != nil {
		return err
	}
	// The DNS server of a network may forward the query in turn, also back to this one.
	for _, o := range others {
		if o.Name == n.Name {
			continue
		}
		if field, server := serverOf(o.DNSForwarders, n); field != "" {
			return vm.InvalidField(field, "network %s forwards DNS queries to %s, which would be the DNS server of network %s: "+
				"queries of guests must not go from network to network", o.Name, vm.DNSServerText(server), n.Name)
		}
		for i, f := range n.DNSForwarders {
			if j := slices.IndexFunc(f.Servers, o.ServesDNS); j >= 0 {
				return vm.InvalidField(fmt.Sprintf("/dns_forwarders/%d/servers/%d", i, j),
					"%s is the DNS server of network %s: queries of guests must not go from network to network",
					vm.DNSServerText(f.Servers[j]), o.Name)
			}
		}
	}
	return nil
}

// serverOf returns the first server of forwarders that n is, and the field of n with its address.
// The field is empty if n is none of them.
func serverOf(forwarders []vm.DNSForwarder, n vm.Network) (field string, server netip.AddrPort) {
	for _, f := range forwarders {
		i := slices.IndexFunc(f.Servers, n.ServesDNS)
		switch {
		case i < 0:
		case f.Servers[i].Addr().Is6():
			return "/ipv6_subnet", f.Servers[i]
		default:
			return "/gateway", f.Servers[i]
		}
	}
	return "", netip.AddrPort{}
}

var (
	userSubnet  = netip.MustParsePrefix("10.0.2.0/24") // QEMU's own default in user mode
	firstSubnet = netip.MustParsePrefix("192.168.100.0/24")
)

// placeSubnet finds a subnet for n. A subnet that n has already must not overlap that of
// another network.
func (s *Networks) placeSubnet(ctx context.Context, n *vm.Network) error {
	others, err := s.store.Networks(ctx, vm.Page{})
	if err != nil {
		return err
	}
	var taken []netip.Prefix
	for _, o := range others {
		if !o.Mode.Managed() || o.Name == n.Name {
			continue
		}
		taken = append(taken, o.Subnet)
		for field, both := range map[string][2]netip.Prefix{
			"/subnet":      {o.Subnet, n.Subnet},
			"/ipv6_subnet": {o.IPv6, n.IPv6},
		} {
			if both[0].IsValid() && both[1].IsValid() && both[0].Overlaps(both[1]) {
				return &vm.Fault{
					Code:   vm.CodeInUse,
					Detail: fmt.Sprintf("%s: %s overlaps %s of network %s", field, both[1], both[0], o.Name),
					Fields: []vm.FieldFault{{Field: field, Detail: "overlaps that of network " + o.Name}},
				}
			}
		}
	}
	if n.Subnet.IsValid() {
		return nil
	}
	free, why, err := s.network.FreeSubnet(ctx, firstSubnet, taken)
	if err != nil {
		return err
	}
	if why != "" && n.Name == vm.DefaultNetwork { // other networks are expected to get another one
		s.log.Warn("a network gets another subnet than the usual one",
			"network", n.Name, "subnet", free, "usual", firstSubnet, "reason", why)
	}
	n.Subnet = free
	return nil
}

// Update changes a network and returns it.
func (s *Networks) Update(ctx context.Context, name string, e vm.NetworkEdits, match vm.Match) (vm.Network, error) {
	u := &networkChange{s: s, name: name, edits: e, match: match}
	if _, err := s.run(ctx, networkUpdate.request(u, vm.NetworkResource(name), allNetworks)); err != nil {
		return u.n, err
	}
	return s.store.Network(ctx, name)
}

// A networkChange is one [Networks.Update].
type networkChange struct {
	s     *Networks
	name  string
	edits vm.NetworkEdits
	match vm.Match
	n     vm.Network
}

func (u *networkChange) intent(ctx context.Context, _ *run) (_ vm.Change, err error) {
	if u.n, err = u.s.store.Network(ctx, u.name); err != nil {
		return vm.Change{}, err
	}
	if err := u.match.Check("network "+u.name, u.n.Version()); err != nil {
		return vm.Change{}, err
	}
	recorded := u.n
	if u.edits.Apply(&u.n) {
		if err := u.s.checkUnused(ctx, u.name); err != nil {
			return vm.Change{}, err
		}
		if err := u.s.placeSubnet(ctx, &u.n); err != nil {
			return vm.Change{}, err
		}
	}
	if err := u.s.check(ctx, u.n); err != nil {
		return vm.Change{}, err
	}
	if !u.edits.Force {
		if err := u.s.checkFollowed(ctx, recorded, u.n); err != nil {
			return vm.Change{}, err
		}
	}
	return vm.Change{Network: &u.n}, nil
}

// checkFollowed fails with [vm.CodeInUse] if VMs run on a network and do not follow a change
// of it.
func (s *Networks) checkFollowed(ctx context.Context, recorded, changed vm.Network) error {
	field, effect := recorded.NotFollowed(changed)
	if field == "" {
		return nil
	}
	vms, err := s.store.VMs(ctx, vm.VMFilter{Network: changed.Name, Active: true}, vm.Page{})
	if err != nil {
		return err
	}
	vms = slices.DeleteFunc(vms, func(v vm.VM) bool { return v.State == vm.Stopped || v.State == vm.Errored })
	if len(vms) == 0 {
		return nil
	}
	return &vm.Fault{
		Code: vm.CodeInUse,
		Detail: fmt.Sprintf("%s of network %s cannot change while %d VMs such as %s run on it: %s",
			field, changed.Name, len(vms), vms[0].ID, effect),
		Fields: []vm.FieldFault{{Field: field, Detail: "cannot change while VMs run on the network"}},
		Hint:   "stop the VMs, or repeat the request with \"force\": true and restart them",
	}
}

func (u *networkChange) act(ctx context.Context, _ *run) (vm.Change, error) {
	return vm.Change{}, u.s.network.Up(ctx, u.n)
}

func (u *networkChange) truth(context.Context) (vm.Change, error) { return vm.Change{}, nil }

// checkUnused fails with [vm.CodeInUse] while VMs are on a network.
func (s *Networks) checkUnused(ctx context.Context, name string) error {
	vms, err := s.store.VMs(ctx, vm.VMFilter{Network: name}, vm.Page{Limit: 1})
	if err == nil && len(vms) > 0 {
		err = &vm.Fault{
			Code:   vm.CodeInUse,
			Detail: fmt.Sprintf("the addresses of network %s cannot change while VMs such as %s are on it", name, vms[0].ID),
			Hint:   "make another network, or remove the NICs first",
		}
	}
	return err
}

// Delete removes a network. It fails with [vm.CodeInUse] while VMs are on it.
func (s *Networks) Delete(ctx context.Context, name string, match vm.Match) error {
	x := &networkDeletion{s: s, name: name, match: match}
	_, err := s.run(ctx, networkDelete.request(x, vm.NetworkResource(name), allNetworks))
	return err
}

// A networkDeletion is one [Networks.Delete]. The record goes before the bridge: the open
// operation accounts for the bridge.
type networkDeletion struct {
	s     *Networks
	name  string
	match vm.Match
}

func (x *networkDeletion) intent(ctx context.Context, _ *run) (vm.Change, error) {
	n, err := x.s.store.Network(ctx, x.name)
	if err != nil {
		return vm.Change{}, err
	}
	return vm.Change{DeleteNetwork: x.name}, x.match.Check("network "+x.name, n.Version())
}

func (x *networkDeletion) act(ctx context.Context, _ *run) (vm.Change, error) {
	return vm.Change{}, x.s.removeUnrecorded(ctx, x.name)
}

func (x *networkDeletion) truth(context.Context) (vm.Change, error) { return vm.Change{}, nil }

// Status returns the record of a network and its state on the host.
func (s *Networks) Status(ctx context.Context, name string) (vm.NetworkReport, error) {
	n, err := s.store.Network(ctx, name)
	if err != nil {
		return vm.NetworkReport{}, err
	}
	r := vm.NetworkReport{Network: n, Free: -1, Status: s.network.Status(ctx, n)}
	if r.Leases, err = s.store.Leases(ctx, name); err != nil {
		return vm.NetworkReport{}, err
	}
	for i := range r.Leases {
		if seen, ok := r.Status.Leases[r.Leases[i].MAC]; ok {
			r.Leases[i].Acked, r.Leases[i].Expires = seen.Acked, seen.Expires
		}
	}
	if n.Mode.Managed() {
		first, last := n.HostRange()
		reserved, err := s.store.ReservedIPs(ctx, name, first, last)
		if err != nil {
			return vm.NetworkReport{}, err
		}
		// Without the gateway, the first and the last address.
		r.Free = 1<<(32-n.Subnet.Bits()) - 3 - len(r.Leases) - reserved
	}
	return r, nil
}

// of returns the networks that a VM's NICs are on, by name.
func (s *Networks) of(ctx context.Context, v vm.VM) (map[string]vm.Network, error) {
	networks := make(map[string]vm.Network, len(v.NICs))
	for _, nic := range v.NICs {
		if _, known := networks[nic.Network]; known {
			continue
		}
		n, err := s.store.Network(ctx, nic.Network)
		if err != nil {
			return nil, err
		}
		networks[nic.Network] = n
	}
	return networks, nil
}

// truth implements [settler]. It is empty: [Networks.Reconcile] compares and repairs the
// networks on the host.
func (s *Networks) truth(context.Context, string) (vm.Change, error) { return vm.Change{}, nil }

// stateName implements [settler].
func (s *Networks) stateName(ctx context.Context, name string) (string, error) {
	recorded, err := s.recorded(ctx, vm.NetworkResource(name))
	if recorded {
		return "present", err
	}
	return "absent", err
}

// Reconcile compares the networks on the host with the records and returns the differences,
// and the problems that it does not repair.
// vms must contain every VM that is active ([vm.VMFilter]), as recorded; stopped VMs are
// ignored. With repair it makes the host match the records. It records the addresses of
// guests that it observes, and does not wait for the answers of guest agents.
func (s *Networks) Reconcile(ctx context.Context, vms []vm.VM, repair bool) (vm.NetworkSurvey, error) {
	var want vm.Wanted
	for _, v := range vms {
		if v.State != vm.Stopped && len(v.NICs) > 0 {
			want.VMs = append(want.VMs, v)
		}
	}
	var err error
	if want.Networks, err = s.store.Networks(ctx, vm.Page{}); err != nil {
		return vm.NetworkSurvey{}, err
	}
	// A network that an operation changes is left to that operation.
	want.Networks = slices.DeleteFunc(want.Networks, func(n vm.Network) bool { return s.Busy(vm.NetworkResource(n.Name)) })
	seen, err := s.network.Reconcile(ctx, want, repair)
	if err != nil {
		return vm.NetworkSurvey{}, err
	}
	for _, v := range want.VMs {
		if found := seen.Learned[v.ID]; len(found) > 0 {
			err = errors.Join(err, s.Guests.recordAddresses(ctx, v, preferAgent(found, s.Guests.reportedByAgent(v))))
		}
	}
	s.Guests.askForAddresses(want.VMs)
	s.CloudInits.ask(vms)
	return seen, err
}

// networksNote names the note that is set once the default network has been created.
const networksNote = "networks"

// Prepare creates the default network once, and makes all networks on the host match the
// records. It must be called before [Engine.Recover]. It fails only if the records cannot be
// read; the observer retries changes that fail on the host.
func (s *Networks) Prepare(ctx context.Context) error {
	made, err := s.store.Note(ctx, networksNote)
	if err == nil && made == "" {
		err = s.makeDefault(ctx)
	}
	if err != nil {
		return err
	}
	vms, err := s.store.VMs(ctx, vm.VMFilter{Active: true}, vm.Page{})
	if err != nil {
		return err
	}
	seen, err := s.Reconcile(ctx, vms, true)
	if err != nil {
		s.log.Warn("cannot prepare the networks; the observer tries again", "err", err)
	}
	for _, d := range seen.Drift {
		if d.Err != nil {
			s.log.Warn("cannot prepare a network; the observer tries again",
				"resource", d.Resource, "reason", d.Details, "err", d.Err)
		}
	}
	return nil
}

// DefaultMissing reports whether the default network could not be made when vmand started.
func (s *Networks) DefaultMissing(ctx context.Context) (bool, error) {
	made, err := s.store.Note(ctx, networksNote)
	return err == nil && made == "", err
}

// makeDefault makes the default network, once.
func (s *Networks) makeDefault(ctx context.Context) error {
	n := vm.Network{Name: vm.DefaultNetwork, Mode: vm.NetworkNAT}
	if err := s.network.Check(vm.NetworkNAT); err != nil {
		n.Mode = vm.NetworkUser
		s.log.Info("the default network is of mode user: its guests are reached by port forwards only",
			"network", n.Name, "reason", err)
	}
	n, err := s.Create(ctx, n)
	if err != nil && !errors.Is(err, vm.ErrExists) {
		s.log.Error("cannot make the default network; the next start tries again", "network", vm.DefaultNetwork, "err", err)
		return nil
	}
	s.log.Info("made the default network", "network", n.Name, "mode", n.Mode, "subnet", n.Subnet)
	return s.store.SetNote(ctx, networksNote, "made")
}
