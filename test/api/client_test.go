package api

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmand/test/harness"
)

// A vman runs the client, with a link to the program under test.
type vman struct {
	*harness.Daemon
	link string
}

func newVman(t *testing.T, d *harness.Daemon) vman {
	t.Helper()
	link := filepath.Join(t.TempDir(), "vman")
	program, err := filepath.Abs(harness.Binary())
	if err == nil {
		err = os.Symlink(program, link)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.Env = append(d.Env, "HOME="+t.TempDir(), "XDG_CONFIG_HOME="+t.TempDir(), "VMAN_SOCKET="+filepath.Join(d.RuntimeDir, "vmand.sock"))
	return vman{d, link}
}

func (v vman) command(args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := v.Command(args...)
	cmd.Path, cmd.Args[0] = v.link, "vman"
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return cmd, &out
}

// run runs a command line and ends the test unless it ends with the status and its output
// contains the words.
func (v vman) run(status int, words string, args ...string) string {
	v.T.Helper()
	cmd, out := v.command(args...)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		v.T.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != status || !strings.Contains(out.String(), words) {
		v.T.Fatalf("vman %s: status %d, want %d and %q in\n%s", strings.Join(args, " "), got, status, words, out)
	}
	return strings.TrimSpace(out.String())
}

// TestClientFromLaunchToRemoval does with the client what a user does with a guest.
func TestClientFromLaunchToRemoval(t *testing.T) {
	v := newVman(t, harness.StartDaemon(t, harness.BootDisk("agent")))
	said := v.run(0, "VM web is running", "launch", "web", "--memory", "192M", "--for", "agent")
	for _, step := range []string{"VM web: QEMU is ready", "VM web: the guest agent answers"} {
		if !strings.Contains(said, step) {
			t.Errorf("launch does not show %q:\n%s", step, said)
		}
	}
	v.run(0, "web   running  1     192M", "ls")
	v.run(0, "Linux", "exec", "web", "uname")
	v.run(0, "a b", "exec", "web", "-e", "X=a b", "--", "sh", "-c", "echo $X")
	v.run(3, "", "exec", "web", "--", "sh", "-c", "exit 3")
	v.run(137, "", "exec", "web", "--", "sh", "-c", "kill -9 $$")
	v.run(4, "none", "exec", "web", "--", "/none")
	v.run(7, "continues in the guest", "exec", "web", "--timeout", "1s", "--", "sleep", "3")

	file := filepath.Join(t.TempDir(), "file")
	content := strings.Repeat("0123456789abcdef\x00\n", 10_000)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	v.run(0, "", "cp", file, "web:/tmp/")
	v.run(0, "180000", "exec", "web", "--", "wc", "-c", "/tmp/file")
	v.run(0, "", "cp", "web:/tmp/file", file+".back")
	if back, err := os.ReadFile(file + ".back"); err != nil || string(back) != content {
		t.Errorf("%d bytes came back, %v", len(back), err)
	}
	v.run(4, "none", "cp", "web:/none", file+".none")
	if _, err := os.Stat(file + ".none"); err == nil {
		t.Error("a failed copy left a file")
	}
	v.run(0, "VMT: ready", "logs", "web")
	v.run(0, "hostname", "guest", "web")

	disk := v.run(0, "", "disk", "create", "256M", "-q")
	v.run(0, "attached to VM web", "disk", "attach", disk, "web")
	v.run(0, "detached", "disk", "detach", disk)
	op := v.run(0, "", "restart", "web", "--force", "--no-wait")
	v.run(0, "succeeded", "op", "wait", op)
	v.run(0, "agent", "wait", "web", "--for", "agent")
	v.run(0, "VM web is paused", "pause", "web")
	v.run(0, "VM web is running", "resume", "web")
	v.run(0, "VM web is stopped", "stop", "web", "--force")
	v.run(4, "not running", "exec", "web", "--", "true")
	v.run(0, "VM web deleted", "rm", "web", "--yes")
	v.run(0, "disk "+disk+" deleted", "disk", "rm", disk, "--yes")
}

// TestClientLaunchesAnImage goes from an empty host to a program in a guest of an own image in two
// commands.
func TestClientLaunchesAnImage(t *testing.T) {
	v := newVman(t, harness.StartDaemon(t))
	v.run(0, "image tiny is available", "image", "upload", harness.GuestFile("disk-agent.qcow2"), "--name", "tiny")
	v.run(0, "the guest agent answers", "launch", "tiny", "--name", "web", "--memory", "192M", "--for", "agent")
	v.run(0, "Linux", "exec", "web", "uname")
	v.run(0, "", "rm", "web", "--yes")
	v.run(0, "", "image", "rm", "tiny", "--yes")
}

// An interrupted client leaves its operation running.
func TestClientIsInterrupted(t *testing.T) {
	v := newVman(t, harness.StartDaemon(t, harness.BootDisk("deaf"))) // ignores the power button
	v.run(0, "", "launch", "web", "--memory", "192M", "-q")
	cmd, out := v.command("stop", "web", "--timeout", "30m")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "the stop to begin", func() error {
		if ops := v.run(0, "", "op", "ls", "--state", "running"); !strings.Contains(ops, "vm.stop") {
			return errors.New(ops)
		}
		return nil
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(out.String(), "continues") {
		t.Errorf("status %d, want 130\n%s", code, out)
	}
	op := v.run(0, "", "op", "ls", "--state", "running", "-q")
	v.run(0, "being cancelled", "op", "cancel", op)
	v.run(0, "state=running", "wait", "web")
	v.run(0, "VM web is stopped", "stop", "web", "--force")
}

// A reader of the output that ends early ends the client without a message.
func TestClientWritesToAClosedPipe(t *testing.T) {
	v := newVman(t, harness.StartDaemon(t))
	v.run(0, "", "template", "create", "small", "--memory", "64M")
	cmd, said := v.command("template", "ls", "-o", "json")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	cmd.Stdout = writer
	err = cmd.Run()
	writer.Close()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGPIPE || said.Len() > 0 {
		t.Errorf("the client ended with %v and said %q, want SIGPIPE and nothing", err, said)
	}
}
