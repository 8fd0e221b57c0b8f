package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmand/test/harness"
)

// benchHost starts a daemon with bridges in a namespace of its own.
func benchHost(b *testing.B, env ...string) *harness.Daemon {
	b.Helper()
	host := harness.NewNamespace(b, "host")
	d := benchDaemon(b, append([]string{"VMAN_OBSERVER_INTERVAL=5s", "VMAN_NETWORK_MODE=bridge"}, env...)...)
	d.Host = host
	d.Start()
	d.SkipContract()
	d.CreateTemplate()
	return d
}

// benchNetworkStart starts a VM with a NIC on the default network and a VM without a NIC.
func benchNetworkStart(b *testing.B, t *table) {
	const most = 15 * time.Millisecond
	d := benchHost(b)
	d.CreateVM("with")
	d.CreateVMWith("without", map[string]any{"nics": []any{}})
	var with, without []time.Duration
	for b.Loop() {
		without = append(without, took(func() { d.Action("without", "start") }))
		d.ForceStop("without")
		with = append(with, took(func() { d.Action("with", "start") }))
		d.ForceStop("with")
	}
	added := median(with) - median(without)
	t.add(row{
		what:      "time that a NIC on a NAT network adds to a start",
		value:     millis(added),
		reference: "0 ms",
		target:    "less than " + millis(most),
		met:       added < most,
	})
	t.atMost("start with a NIC, against without", with, without, 0)
}

// benchDHCP requests the addresses of VMs, one after the other.
func benchDHCP(b *testing.B, t *table) {
	const vms, each = 40, 5 // the rate of requests of one VM is limited
	d := benchHost(b)
	client := harness.NewNamespace(b, "client")
	client.Plug("eth0", d.Host, "vman0")
	var times []time.Duration
	for i := range vms {
		v := d.CreateVM(fmt.Sprintf("vm-%d", i))
		mac, err := net.ParseMAC(v.NICs[0].MAC)
		if err != nil {
			b.Fatal(err)
		}
		client.Must("ask for an address", func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetHardwareAddr(link, mac); err != nil { // a server answers only the VM's own MAC address
				return err
			}
			c, err := nclient4.New("eth0", nclient4.WithHWAddr(mac), nclient4.WithTimeout(2*time.Second))
			if err != nil {
				return err
			}
			defer c.Close()
			for range each {
				var lease *nclient4.Lease
				times = append(times, took(func() { lease, err = c.Request(b.Context(), dhcpv4.WithBroadcast(true)) }))
				if err != nil {
					return err
				}
				if got := lease.ACK.YourIPAddr.String(); got != *v.LocalIP {
					return fmt.Errorf("VM %s was given %s, want %s", v.ID, got, *v.LocalIP)
				}
			}
			return nil
		})
	}
	for b.Loop() { // required; the measurement is above
	}
	slices.Sort(times)
	t.add(row{what: "DHCP exchange of four messages, median", value: micros(median(times))})
	t.add(row{what: "DHCP exchange of four messages, 99th percentile", value: micros(times[len(times)*99/100])})
}

// benchThroughput runs iperf3 in a guest over vmand's interface. The reference is a tap made
// by hand for the same QEMU on the same host.
func benchThroughput(b *testing.B, t *table) {
	const least = 0.95
	d := benchHost(b, harness.BootDisk("bench"))
	d.CreateVM("a")
	s := d.StartAll("a")[0]
	handTap(d, "a")
	iperf(d.Host, guestFiles(b, "bench"))
	s.Run("until [ -e /run/nic/eth1/pid ]; do usleep 20000; done; kill $(cat /run/nic/eth1/pid)")
	s.Run("ip addr add 10.9.9.2/24 dev eth1; ip link set eth1 up")
	for _, way := range []struct{ what, flag string }{{"guest to host", ""}, {"host to guest", "-R"}} {
		var ours, byHand, ratios []float64
		for range 3 {
			ours = append(ours, throughput(s, "192.168.100.1", way.flag))
			byHand = append(byHand, throughput(s, "10.9.9.1", way.flag))
			ratios = append(ratios, ours[len(ours)-1]/byHand[len(byHand)-1])
		}
		ratio := median(ratios)
		t.add(row{
			what:      "TCP from " + way.what + ", against a tap by hand",
			value:     gigabits(median(ours)),
			reference: gigabits(median(byHand)),
			ratio:     ratio,
			target:    fmt.Sprintf("at least %.2f x", least),
			met:       ratio >= least,
		})
	}
	for b.Loop() { // required; the measurement is above
	}
}

func gigabits(bits float64) string { return fmt.Sprintf("%.2f Gbit/s", bits/1e9) }

// throughput returns the bits per second that iperf3 reports as received.
func throughput(s *harness.Shell, address, flag string) float64 {
	s.Daemon.T.Helper()
	var report struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	out := s.Run("iperf3 -J -t 3 -O 1 -c %s %s", address, flag)
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.End.Received.Bits == 0 {
		s.Daemon.T.Fatalf("iperf3 printed %s (%v)", out, err)
	}
	return report.End.Received.Bits
}

// guestFiles unpacks the file system of a variant of the guest into a directory.
func guestFiles(t testing.TB, name string) string {
	t.Helper()
	dir := t.TempDir()
	unpack := exec.Command("tar", "-x", "-C", dir, "-f", harness.GuestFile(".cache/"+name+".tar"))
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpack the guest's programs: %v\n%s", err, out)
	}
	return dir
}

// iperf runs the guest's iperf3 as a server in the namespace until the test ends.
func iperf(n *harness.Namespace, files string) {
	n.T.Helper()
	loader, libraries := filepath.Join(files, "lib64/ld-linux-x86-64.so.2"), filepath.Join(files, "usr/lib")
	cmd := exec.Command(loader, "--library-path", libraries, filepath.Join(files, "bin/iperf3"), "-s")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.Start(cmd); err != nil {
		n.T.Fatal(err)
	}
	n.T.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	harness.Eventually(n.T, 10*time.Second, "iperf3 to listen", func() error {
		conn, err := n.Dial("127.0.0.1:5201")
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// handTap plugs a NIC into a running VM, with a tap on a bridge that vmand does not know. The
// address of the bridge is 10.9.9.1.
func handTap(d *harness.Daemon, id string) {
	d.T.Helper()
	d.Host.AddBridge("by-hand")
	d.Host.AddAddress("by-hand", "10.9.9.1/24")
	var tap *os.File
	d.Host.Must("make a tap", func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		tap = os.NewFile(uintptr(fd), "tap")
		req, err := unix.NewIfreq("tap-by-hand")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		link, err := netlink.LinkByName("tap-by-hand")
		if err != nil {
			return err
		}
		bridge, err := netlink.LinkByName("by-hand")
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(link, bridge)
	})
	defer tap.Close()
	d.Host.LinkUp("tap-by-hand")
	ctx, cancel := context.WithTimeout(d.T.Context(), 20*time.Second)
	defer cancel()
	monitor, err := d.Monitor(ctx, id)
	if err != nil {
		d.T.Fatal(err)
	}
	defer monitor.Close()
	for _, c := range []struct {
		command string
		args    map[string]any
		files   []*os.File
	}{
		{"getfd", map[string]any{"fdname": "by-hand"}, []*os.File{tap}},
		{"netdev_add", map[string]any{"type": "tap", "id": "by-hand", "fd": "by-hand"}, nil},
		{"device_add", map[string]any{
			"driver": "virtio-net-pci", "id": "by-hand-nic", "bus": "port-2", "addr": "0x0",
			"netdev": "by-hand", "mac": "52:00:00:09:09:02", "romfile": "",
		}, nil},
	} {
		if err := monitor.Execute(ctx, c.command, c.args, nil, c.files...); err != nil {
			d.T.Fatalf("plug a NIC by hand into VM %s: %s: %v", id, c.command, err)
		}
	}
}
