package network

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"vmand/openapi"
	"vmand/test/harness"
)

// waitNetworkRepair waits until the observer reports that it has repaired a network.
func waitNetworkRepair(d *harness.Daemon) openapi.Issue {
	d.T.Helper()
	var found openapi.Issue
	harness.Eventually(d.T, 10*time.Second, "the observer to repair the network", func() error {
		for _, issue := range harness.Get[openapi.ObserverStatus](d, "/observer/status").LastIssues {
			if issue.IssueType == "network_drift" && issue.RepairedAt != nil {
				found = issue
				return nil
			}
		}
		return harness.ErrNotYet
	})
	return found
}

// TestConnectionsSurviveTheDaemon kills the daemon during traffic in both directions.
func TestConnectionsSurviveTheDaemon(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.CreateVM("a")
	a := d.StartAll("a")[0]
	ip := *d.VM("a").LocalIP
	d.CreatePortForward("a", "tcp", "0.0.0.0", 2007, 7)
	l.Host.WaitHTTP(ip + ":80")
	outward := a.Start("vmt hold -for 12s %s:7", harness.FarAddress)
	inward := make(chan error, 1)
	go func() {
		_, err := l.Other.VMT("", "hold", "-for", "12s", harness.HostAddress+":2007")
		inward <- err
	}()
	harness.Eventually(t, 10*time.Second, "both connections", func() error {
		if got := a.Run("netstat -tn | grep -c ESTABLISHED || true"); got != "2" {
			return fmt.Errorf("the guest has %s connections, want 2", got)
		}
		return nil
	})
	for range 3 {
		d.Kill()
		if got, err := l.Host.HTTPGet(ip + ":80"); err != nil {
			t.Errorf("without the daemon the guest answers %q, %v", got, err)
		}
		d.Start()
		d.WaitPasses(2)
	}
	if out, err := outward(); err != nil {
		t.Errorf("the connection from the guest: %v", err)
	} else {
		t.Logf("the connection from the guest: %s", out)
	}
	if err := <-inward; err != nil {
		t.Errorf("the connection to the guest: %v", err)
	}
	if v := d.VM("a"); v.State != "running" || *v.LocalIP != ip {
		t.Errorf("the VM is %+v, want running with the address %s", v, ip)
	}
	// DHCP and DNS work again.
	a.Run("killall udhcpc; udhcpc -n -q -f -i eth0 -s /lib/udhcpc -t 10 -T 1 && nslookup a.vman0.internal")
	if _, err := l.Other.VMT("", "hold", "-for", "1s", harness.HostAddress+":2007"); err != nil {
		t.Errorf("a new connection through the port forward: %v", err)
	}
}

// TestNetworkDriftIsRepaired breaks the host's side of a network as an operator may.
func TestNetworkDriftIsRepaired(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	d.CreateVM("a")
	d.CreateVM("b")
	shells := d.StartAll("a", "b")
	a, b := shells[0], shells[1]
	d.CreatePortForward("a", "tcp", "0.0.0.0", 8080, 80)
	l.Other.WaitHTTP(harness.HostAddress + ":8080")
	d.WaitPasses(2)
	issues := func() []openapi.Issue {
		return harness.Get[openapi.ObserverStatus](d, "/observer/status").LastIssues
	}
	if issues := issues(); len(issues) != 0 {
		t.Errorf("the observer reports %+v, want no issues", issues)
	}
	taps := d.Network("vman0").Interfaces[1:]
	if len(taps) != 2 {
		t.Fatalf("the taps are %q, want two", taps)
	}
	link := func(name string, f func(netlink.Link) error) func() error {
		return func() error {
			return l.Host.Try(func() error {
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
			c := l.Host.Firewall()
			for _, table := range l.Host.Tables() {
				c.FlushTable(table)
			}
			return c.Flush()
		}},
		{"the tables deleted", func() error {
			c := l.Host.Firewall()
			for _, table := range l.Host.Tables() {
				c.DelTable(table)
			}
			return c.Flush()
		}},
		{"a tap out of the bridge", link(taps[0], netlink.LinkSetNoMaster)},
		{"a tap down", link(taps[1], netlink.LinkSetDown)},
		{"the bridge down", link("vman0", netlink.LinkSetDown)},
		{"the bridge without its address", link("vman0", func(found netlink.Link) error {
			gateway := net.IPNet{IP: net.IPv4(192, 168, 100, 1), Mask: net.CIDRMask(24, 32)}
			return netlink.AddrDel(found, &netlink.Addr{IPNet: &gateway})
		})},
		{"the bridge deleted", link("vman0", netlink.LinkDel)},
		{"forwarding off", func() error {
			l.Host.SetSysctl("net/ipv4/ip_forward", "0")
			return nil
		}},
	}
	me := newStation(t, d.VM("a").NICs[0].MAC, *d.VM("a").LocalIP)
	victim := newStation(t, d.VM("b").NICs[0].MAC, *d.VM("b").LocalIP)
	b.Capture("eth0")
	for i, broken := range breaks {
		l.Run(d, broken.what, func(t *testing.T) {
			if err := broken.f(); err != nil {
				t.Fatal(err)
			}
			issue := waitNetworkRepair(d)
			t.Logf("%s: %s: %s", issue.ResourceID, issue.Details, *issue.Repair)
			d.WaitPasses(2)
			for _, tap := range taps {
				if l.Host.Master(tap) != "vman0" {
					t.Errorf("tap %s is on bridge %q, want vman0", tap, l.Host.Master(tap))
				}
			}
			harness.Eventually(t, 10*time.Second, "the guest to reach out", func() error {
				_, code, err := a.Try("", "timeout 3 wget -q -O /dev/null http://"+harness.FarAddress+"/")
				if err == nil && code != 0 {
					err = harness.ErrNotYet
				}
				return err
			})
			l.Other.WaitHTTP(harness.HostAddress + ":8080")
			bad, good := fmt.Sprintf("bad-%d", i), fmt.Sprintf("good-%d", i)
			a.Send("eth0",
				ether(everyMAC, me.mac, etherARP, arp(arpReply, me.mac, victim.ip, everyMAC, victim.ip, bad)),
				ether(everyMAC, me.mac, etherARP, arp(arpReply, me.mac, me.ip, everyMAC, victim.ip, good)))
			b.WaitCaptured("eth0", good)
			if harness.CountFrames(b.Captured("eth0"), bad) > 0 {
				t.Error("after the repair a spoofed packet arrives")
			}
			issues := func() []openapi.Issue {
				return harness.Get[openapi.ObserverStatus](d, "/observer/status").LastIssues
			}
			if issues := issues(); len(issues) != 0 {
				t.Errorf("after the repair the observer reports %+v, want no issues", issues)
			}
		})
	}
}

// TestTeardownLeavesNothing compares the host before the first start and after a teardown.
func TestTeardownLeavesNothing(t *testing.T) {
	l := harness.NewLab(t)
	before := l.Host.Links("")
	d := l.StartDaemon(t)
	d.CreateNetwork("dark", "isolated", "10.3.0.0/24", map[string]any{"ipv6_subnet": "fd00:3::/64"})
	d.CreateVMWith("a", harness.OnNetworks("vman0", "dark"))
	d.CreatePortForward("a", "tcp", "0.0.0.0", 8080, 80)
	d.Action("a", "start")
	d.ForceStop("a")
	d.Stop()
	if links := l.Host.Links("vman0"); len(links) != 1 {
		t.Errorf("after the daemon has stopped, the bridges are %q, want vman0", links)
	}
	cmd := d.Command("network", "teardown")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := l.Host.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("vmand network teardown ended with %v\n%s", err, &out)
	}
	if after := l.Host.Links(""); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("the interfaces are %q, want %q", after, before)
	}
	if tables := l.Host.Tables(); len(tables) != 0 {
		t.Errorf("table %s is left", tables[0].Name)
	}
	// The next start sets everything up again.
	d.Start()
	d.StartAll("a")
}

// TestExistingHostBridge connects a guest to a bridge of the host, where vmand assigns no
// addresses.
func TestExistingHostBridge(t *testing.T) {
	l := harness.NewLab(t)
	l.Host.AddBridge("br-lan")
	l.Host.Must("put up0 into the bridge", func() error {
		master, err := netlink.LinkByName("br-lan")
		if err != nil {
			return err
		}
		up0, err := netlink.LinkByName("up0")
		if err != nil {
			return err
		}
		address := net.IPNet{IP: net.ParseIP(harness.HostAddress).To4(), Mask: net.CIDRMask(24, 32)}
		if err := netlink.AddrDel(up0, &netlink.Addr{IPNet: &address}); err != nil {
			return err
		}
		return netlink.LinkSetMaster(up0, master)
	})
	l.Host.AddAddress("br-lan", harness.HostAddress+"/24")
	d := l.StartDaemon(t)
	d.Call("POST", "/networks", map[string]any{"name": "lan", "mode": "bridge", "bridge": "br-lan"}).Want(201)
	lost := map[string]any{"name": "lost", "mode": "bridge", "bridge": "nothing"}
	d.Call("POST", "/networks", lost).Problem(503, "network-unavailable", "nothing")
	if v := d.CreateVMWith("a", harness.OnNetworks("lan")); v.LocalIP != nil || v.NICs[0].IP != nil {
		t.Errorf("the new VM is %+v", v)
	}
	d.Action("a", "start")
	a := d.Shell("a")
	a.Run("ip addr add 203.0.113.50/24 dev eth0")
	a.Reaches(harness.OutsideAddress)
	a.Run("ping -c 1 -W 5 %s", harness.HostAddress)
	harness.Eventually(t, 20*time.Second, "the address to be learned", func() error {
		v := d.VM("a")
		if harness.Deref(v.LocalIP) != "203.0.113.50" || *v.LocalIPSource != "neighbour" || !v.ReachableFromHost {
			return fmt.Errorf("the VM is %+v", v)
		}
		return nil
	})
	got, err := l.Other.HTTPGet("203.0.113.50:80")
	if err != nil || !strings.HasSuffix(got, "sees "+harness.OtherAddress) {
		t.Errorf("the guest answers another host with %q, %v", got, err)
	}
	d.Call("DELETE", "/vms/a", nil).Want(204)
	d.Call("DELETE", "/networks/lan", nil).Want(204)
	if links := l.Host.Links("br-lan"); len(links) != 1 {
		t.Error("deleting the network has deleted the host's bridge")
	}
}

// TestNetworkConflictsAreNamed drops forwarded packets on the host, as some firewalls do.
func TestNetworkConflictsAreNamed(t *testing.T) {
	l := harness.NewLab(t)
	drop := nftables.ChainPolicyDrop
	c := l.Host.Firewall()
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	c.AddChain(&nftables.Chain{
		Name:     "FORWARD",
		Table:    table,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter,
		Policy:   &drop,
	})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	d := l.StartDaemon(t)
	problems := d.Network("vman0").Problems
	if len(problems) != 1 || !strings.Contains(problems[0].Detail, "FORWARD") || problems[0].Fix == "" {
		t.Errorf("the problems are %+v, want one about the chain FORWARD, with a fix", problems)
	}
}

// TestDaemonOfAnOrdinaryUser runs the daemon as the user nobody, which owns only a home directory.
func TestDaemonOfAnOrdinaryUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test runs vmand as another user: run the tests as root")
	}
	l := harness.NewLab(t)
	const nobody = 65534
	d := harness.NewDaemon(t, "VMAN_NETWORK_MODE=auto")
	d.Host = l.Host
	d.User = &syscall.Credential{Uid: nobody, Gid: nobody}
	home := moveTo(d, nobody)
	d.Env = append(d.Env, "HOME="+home, "VMAN_DEFAULT_BOOT_DISK="+home+"/disk.qcow2")
	d.Start()
	d.CreateTemplate()
	if n := d.Network("vman0"); n.Mode != "user" {
		t.Errorf("the default network is %+v, want the mode user", n)
	}
	if v := d.CreateVM("a"); v.LocalIP == nil || v.ReachableFromHost {
		t.Errorf("the new VM is %+v", v)
	}
	tcp := d.CreatePortForward("a", "tcp", "0.0.0.0", 8080, 80)
	udp := map[string]any{"protocol": "udp", "host_address": "0.0.0.0", "host_port": 7007, "guest_port": 7}
	d.Action("a", "start")
	assertUserNetworkWorks(l, d)
	// passt takes its port forwards from its command line.
	d.Call("POST", "/vms/a/port_forwards", udp).Problem(409, "invalid-state", "while it runs")
	d.ForceStop("a")
	d.Call("POST", "/vms/a/port_forwards", udp).Want(201)
	d.Action("a", "start")
	assertUserNetworkWorks(l, d)
	if got := echoUDP(t, l.Other, harness.HostAddress+":7007"); got != "hello" {
		t.Errorf("the UDP echo is %q, want hello", got)
	}
	d.Kill()
	d.Start()
	l.Other.WaitHTTP(harness.HostAddress + ":8080")
	d.ForceStop("a")
	d.Stop()
	// Without passt, vmand uses the user-mode network of QEMU.
	d.Env = append(d.Env, "VMAN_NETWORK_PASST=/nonexistent/passt")
	d.Start()
	d.Action("a", "start")
	assertUserNetworkWorks(l, d)
	d.Call("DELETE", "/vms/a/port_forwards/"+tcp.ID, nil).Want(204)
	if conn, err := l.Other.Dial(harness.HostAddress + ":8080"); err == nil {
		conn.Close()
		t.Error("a deleted port forward is open")
	}
	d.CreatePortForward("a", "tcp", harness.HostAddress, 8080, 80)
	l.Other.WaitHTTP(harness.HostAddress + ":8080")
	if uid := harness.ProcStatus(t, d.VMPID("a"), "Uid"); !strings.HasPrefix(uid, fmt.Sprint(nobody)) {
		t.Errorf("QEMU runs with the uids %s, want %d", uid, nobody)
	}
	a := d.Call("POST", "/networks", map[string]any{"name": "red", "mode": "nat"})
	if a.Status != http.StatusServiceUnavailable {
		t.Errorf("%s answered %d, want 503: a bridge needs privileges\n%s", a.Request, a.Status, a.Body)
	}
}

// TestUserModeStartsWithoutADefaultRoute starts a VM on a host that has no default route, and gets
// one later.
func TestUserModeStartsWithoutADefaultRoute(t *testing.T) {
	l := harness.NewLab(t)
	l.Host.DeleteRoute("0.0.0.0/0", harness.OutsideAddress)
	d := l.StartDaemon(t, "VMAN_NETWORK_MODE=user")
	d.CreateVM("a")
	body := map[string]any{"host_port": 8080, "guest_port": 80, "ports": 10}
	d.Call("POST", "/vms/a/port_forwards", body).Want(201)
	d.Action("a", "start")
	a := d.Shell("a")
	if got := l.Other.WaitHTTP(harness.HostAddress + ":8080"); !strings.HasSuffix(got, " sees "+harness.OtherAddress) {
		t.Errorf("the guest answers another host with %q", got)
	}
	a.Reaches(harness.OutsideAddress)
	a.StartUnreachable(harness.FarAddress)()
	l.Host.AddRoute("", harness.OutsideAddress)
	a.Reaches(harness.FarAddress)
}

// assertUserNetworkWorks fails the test unless VM a, which has just been started on a
// user-mode network, can be reached through its port forward and can reach other hosts.
func assertUserNetworkWorks(l *harness.Lab, d *harness.Daemon) {
	d.T.Helper()
	a := d.Shell("a")
	for _, address := range []string{"127.0.0.1", harness.HostAddress} {
		l.Host.WaitHTTP(address + ":8080")
	}
	l.Other.WaitHTTP(harness.HostAddress + ":8080")
	if got := a.Run("ip -4 addr show dev eth0"); !strings.Contains(got, "inet "+*d.VM("a").LocalIP+"/") {
		d.T.Errorf("the guest has %s, want the address %s", got, *d.VM("a").LocalIP)
	}
	a.Reaches(harness.FarAddress)
	a.Reaches("www.example")
}

// moveTo gives the daemon's directory to a user, with copies of vmand and the guest's disk.
func moveTo(d *harness.Daemon, uid int) string {
	d.T.Helper()
	home := d.StateDir + "-home"
	if err := os.Mkdir(home, 0o700); err != nil {
		d.T.Fatal(err)
	}
	if err := harness.Build(home + "/vmand"); err != nil {
		d.T.Fatal(err)
	}
	d.Binary = home + "/vmand"
	disk, err := os.ReadFile(harness.GuestFile("disk-net.qcow2"))
	if err != nil {
		d.T.Fatal(err)
	}
	if err := os.WriteFile(home+"/disk.qcow2", disk, 0o600); err != nil {
		d.T.Fatal(err)
	}
	for _, path := range []string{home, home + "/vmand", home + "/disk.qcow2", strings.TrimSuffix(home, "/s-home")} {
		if err := os.Chown(path, uid, uid); err != nil {
			d.T.Fatal(err)
		}
	}
	return home
}
