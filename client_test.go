package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"vmand/cli"
)

// A vman runs the client against a daemon.
type vman struct {
	t   *testing.T
	ran map[string]bool // the commands that were run
}

// newVman makes the daemon r the one that the client talks to.
func newVman(t *testing.T, r *running) *vman {
	t.Helper()
	for _, name := range []string{"VMAN_URL", "VMAN_CONTEXT", "VMAN_TOKEN", "VMAN_TOKEN_FILE", "NO_COLOR"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("VMAN_SOCKET", r.listeners[0].Addr().String())
	return &vman{t: t, ran: map[string]bool{}}
}

// run runs a command line, checks its exit status, and returns its output.
func (v *vman) run(status int, args ...string) string {
	v.t.Helper()
	in, err := os.Open(os.DevNull)
	if err != nil {
		v.t.Fatal(err)
	}
	defer in.Close()
	for i := range args {
		v.ran[strings.Join(args[:i+1], " ")] = true
	}
	var out, said bytes.Buffer
	got := cli.Run(v.t.Context(), args, cli.Streams{In: in, Out: &out, Err: &said}, "1.2.3")
	if got != status {
		v.t.Errorf("vman %s: status %d, want %d\n%s%s", strings.Join(args, " "), got, status, out.String(), said.String())
	}
	return strings.TrimSpace(out.String())
}

// has runs a command line, which must succeed, and checks that its output contains the words.
func (v *vman) has(words string, args ...string) {
	v.t.Helper()
	if out := v.run(0, args...); !strings.Contains(out, words) {
		v.t.Errorf("vman %s printed %q, want %q in it", strings.Join(args, " "), out, words)
	}
}

// file writes a file and returns its path.
func (v *vman) file(name, content string) string {
	v.t.Helper()
	path := filepath.Join(v.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		v.t.Fatal(err)
	}
	return path
}

// TestEveryCommandOfTheClient runs each command of the reference against a daemon.
func TestEveryCommandOfTheClient(t *testing.T) {
	v := newVman(t, start(t, dryRun(t)))
	v.vms()
	v.guests()
	v.disks()
	v.imagesAndDrives()
	v.networks()
	v.host()

	text, err := os.ReadFile("docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := regexp.MustCompile(`(?m)^### vman (.+)$`).FindAllStringSubmatch(string(text), -1)
	for _, m := range commands {
		if !v.ran[m[1]] {
			t.Errorf("vman %s was not run", m[1])
		}
	}
	if len(commands) < 60 {
		t.Errorf("the reference has only %d commands", len(commands))
	}
}

func (v *vman) vms() {
	key := v.file("key.pub", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA a@b\n")
	v.has("VM web is running", "launch", "web")
	v.has("VM db created", "create", "db", "--cpus", "2", "--memory", "2G", "--disk", "20G", "-l", "team=a",
		"--ssh-key", key, "--hostname", "db", "--restart-policy", "always", "--description", "the database")
	v.has("VM db is running", "start", "db")
	v.run(4, "start", "db")
	v.has("VM db is paused", "pause", "db")
	v.has("VM db is running", "resume", "db")
	v.has("reset", "reset", "db")
	v.has("interrupted", "nmi", "db")
	v.has("VM db is running", "restart", "-l", "team=a", "--force")
	v.has("VM db is stopped", "stop", "db", "--timeout", "5s")
	v.has("cpu2-mem2g", "show", "db")
	v.has("team=a", "ls", "-o", "wide", "-l", "team=a", "--state", "stopped")
	v.has("changed: autostart, labels", "set", "db", "labels.team=b", "labels.new=c", "autostart=true")
	v.has("new=c,team=b", "show", "db")
	v.run(2, "set", "db", "autostrat=true")
	v.run(2, "set", "db", "autostart=maybe")
	v.t.Setenv("EDITOR", `sed -i -e s/new:.c/new:\x20d/ -e /^restart_policy/s/always/never/`)
	v.has("changed: labels, restart_policy", "edit", "db")
	v.t.Setenv("EDITOR", "true")
	v.has("not changed", "edit", "db")
	v.has("db", "why", "db")
	v.has("state=stopped", "wait", "db", "--for", "state=stopped")
	v.run(4, "wait", "db", "--for", "agent", "--timeout", "10s")
	v.run(7, "wait", "web", "--for", "state=error", "--timeout", "100ms")
	v.run(3, "rm", "gone", "--yes")
	v.run(2, "rm", "db")
}

func (v *vman) guests() {
	v.has("", "logs", "web", "--tail", "1K")
	// A dry run has no guests.
	v.run(1, "exec", "web", "--", "true")
	v.run(1, "cp", v.file("a", "text"), "web:/tmp/")
	v.run(1, "cp", "web:/etc/motd", "-")
	v.run(1, "guest", "web")
	v.run(1, "trim", "web")
	v.run(2, "password", "web", "root")
	v.run(4, "console", "db", "--read-only")
	v.run(2, "cp", v.t.TempDir(), "web:/tmp/x")
	v.has("instance_id", "cloud-init", "show", "db")
	v.has("replaced", "cloud-init", "set", "db", "--user-data", v.file("data", "#cloud-config\nruncmd: [ls]\n"))
}

func (v *vman) disks() {
	id := v.run(0, "disk", "create", "1.5G", "-q")
	v.has("1.5G", "disk", "ls", "--state", "available")
	v.has("size_bytes: 1610612736", "disk", "show", id)
	v.has("attached to VM web", "disk", "attach", id, "web")
	v.run(4, "disk", "rm", id, "--yes")
	v.has("detached", "disk", "detach", id)
	v.has("resized to 2G", "disk", "resize", id, "2G")
	v.run(2, "disk", "resize", id, "1G")
	v.has("deleted", "disk", "rm", id, "--yes")
}

func (v *vman) imagesAndDrives() {
	v.has("debian-12", "image", "catalog")
	raw := v.file("golden.raw", strings.Repeat("\x01", 1<<20))
	v.has("image golden is available", "image", "upload", raw)
	v.has("golden", "image", "ls", "--state", "available")
	v.has("name: golden", "image", "show", "golden")
	target := filepath.Join(v.t.TempDir(), "out.raw")
	v.has("saved as", "image", "download", "golden", "--file", target)
	if info, err := os.Stat(target); err != nil || info.Size() == 0 {
		v.t.Errorf("the download is %v, %v", info, err)
	}
	v.run(4, "image", "download", "golden", "--file", target)
	v.has("changed: description", "image", "set", "golden", "description=7")
	v.t.Setenv("EDITOR", "sed -i s/7/8/")
	v.has("changed: description", "image", "edit", "golden")
	v.run(3, "image", "import", "debain-12")
	v.run(2, "image", "import", "x", "ftp://example.com/x")
	v.has("", "image", "import", "copy", "--from-disk", v.run(0, "disk", "create", "1M", "-q"))
	v.run(0, "launch", "golden", "--name", "made", "--template", "cpu1-mem1g", "-q")
	v.run(3, "launch", "goldne", "--name", "other")
	v.has("deleted", "rm", "made", "--yes")
	v.has("deleted", "image", "rm", "golden", "--yes")
	v.has("", "cdrom", "ls", "web")
	v.run(2, "cdrom", "insert", "web", "none")
	v.run(3, "cdrom", "eject", "web", "cd-1")
}

func (v *vman) networks() {
	v.has("created", "network", "create", "lab", "--mode", "user")
	v.has("lab", "network", "ls")
	v.has("mode: user", "network", "show", "lab")
	v.has("changed: domain", "network", "set", "lab", "domain=lab.internal")
	v.t.Setenv("EDITOR", "true")
	v.has("not changed", "network", "edit", "lab")
	v.has("NIC 1 of VM db added", "nic", "add", "db", "--network", "lab")
	v.has("lab", "nic", "ls", "db")
	v.has("changed", "nic", "set", "db", "1", "--link-down")
	v.has("removed", "nic", "rm", "db", "1")
	v.has("deleted", "network", "rm", "lab", "--yes")
	v.has("port 80/tcp", "forward", "add", "db", "127.0.0.1:18080:80")
	forward := v.run(0, "forward", "ls", "db", "-q")
	v.has("removed", "forward", "rm", "db", forward)
	v.has("created", "template", "create", "small", "--memory", "512M")
	v.has("512M", "template", "ls")
	v.has("ram_amount: 512", "template", "show", "small")
	v.has("deleted", "template", "rm", "small", "--yes")
}

func (v *vman) host() {
	v.has("status", "health")
	v.has("vmand", "version")
	v.has("vm.created", "event", "--type", "vm.")
	v.has("repair mode", "observer", "status")
	v.run(3, "observer", "orphan", "adopt", "vms:none", "--template", "cpu1-mem1g")
	v.run(3, "observer", "orphan", "terminate", "vms:none", "--yes")
	v.run(3, "observer", "orphan", "delete", "disks:none", "--yes")
	op := strings.Fields(v.run(0, "op", "ls", "--resource", "vms/web", "-q"))[0]
	v.has("succeeded", "op", "ls", "--state", "succeeded")
	v.has("kind: vm.create", "op", "show", op)
	v.has("succeeded", "op", "wait", op)
	v.run(4, "op", "cancel", op)
	v.has(`"id"`, "api", "GET", "/vms/web")
	v.has("", "api", "PATCH", "vms/web", "-d", `{"autostart":true}`, "-i")
	v.run(3, "api", "get", "/vms/none", "-H", "X-Request-Id: mine")
	v.has("added", "context", "add", "here", "unix:"+os.Getenv("VMAN_SOCKET"))
	v.has("here", "context", "ls")
	v.has("is used", "context", "use", "here")
	v.has("url: unix:", "context", "show")
	v.has("removed", "context", "rm", "here")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		v.has("vman", "completion", shell)
	}
	v.has("web\trunning", "__complete", "stop", "")
	v.has("VM web deleted", "rm", "web", "db", "--yes")
}

func TestClientArgs(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"/usr/bin/vman ls", "ls"},
		{"vmand vman ls -q", "ls -q"},
		{"vmand", "-"},
		{"vmand console web", "-"},
	} {
		args, ok := clientArgs(strings.Fields(tt.args))
		if got := strings.Join(args, " "); got != tt.want && (ok || tt.want != "-") {
			t.Errorf("%s: %q, %t", tt.args, got, ok)
		}
	}
}
