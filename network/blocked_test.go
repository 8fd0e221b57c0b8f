package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vmand/vm"
)

// A foreignTable builds a firewall of another program for a test.
type foreignTable struct {
	t    testing.TB
	conn *nftables.Conn
	*nftables.Table
}

func newForeignTable(t testing.TB, family nftables.TableFamily, name string) foreignTable {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	return foreignTable{t, conn, conn.AddTable(&nftables.Table{Family: family, Name: name})}
}

// base adds a base chain.
func (f foreignTable) base(name string, hook *nftables.ChainHook, policy nftables.ChainPolicy) *nftables.Chain {
	return f.conn.AddChain(&nftables.Chain{
		Table: f.Table, Name: name, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
}

func (f foreignTable) chain(name string) *nftables.Chain {
	return f.conn.AddChain(&nftables.Chain{Table: f.Table, Name: name})
}

func (f foreignTable) rule(c *nftables.Chain, parts ...match) {
	f.conn.AddRule(&nftables.Rule{Table: f.Table, Chain: c, Exprs: all(parts...)})
}

// first adds a rule before the others.
func (f foreignTable) first(c *nftables.Chain, parts ...match) {
	f.conn.InsertRule(&nftables.Rule{Table: f.Table, Chain: c, Exprs: all(parts...)})
}

func (f foreignTable) flush() {
	f.t.Helper()
	if err := f.conn.Flush(); err != nil {
		f.t.Fatal(err)
	}
}

func reject() match {
	return load(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})
}

// xtMatch returns a match of iptables.
func xtMatch(name string, rev uint32, info xt.InfoAny) match {
	return load(&expr.Match{Name: name, Rev: rev, Info: info})
}

func toPort(protocolNumber byte, port uint16) match {
	return all(protocol(protocolNumber), transportField(2, 2, reg), equal(byte(port>>8), byte(port)))
}

// TestAFirewallThatDropsPacketsOfGuestsIsReported builds the firewalls that hosts usually
// have. It compares the problems before and after the advice was followed.
func TestAFirewallThatDropsPacketsOfGuestsIsReported(t *testing.T) {
	const input, forward = "INPUT", "FORWARD"
	hookIn, fwd, out := nftables.ChainHookInput, nftables.ChainHookForward, nftables.ChainHookOutput
	accepts, drops := nftables.ChainPolicyAccept, nftables.ChainPolicyDrop
	fromBridge, toBridge := all(iifname(), equal(ifname("vman0")...)), all(oifname(), equal(ifname("vman0")...))
	for _, c := range []struct {
		name  string
		build func(t testing.TB) (mend func())
		fix   string // a part of the advice
		says  string // a part of the problem
	}{
		{"iptables that drops what it does not know", func(t testing.TB) func() {
			f := newForeignTable(t, nftables.TableFamilyIPv4, "filter")
			c := f.base(input, hookIn, drops)
			f.rule(c, established(), accept())
			f.rule(c, toPort(unix.IPPROTO_TCP, 22), accept())
			f.flush()
			return func() { f.first(c, fromBridge, toPort(unix.IPPROTO_TCP, 53), accept()); f.flush() }
		}, "iptables -I INPUT -i vman0 -p tcp --dport 53 -j ACCEPT", "chain INPUT of the nftables table ip filter"},
		{"iptables that rejects in its last rule", func(t testing.TB) func() {
			f := newForeignTable(t, nftables.TableFamilyIPv4, "filter")
			c := f.base(input, hookIn, accepts)
			f.rule(c, xtMatch("conntrack", 3, &xt.ConntrackMtinfo3{ConntrackMtinfo2: xt.ConntrackMtinfo2{
				ConntrackMtinfoBase: xt.ConntrackMtinfoBase{
					OrigSrcAddr: net.IPv4zero, OrigSrcMask: net.CIDRMask(0, 32), OrigDstAddr: net.IPv4zero,
					OrigDstMask: net.CIDRMask(0, 32), ReplSrcAddr: net.IPv4zero, ReplSrcMask: net.CIDRMask(0, 32),
					ReplDstAddr: net.IPv4zero, ReplDstMask: net.CIDRMask(0, 32),
					MatchFlags: uint16(xt.ConntrackState),
				}, StateMask: 1<<1 | 1<<2}}), accept())
			f.rule(c, load(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 10}))
			f.flush()
			return func() { f.first(c, fromBridge, accept()); f.flush() }
		}, "iptables -I INPUT -i vman0", "DNS by TCP"},
		{"ufw", func(t testing.TB) func() {
			f := newForeignTable(t, nftables.TableFamilyIPv4, "filter")
			c := f.base(input, hookIn, drops)
			before, notLocal, user := f.chain("ufw-before-input"), f.chain("ufw-not-local"), f.chain("ufw-user-input")
			f.rule(c, jump(before.Name))
			f.rule(before, established(), accept())
			f.rule(before, jump(notLocal.Name))
			f.rule(before, jump(user.Name))
			f.rule(notLocal, xtMatch("addrtype", 1, &xt.AddrTypeV1{Dest: 1 << unix.RTN_LOCAL}), leaveChain())
			f.rule(notLocal, drop())
			f.rule(user, xtMatch("tcp", 0, &xt.Tcp{SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{22, 22}}), accept())
			f.flush()
			return func() {
				f.rule(user, fromBridge, xtMatch("tcp", 0, &xt.Tcp{
					SrcPorts: [2]uint16{0, 65535}, DstPorts: [2]uint16{53, 53}}), accept())
				f.flush()
			}
		}, "ufw allow in on vman0 to any port 53", "ufw drops packets of guests on vman0"},
		{"firewalld", func(t testing.TB) func() {
			f := newForeignTable(t, nftables.TableFamilyINet, "firewalld")
			zones := f.chain("filter_INPUT_ZONES")
			public, trusted := f.chain("filter_IN_public"), f.chain("filter_IN_trusted")
			c := f.base("filter_INPUT", hookIn, accepts)
			f.rule(c, conntrack(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
			f.rule(c, iifname(), equal(ifname("lo")...), accept())
			f.rule(c, jump(zones.Name))
			f.rule(c, reject())
			f.rule(zones, goTo(public.Name))
			f.rule(public, toPort(unix.IPPROTO_TCP, 22), accept())
			f.rule(trusted, accept())
			f.flush()
			return func() {
				set := &nftables.Set{Table: f.Table, Anonymous: true, Constant: true, IsMap: true,
					KeyType: nftables.TypeIFName, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.NativeEndian}
				if err := f.conn.AddSet(set, []nftables.SetElement{{Key: ifname("vman0"),
					VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: trusted.Name}}}); err != nil {
					t.Fatal(err)
				}
				f.first(zones, iifname(), load(&expr.Lookup{SourceRegister: reg, IsDestRegSet: true,
					SetName: set.Name, SetID: set.ID}))
				f.flush()
			}
		}, "firewall-cmd --permanent --zone=trusted --add-interface=vman0", "chain filter_INPUT"},
		{"nftables with a set of ports", func(t testing.TB) func() {
			f := newForeignTable(t, nftables.TableFamilyINet, "filter")
			c := f.base("input", hookIn, drops)
			f.rule(c, established(), accept())
			ports := &nftables.Set{Table: f.Table, Name: "open", KeyType: nftables.TypeInetService}
			if err := f.conn.AddSet(ports, []nftables.SetElement{{Key: []byte{0, 22}}, {Key: []byte{1, 0xbb}}}); err != nil {
				t.Fatal(err)
			}
			f.rule(c, protocol(unix.IPPROTO_TCP), transportField(2, 2, reg), in("open"), accept())
			f.flush()
			return func() {
				f.first(c, fromBridge, protocol(unix.IPPROTO_ICMPV6), accept())
				if err := f.conn.SetAddElements(ports, []nftables.SetElement{{Key: []byte{0, 53}}}); err != nil {
					t.Fatal(err)
				}
				f.flush()
			}
		}, "nft insert rule inet filter input iifname vman0", "chain input of the nftables table inet filter"},
		{"a firewall that lets nothing out", func(t testing.TB) func() {
			f := newForeignTable(t, nftables.TableFamilyIPv4, "filter")
			c := f.base("OUTPUT", out, drops)
			f.rule(c, established(), accept())
			f.flush()
			return func() { f.first(c, toBridge, accept()); f.flush() }
		}, "iptables -I OUTPUT -o vman0 -j ACCEPT", "answers of the DHCP server"},
		{"Docker", func(t testing.TB) func() {
			f := newForeignTable(t, nftables.TableFamilyIPv4, "filter")
			c, user := f.base(forward, fwd, drops), f.chain("DOCKER-USER")
			f.rule(c, jump(user.Name))
			f.rule(c, oifname(), equal(ifname("docker0")...), established(), accept())
			f.flush()
			return func() {
				f.first(user, fromBridge, accept())
				f.first(user, toBridge, accept())
				f.flush()
			}
		}, "iptables -I DOCKER-USER -i vman0 -j ACCEPT && iptables -I DOCKER-USER -o vman0 -j ACCEPT", "Docker drops"},
		{"a firewall that passes only one direction", func(t testing.TB) func() {
			f := newForeignTable(t, nftables.TableFamilyIPv4, "filter")
			c := f.base(forward, fwd, drops)
			f.rule(c, fromBridge, accept())
			f.flush()
			return func() { f.first(c, toBridge, accept()); f.flush() }
		}, "iptables -I FORWARD", "forwarded packets"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newHost(t)
			nw := natNetwork()
			up(t, n, nw)
			if s := n.Status(t.Context(), nw); len(s.Problems) != 0 {
				t.Fatalf("problems without a firewall: %+v", s.Problems)
			}
			mend := c.build(t)
			s := n.Status(t.Context(), nw)
			if len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Fix, c.fix) ||
				!strings.Contains(s.Problems[0].Detail, c.says) {
				t.Fatalf("problems %+v, want one that says %q with the fix %q", s.Problems, c.says, c.fix)
			}
			survey, err := n.Reconcile(t.Context(), vm.Wanted{Networks: []vm.Network{nw}}, true)
			if err != nil || !slices.Equal(survey.Problems, s.Problems) {
				t.Errorf("a pass reports %+v, %v", survey.Problems, err)
			}
			mend()
			if s := n.Status(t.Context(), nw); len(s.Problems) != 0 {
				t.Errorf("problems after the advice was followed: %+v", s.Problems)
			}
		})
	}
}

// leaseOf is a Directory with one lease.
type leaseOf struct {
	noLeases
	lease vm.Lease
}

func (d leaseOf) LeaseByMAC(_ context.Context, _, mac string) (vm.Lease, error) {
	if mac != d.lease.MAC {
		return vm.Lease{}, vm.NotFound("lease", mac)
	}
	return d.lease, nil
}

func (d leaseOf) LeaseByIP(_ context.Context, _ string, ip netip.Addr) (vm.Lease, error) {
	if ip != d.lease.IP {
		return vm.Lease{}, vm.NotFound("lease", ip.String())
	}
	return d.lease, nil
}

// inPlace runs f on a thread in the namespace of a place.
func (p place) inPlace(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread ends with the goroutine
		if err := netns.Set(p.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// TestGuestsAreServedBehindAFirewallThatDropsInput asks DHCP and DNS of a host that drops or
// rejects every packet to itself.
func TestGuestsAreServedBehindAFirewallThatDropsInput(t *testing.T) {
	for _, verdict := range []string{"drop", "reject"} {
		t.Run(verdict, func(t *testing.T) {
			enterNamespace(t)
			o := options(t)
			nw := natNetwork()
			v := guest("a", nw, 10)
			o.Directory = leaseOf{lease: vm.Lease{
				Network: nw.Name, VMID: "a", MAC: v.NICs[0].MAC, IP: v.NICs[0].IP, Hostname: "a",
			}}
			n := newNetworks(t, o)
			up(t, n, nw)
			f := newForeignTable(t, nftables.TableFamilyINet, "strict")
			policy := nftables.ChainPolicyDrop
			c := f.base("input", nftables.ChainHookInput, policy)
			f.rule(c, protocol(unix.IPPROTO_ICMPV6), accept()) // neighbour discovery, as firewalls do
			if verdict == "reject" {
				f.rule(c, reject())
			}
			f.flush()
			a := newGuest(t, n, v, nw)
			a.do(func() {
				if err := setSysctl("ipv6/conf/eth0/accept_dad", "0"); err != nil {
					t.Fatal(err)
				}
			})
			for _, server := range []netip.Addr{nw.Gateway, nw.GatewayIPv6()} {
				ask := func() error {
					q := new(dns.Msg).SetQuestion("_gateway.vm.internal.", dns.TypeA)
					client := dns.Client{Timeout: 2 * time.Second}
					r, _, err := client.Exchange(q, netip.AddrPortFrom(server, 53).String())
					if err == nil && len(r.Answer) != 1 {
						err = fmt.Errorf("answer %v", r)
					}
					return err
				}
				err := a.inPlace(ask)
				for i := 0; err != nil && i < 5; i++ { // the guest's address may be tentative
					err = a.inPlace(ask)
				}
				if err != nil {
					t.Errorf("DNS at %s: %v", server, err)
				}
			}
			var client *nclient4.Client
			err := a.inPlace(func() (err error) {
				client, err = nclient4.New("eth0")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := client.Request(ctx); err != nil {
				t.Errorf("DHCP: %v", err)
			}
		})
	}
}
