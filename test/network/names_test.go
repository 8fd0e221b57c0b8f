package network

import (
	"os"
	"strings"
	"testing"

	"vmand/openapi"
	"vmand/test/harness"
)

// TestNetworkBoot boots a guest by iPXE over HTTP from a server of the host, and then, after a
// change of the boot device, from its root disk.
func TestNetworkBoot(t *testing.T) {
	l := harness.NewLab(t)
	d := l.StartDaemon(t)
	files := serveFiles(t, l.Host, "192.168.100.1:8080", map[string][]byte{
		"/boot.ipxe": []byte("#!ipxe\n" +
			"kernel http://192.168.100.1:8080/vmlinuz console=ttyS0 quiet nokaslr netboot=${net0/ip} " +
			"initrd=initrd.img\n" +
			"initrd http://192.168.100.1:8080/initrd.img\n" +
			"boot\n"),
		"/vmlinuz":    guestFile(t, "vmlinuz"),
		"/initrd.img": guestFile(t, "initrd.img"),
	})
	d.Call("PATCH", "/networks/vman0", map[string]any{
		"pxe": map[string]any{"filename": "http://192.168.100.1:8080/boot.ipxe"},
	}).Want(200)
	v := d.CreateVMWith("a", map[string]any{"boot_device": "network"})
	if v.BootDevice != openapi.BootDeviceNetwork {
		t.Fatalf("the boot device is %q, want network", v.BootDevice)
	}
	a := d.StartAll("a")[0]
	if got := a.Run("cat /proc/cmdline"); !strings.Contains(got, "netboot="+*v.LocalIP) {
		t.Errorf("the command line of the guest's kernel is %q, want the one of boot.ipxe", got)
	}
	for _, name := range []string{"/boot.ipxe", "/vmlinuz", "/initrd.img"} {
		if n := files.count(name); n != 1 {
			t.Errorf("the guest has requested %s %d times, want once", name, n)
		}
	}
	d.Call("PATCH", "/vms/a", map[string]any{"boot_device": "disk"}).Want(200)
	d.ForceStop("a")
	a = d.StartAll("a")[0]
	if got := a.Run("cat /proc/cmdline"); strings.Contains(got, "netboot=") {
		t.Errorf("the guest still boots from the network: %q", got)
	}
	if n := files.count("/boot.ipxe"); n != 1 {
		t.Errorf("the guest has requested boot.ipxe %d times, want no more than once", n)
	}
}

func guestFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(harness.GuestFile(name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
