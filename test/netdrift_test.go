package test

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"vmand/openapi"
)

// tables returns the daemon's nftables tables in the namespace.
func (n *namespace) tables() []*nftables.Table {
	n.t.Helper()
	var ours []*nftables.Table
	all, err := n.firewall().ListTables()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, t := range all {
		if strings.HasPrefix(t.Name, "vman") {
			ours = append(ours, t)
		}
	}
	return ours
}

func (n *namespace) firewall() *nftables.Conn {
	n.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(n.net.Fd())))
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// master returns the bridge that an interface is on, empty for none.
func (n *namespace) master(name string) string {
	n.t.Helper()
	var bridge string
	n.must("look at "+name, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil || link.Attrs().MasterIndex == 0 {
			return err
		}
		master, err := netlink.LinkByIndex(link.Attrs().MasterIndex)
		if err == nil {
			bridge = master.Attrs().Name
		}
		return err
	})
	return bridge
}

// drifts waits until the observer says that it has found and repaired something
// of the network.
func (d *daemon) drifts() openapi.Issue {
	d.t.Helper()
	var found openapi.Issue
	eventually(d.t, 10*time.Second, "the observer to repair the network", func() error {
		for _, issue := range as[openapi.ObserverStatus](d.call("GET", "/observer/status", nil).want(200)).LastIssues {
			if issue.IssueType == "network_drift" && issue.RepairedAt != nil {
				found = issue
				return nil
			}
		}
		return errNotYet
	})
	return found
}

// TestConnectionsOutliveTheDaemon kills the daemon under traffic in both directions.
func TestConnectionsOutliveTheDaemon(t *testing.T) {
	l := newLab(t)
	d := l.daemon(t)
	d.create("a")
	a := d.up("a")[0]
	ip := *d.vm("a").LocalIP
	d.forward("a", "tcp", "0.0.0.0", 2007, 7)
	l.host.answers(ip + ":80")
	outward := a.start("vmt hold -for 12s %s:7", farAddress)
	inward := make(chan error, 1)
	go func() {
		_, err := l.other.vmt("", "hold", "-for", "12s", hostAddress+":2007")
		inward <- err
	}()
	eventually(t, 10*time.Second, "both connections", func() error {
		if got := a.run("netstat -tn | grep -c ESTABLISHED || true"); got != "2" {
			return fmt.Errorf("the guest has %s", got)
		}
		return nil
	})
	for range 3 {
		d.kill()
		if got, err := l.host.get(ip + ":80"); err != nil {
			t.Errorf("without the daemon the guest says %q, %v", got, err)
		}
		d.start()
		d.passes(2)
	}
	if out, err := outward(); err != nil {
		t.Errorf("from the guest: %v", err)
	} else {
		t.Logf("from the guest: %s", out)
	}
	if err := <-inward; err != nil {
		t.Errorf("to the guest: %v", err)
	}
	if v := d.vm("a"); v.State != "running" || *v.LocalIP != ip {
		t.Errorf("the VM is %+v", v)
	}
	// The servers are back: the guest asks for its address and for names again.
	a.run("killall udhcpc; udhcpc -n -q -f -i eth0 -s /lib/udhcpc -t 10 -T 1 && nslookup a.vman0.internal")
	if _, err := l.other.vmt("", "hold", "-for", "1s", hostAddress+":2007"); err != nil {
		t.Errorf("the forward after all: %v", err)
	}
}

// TestWhatSomebodyBreaksIsRepaired does to the host what operators do.
func TestWhatSomebodyBreaksIsRepaired(t *testing.T) {
	l := newLab(t)
	d := l.daemon(t)
	d.create("a")
	d.create("b")
	shells := d.up("a", "b")
	a, b := shells[0], shells[1]
	d.forward("a", "tcp", "0.0.0.0", 8080, 80)
	l.other.answers(hostAddress + ":8080")
	d.passes(2)
	if issues := as[openapi.ObserverStatus](d.call("GET", "/observer/status", nil).want(200)).LastIssues; len(issues) != 0 {
		t.Errorf("nothing is wrong and the observer says %+v", issues)
	}
	taps := d.network("vman0").Interfaces[1:]
	if len(taps) != 2 {
		t.Fatalf("the taps are %q", taps)
	}
	link := func(name string, f func(netlink.Link) error) func() error {
		return func() error {
			return l.host.try(func() error {
				found, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				return f(found)
			})
		}
	}
	breaks := []struct {
		what string
		f    func() error
	}{
		{"the rules flushed", func() error {
			c := l.host.firewall()
			for _, table := range l.host.tables() {
				c.FlushTable(table)
			}
			return c.Flush()
		}},
		{"the tables deleted", func() error {
			c := l.host.firewall()
			for _, table := range l.host.tables() {
				c.DelTable(table)
			}
			return c.Flush()
		}},
		{"a tap out of the bridge", link(taps[0], netlink.LinkSetNoMaster)},
		{"a tap down", link(taps[1], netlink.LinkSetDown)},
		{"the bridge down", link("vman0", netlink.LinkSetDown)},
		{"the bridge without its address", link("vman0", func(found netlink.Link) error {
			return netlink.AddrDel(found, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 168, 100, 1), Mask: net.CIDRMask(24, 32)}})
		})},
		{"the bridge deleted", link("vman0", netlink.LinkDel)},
		{"forwarding off", func() error {
			l.host.write("net/ipv4/ip_forward", "0")
			return nil
		}},
	}
	me := newStation(t, d.vm("a").NICs[0].MAC, *d.vm("a").LocalIP)
	victim := newStation(t, d.vm("b").NICs[0].MAC, *d.vm("b").LocalIP)
	b.sniff("eth0")
	for i, broken := range breaks {
		l.part(d, broken.what, func(t *testing.T) {
			if err := broken.f(); err != nil {
				t.Fatal(err)
			}
			issue := d.drifts()
			t.Logf("%s: %s: %s", issue.ResourceID, issue.Details, *issue.Repair)
			d.passes(2)
			for _, tap := range taps {
				if l.host.master(tap) != "vman0" {
					t.Errorf("%s is on %q", tap, l.host.master(tap))
				}
			}
			eventually(t, 10*time.Second, "the guest to reach out", func() error {
				_, code, err := a.try("", "timeout 3 wget -q -O /dev/null http://"+farAddress+"/")
				if err == nil && code != 0 {
					err = errNotYet
				}
				return err
			})
			l.other.answers(hostAddress + ":8080")
			bad, good := fmt.Sprintf("bad-%d", i), fmt.Sprintf("good-%d", i)
			a.send("eth0", ether(everyMAC, me.mac, etherARP, arp(arpReply, me.mac, victim.ip, everyMAC, victim.ip, bad)),
				ether(everyMAC, me.mac, etherARP, arp(arpReply, me.mac, me.ip, everyMAC, victim.ip, good)))
			b.waitHeard("eth0", good)
			if count(b.heard("eth0"), bad) > 0 {
				t.Error("a spoofed packet arrives after the repair")
			}
			if issues := as[openapi.ObserverStatus](d.call("GET", "/observer/status", nil).want(200)).LastIssues; len(issues) != 0 {
				t.Errorf("after the repair the observer says %+v", issues)
			}
		})
	}
}

// TestTeardownLeavesNothing looks at the host before and after.
func TestTeardownLeavesNothing(t *testing.T) {
	l := newLab(t)
	before := l.host.links("")
	d := l.daemon(t)
	d.createNetwork("dark", "isolated", "10.3.0.0/24", map[string]any{"ipv6_subnet": "fd00:3::/64"})
	d.createWith("a", on("vman0", "dark"))
	d.forward("a", "tcp", "0.0.0.0", 8080, 80)
	d.do("a", "start")
	d.call("POST", "/vms/a/actions/stop", map[string]any{"force": true}, wait).want(200)
	d.stop()
	if links := l.host.links("vman0"); len(links) != 1 {
		t.Errorf("a daemon that ends takes its bridge away: %q", links)
	}
	cmd := exec.Command(cmp.Or(d.binary, binary), "network", "teardown")
	cmd.Env = append(os.Environ(), d.env...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := l.host.start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the teardown ended with %v\n%s", err, &said)
	}
	if after := l.host.links(""); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("the interfaces were %q and are %q", before, after)
	}
	if tables := l.host.tables(); len(tables) != 0 {
		t.Errorf("the tables %+v are left", tables[0])
	}
	// All comes back with the daemon.
	d.start()
	d.up("a")
}

// TestABridgeThatTheHostHas has a guest whose address nobody here gives out.
func TestABridgeThatTheHostHas(t *testing.T) {
	l := newLab(t)
	l.host.bridge("br-lan")
	l.host.must("put up0 into the bridge", func() error {
		master, err := netlink.LinkByName("br-lan")
		if err != nil {
			return err
		}
		up0, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		if err := netlink.AddrDel(up0, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(hostAddress).To4(), Mask: net.CIDRMask(24, 32)}}); err != nil {
			return err
		}
		return netlink.LinkSetMaster(up0, master)
	})
	l.host.address("br-lan", hostAddress+"/24")
	d := l.daemon(t)
	d.call("POST", "/networks", map[string]any{"name": "lan", "mode": "bridge", "bridge": "br-lan"}).want(201)
	d.call("POST", "/networks", map[string]any{"name": "lost", "mode": "bridge", "bridge": "nothing"}).problem(503, "network-unavailable", "nothing")
	if v := d.createWith("a", on("lan")); v.LocalIP != nil || v.NICs[0].IP != nil {
		t.Errorf("created: %+v", v)
	}
	d.do("a", "start")
	a := d.shell("a")
	a.run("ip addr add 203.0.113.50/24 dev eth0")
	a.reaches(outsideAddress)
	a.run("ping -c 1 -W 5 %s", hostAddress)
	eventually(t, 20*time.Second, "the address to be learned", func() error {
		if v := d.vm("a"); v.LocalIP == nil || *v.LocalIP != "203.0.113.50" || *v.LocalIPSource != "neighbour" || !v.ReachableFromHost {
			return fmt.Errorf("the VM is %+v", v)
		}
		return nil
	})
	if got, err := l.other.get("203.0.113.50:80"); err != nil || !strings.HasSuffix(got, "sees "+otherAddress) {
		t.Errorf("another host of the network gets %q, %v", got, err)
	}
	d.call("DELETE", "/vms/a", nil).want(204)
	d.call("DELETE", "/networks/lan", nil).want(204)
	if links := l.host.links("br-lan"); len(links) != 1 {
		t.Error("the host's own bridge is gone with the network")
	}
}

// TestWhatIsInTheWayIsNamed has a host on which somebody forbids forwarding.
func TestWhatIsInTheWayIsNamed(t *testing.T) {
	l := newLab(t)
	drop := nftables.ChainPolicyDrop
	c := l.host.firewall()
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	c.AddChain(&nftables.Chain{Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &drop})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	d := l.daemon(t)
	problems := d.network("vman0").Problems
	if len(problems) != 1 || !strings.Contains(problems[0].Detail, "FORWARD") || problems[0].Fix == "" {
		t.Errorf("the problems are %+v", problems)
	}
}

// TestAnOrdinaryUser runs the daemon as nobody, who has a home and nothing else.
func TestAnOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test becomes another user; run the tests as root")
	}
	l := newLab(t)
	const nobody = 65534
	d := newDaemon(t, "VMAN_NETWORK_MODE=auto")
	d.host = l.host
	d.user = &syscall.Credential{Uid: nobody, Gid: nobody}
	home := d.homeOf(nobody)
	d.env = append(d.env, "HOME="+home, "VMAN_DEFAULT_BOOT_DISK="+home+"/disk.qcow2")
	d.start()
	d.template()
	if n := d.network("vman0"); n.Mode != "user" {
		t.Errorf("the default network is %+v", n)
	}
	if v := d.create("a"); v.LocalIP == nil || v.ReachableFromHost {
		t.Errorf("created: %+v", v)
	}
	tcp := d.forward("a", "tcp", "0.0.0.0", 8080, 80)
	udp := map[string]any{"protocol": "udp", "host_address": "0.0.0.0", "host_port": 7007, "guest_port": 7}
	d.do("a", "start")
	l.leads(d)
	// passt has its forwards from its command line.
	d.call("POST", "/vms/a/port_forwards", udp).problem(409, "invalid-state", "while it runs")
	d.forceStop("a")
	d.call("POST", "/vms/a/port_forwards", udp).want(201)
	d.do("a", "start")
	l.leads(d)
	if got := echoUDP(t, l.other, hostAddress+":7007"); got != "hello" {
		t.Errorf("the echo by UDP is %q", got)
	}
	d.kill()
	d.start()
	l.other.answers(hostAddress + ":8080")
	d.forceStop("a")
	d.stop()
	d.env = append(d.env, "VMAN_NETWORK_PASST=/nonexistent/passt") // QEMU's own network, from here on
	d.start()
	d.do("a", "start")
	l.leads(d)
	d.call("DELETE", "/vms/a/port_forwards/"+tcp.ID, nil).want(204)
	if conn, err := l.other.dial(hostAddress + ":8080"); err == nil {
		conn.Close()
		t.Error("a forward is open that is deleted")
	}
	d.forward("a", "tcp", hostAddress, 8080, 80)
	l.other.answers(hostAddress + ":8080")
	if uid := statusOf(t, d.pid("a"), "Uid"); !strings.HasPrefix(uid, fmt.Sprint(nobody)) {
		t.Errorf("QEMU runs as %s", uid)
	}
	if a := d.call("POST", "/networks", map[string]any{"name": "red", "mode": "nat"}); a.status != http.StatusServiceUnavailable {
		t.Errorf("a bridge without privilege: %d %s", a.status, a.body)
	}
}

// leads fails the test unless VM a of a user-mode network, which has just been
// started, is reached by the forward of port 8080, and reaches out itself.
func (l *lab) leads(d *daemon) {
	d.t.Helper()
	a := d.shell("a")
	for _, address := range []string{"127.0.0.1", hostAddress} {
		l.host.answers(address + ":8080")
	}
	l.other.answers(hostAddress + ":8080")
	if got := a.run("ip -4 addr show dev eth0"); !strings.Contains(got, "inet "+*d.vm("a").LocalIP+"/") {
		d.t.Errorf("the guest has %s; the VM says %s", got, *d.vm("a").LocalIP)
	}
	a.reaches(farAddress)
	a.reaches("www.example")
}

// homeOf gives the daemon's directory to a user, with a copy of the guest's disk
// and of a vmand that anybody may read.
func (d *daemon) homeOf(uid int) string {
	d.t.Helper()
	home := d.state + "-home"
	if err := os.Mkdir(home, 0o700); err != nil {
		d.t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", home+"/vmand", "vmand")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		d.t.Fatalf("build vmand: %v\n%s", err, out)
	}
	d.binary = home + "/vmand"
	disk, err := os.ReadFile(guests + "/disk-net.qcow2")
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(home+"/disk.qcow2", disk, 0o600); err != nil {
		d.t.Fatal(err)
	}
	for _, path := range []string{home, home + "/vmand", home + "/disk.qcow2", strings.TrimSuffix(home, "/s-home")} {
		if err := os.Chown(path, uid, uid); err != nil {
			d.t.Fatal(err)
		}
	}
	return home
}
