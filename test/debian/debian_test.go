//go:build debian

package debian

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"vmand/openapi"
	"vmand/test/harness"
)

// A login is an SSH key of the guests.
type login struct {
	signer ssh.Signer
	public string // a line of authorized_keys
}

func newLogin(t *testing.T) login {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return login{s, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))}
}

// run logs in to a guest, runs a command and returns its output and the host key of the
// guest.
func (g login) run(n *harness.Namespace, address, command string) (out, hostKey string) {
	n.T.Helper()
	var session *ssh.Session
	harness.Eventually(n.T, 2*time.Minute, "a login at "+address, func() error {
		conn, err := n.Dial(net.JoinHostPort(address, "22"))
		if err != nil {
			return err
		}
		config := ssh.ClientConfig{
			User:    "debian",
			Auth:    []ssh.AuthMethod{ssh.PublicKeys(g.signer)},
			Timeout: 30 * time.Second,
			HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
				hostKey = ssh.FingerprintSHA256(key)
				return nil
			},
		}
		c, chans, reqs, err := ssh.NewClientConn(conn, address, &config)
		if err != nil {
			conn.Close()
			return err
		}
		client := ssh.NewClient(c, chans, reqs)
		n.T.Cleanup(func() { client.Close() })
		session, err = client.NewSession()
		return err
	})
	defer session.Close()
	text, err := session.CombinedOutput(command)
	if err != nil {
		n.T.Fatalf("%s: %v\n%s", command, err, text)
	}
	return strings.TrimSpace(string(text)), hostKey
}

// stage runs f and prints its duration.
func stage(t *testing.T, what string, f func()) {
	t.Helper()
	begin := time.Now()
	f()
	fmt.Printf("debian: %s: %.1f s\n", what, time.Since(begin).Seconds())
}

// judge has cloud-init in a guest process the table of texts that the tests of package vm use,
// and compares its verdicts with those in the table.
func judge(t *testing.T, d *harness.Daemon, id string) {
	const table = "../../vm/testdata/cloudinit.json"
	for from, to := range map[string]string{"judge.py": "/root/judge.py", table: "/root/table.json"} {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		d.Call("PUT", "/vms/"+id+"/files?path="+to, content).Want(204)
	}
	var texts []struct{ Name, Verdict string }
	content, err := os.ReadFile(table)
	if err == nil {
		err = json.Unmarshal(content, &texts)
	}
	if err != nil {
		t.Fatal(err)
	}
	var verdicts map[string]string
	const seconds = 300 // it takes more than a minute under TCG
	if err := json.Unmarshal([]byte(d.ExecWithin(id, "python3 /root/judge.py /root/table.json", seconds)), &verdicts); err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		if got := verdicts[text.Name]; (got == "used") != (text.Verdict == "used") {
			t.Errorf("%s: cloud-init of the guest says %q, and the table %q", text.Name, got, text.Verdict)
		}
	}
}

// TestDebian boots a cloud image, makes an image of the VM and boots a second VM of it.
func TestDebian(t *testing.T) {
	file := os.Getenv("VMAN_TEST_DEBIAN")
	l := harness.NewLab(t)
	d := l.StartDaemon(t, "VMAN_DEFAULT_BOOT_DISK=")
	d.Call("POST", "/templates", map[string]any{"name": "medium", "cpu_count": 2, "ram_amount": 512}).Want(201)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	stage(t, fmt.Sprintf("import of %d MiB", len(content)>>20), func() {
		d.Call("POST", "/images?name=debian-12&sha256="+hex.EncodeToString(sum[:]), content).Want(201)
	})
	key := newLogin(t)
	boot := func(name, image string) openapi.VM {
		var v openapi.VM
		stage(t, "VM "+name+" of image "+image+", until cloud-init is done", func() {
			a := d.Call("POST", "/vms?wait_for=cloud-init", map[string]any{
				"template_name":  "medium",
				"name":           name,
				"image":          image,
				"root_disk_size": 4,
				"start":          true,
				"cloud_init":     map[string]any{"ssh_authorized_keys": []string{key.public}},
			}, "Prefer: wait=300")
			for begin := time.Now(); a.Status == 202 && time.Since(begin) < 10*time.Minute; { // slow without KVM
				a = d.Call("GET", "/vms/"+name, nil).Want(200)
				if harness.As[openapi.VM](a).Boot.CloudInitAt == nil {
					d.WaitPasses(1)
					a.Status = 202
				}
			}
			v = harness.Get[openapi.VM](d, "/vms/"+name)
		})
		if v.State != "running" || v.Boot.CloudInitResult == nil || *v.Boot.CloudInitResult != "done" {
			t.Fatalf("VM %s is %+v, want cloud-init done\n%s", name, v, d.Call("GET", "/vms/"+name+"/cloud_init", nil).Body)
		}
		for what, at := range map[string]*openapi.Time{
			"first serial byte": v.Boot.FirstSerialAt,
			"DHCP ACK":          v.Boot.DHCPAckAt,
			"agent":             v.Boot.AgentAt,
			"cloud-init":        v.Boot.CloudInitAt,
		} {
			if at == nil {
				t.Errorf("the boot of VM %s has no time of %s: %+v", name, what, v.Boot)
				continue
			}
			after := at.Sub(v.Boot.SpawnedAt.Time).Seconds()
			fmt.Printf("debian: VM %s: %s %.1f s after the start of QEMU\n", name, what, after)
		}
		return v
	}
	one := boot("one", "debian-12")
	var identity, host string
	const identify = "hostname; cat /etc/machine-id; df -BM --output=size / | tail -n 1"
	stage(t, "SSH to one", func() {
		identity, host = key.run(l.Host, *one.LocalIP, identify)
	})
	words := strings.Fields(identity)
	if len(words) != 3 || words[0] != "one" || len(words[2]) != 5 || words[2] < "3500M" {
		t.Errorf("the guest printed %q, want its name, a machine-id and more than 3500M", words)
	}
	if got := d.Exec("one", "id -un debian; cloud-init status"); got != "debian\nstatus: done" {
		t.Errorf("the agent returned %q", got)
	}
	stage(t, "cloud-init's own verdict on the table of user data", func() { judge(t, d, "one") })
	stage(t, "a disk plugged in, mounted and written", func() {
		disk := d.CreateDisk(1)
		disk = d.AttachDisk(disk.ID, "one")
		d.Exec("one", "udevadm settle; mkfs.ext4 -q "+*disk.GuestDevice+
			" && mount "+*disk.GuestDevice+" /mnt && echo kept >/mnt/file && umount /mnt")
		d.Call("POST", "/disks/"+disk.ID+"/detach", nil).Want(200)
		d.Call("POST", "/images", map[string]any{"name": "data", "from_disk": disk.ID}, harness.Wait).Want(201)
		again := harness.As[openapi.Disk](d.Call("POST", "/disks", map[string]any{"image": "data"}).Want(201))
		again = d.AttachDisk(again.ID, "one")
		got := d.Exec("one", "udevadm settle; mount "+*again.GuestDevice+" /mnt && cat /mnt/file && umount /mnt")
		if got != "kept" {
			t.Errorf("the file on the copy of the disk contains %q, want kept", got)
		}
	})
	stage(t, "an image made of one", func() {
		d.Exec("one", "cloud-init clean --logs && truncate -s 0 /etc/machine-id && sync")
		d.Call("POST", "/vms/one/actions/stop", map[string]any{"timeout_seconds": 120}, harness.Wait).Want(200)
		d.Call("POST", "/images", map[string]any{"name": "mine", "from_disk": "one"}, harness.Wait).Want(201)
	})
	two := boot("two", "mine")
	again, other := key.run(l.Host, *two.LocalIP, identify)
	second := strings.Fields(again)
	if len(second) != 3 || second[0] != "two" || second[1] == words[1] || other == host || *two.LocalIP == *one.LocalIP {
		t.Errorf("guest two is %q (%s, %s), want other values than guest one, %q (%s, %s)",
			second, other, *two.LocalIP, words, host, *one.LocalIP)
	}
	var log bytes.Buffer
	log.Write(d.Call("GET", "/vms/two/console/log", nil).Want(200).Body)
	if !strings.Contains(log.String(), "login:") {
		t.Errorf("the console log is %q, want a login prompt", log.String())
	}
}
