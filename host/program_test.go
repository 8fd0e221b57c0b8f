package host_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmand/host"
)

func TestMain(m *testing.M) {
	if err := host.Confine(); err != nil { // as vmand does at its start
		panic(err)
	}
	os.Exit(m.Run())
}

// someone is the account that the tests start programs as: nobody if they run as
// root.
func someone() host.Account {
	if uid := os.Geteuid(); uid != 0 {
		return host.Account{UID: uid, GID: os.Getegid()}
	}
	return host.Account{UID: 65534, GID: 65534, Groups: []uint32{65533}}
}

// shell returns a program that runs a script.
func shell(script string) host.Program {
	return host.Program{Argv: []string{"/bin/sh", "-c", script}, Account: someone()}
}

// output runs a script to its end and returns its output.
func output(t *testing.T, p host.Program) string {
	t.Helper()
	out, err := p.Run(t.Context(), nil)
	if err != nil {
		t.Fatalf("%q: %v: %s", p.Argv, err, out)
	}
	return out
}

// start starts a program that the end of the test kills.
func start(t *testing.T, p host.Program) *host.Process {
	t.Helper()
	process, err := p.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(process.Kill)
	return process
}

// await polls until a condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within 20 s: %s", what)
		case <-tick.C:
		}
	}
}

func TestProcessInheritsNothingFromVmand(t *testing.T) {
	t.Setenv("SECRET", "of vmand")
	a := someone()
	for script, want := range map[string]string{
		"pwd":                               "/",
		"env | grep -c SECRET || true":      "0",
		"grep NoNewPrivs /proc/self/status": "NoNewPrivs:\t1",
		"grep CapEff /proc/self/status":     "CapEff:\t0000000000000000",
		"grep CapPrm /proc/self/status":     "CapPrm:\t0000000000000000",
		"id -u":                             fmt.Sprint(a.UID),
		"id -g":                             fmt.Sprint(a.GID),
		"readlink /proc/$$/fd/0":            "/dev/null",
		"[ $(cut -d' ' -f6 /proc/$$/stat) = $$ ] && echo its own session": "its own session",
	} {
		if got := output(t, shell(script)); got != want {
			t.Errorf("%s: %q; want %q", script, got, want)
		}
	}
	if got := output(t, host.Program{Argv: []string{"/bin/ls", "/proc/self/fd"}, Account: a}); got != "0\n1\n2\n3" { // 3 is the directory
		t.Errorf("its descriptors are %q", got)
	}
	if os.Geteuid() == 0 {
		if got := output(t, shell("id -G")); !slices.Equal(strings.Fields(got), []string{"65534", "65533"}) {
			t.Errorf("its groups are %s", got)
		}
	}
}

func TestProcessOfRootHasAnEmptyBoundingSet(t *testing.T) {
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	want := "CapBnd:\t0000000000000000"
	if unix.Prctl(unix.PR_CAPBSET_DROP, 1<<20, 0, 0, 0) == unix.EPERM { // without CAP_SETPCAP; else EINVAL
		want = "CapBnd:\t" + boundingSet(own)
	}
	for _, limits := range []host.Limits{{}, {OpenFiles: 64}} { // also behind prlimit
		p := shell("grep CapBnd /proc/self/status")
		p.Limits = limits
		if got := output(t, p); got != want {
			t.Errorf("%+v: %q; want %q", limits, got, want)
		}
	}
	// The set of vmand itself and of its other threads stays.
	after, err := os.ReadFile("/proc/self/status")
	if err != nil || boundingSet(after) != boundingSet(own) {
		t.Errorf("the bounding set of vmand was %s and is %s, %v", boundingSet(own), boundingSet(after), err)
	}
}

func boundingSet(status []byte) string {
	_, rest, _ := strings.Cut(string(status), "CapBnd:\t")
	set, _, _ := strings.Cut(rest, "\n")
	return set
}

func BenchmarkStart(b *testing.B) {
	p := host.Program{Argv: []string{"/bin/true"}, Account: someone()}
	for b.Loop() {
		if _, err := p.Run(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

func TestProcessGetsItsFiles(t *testing.T) {
	out, err := host.MemoryFile("out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p := shell("echo to 3 >&3; exec ls /proc/self/fd")
	p.Files = []*os.File{nil, out, nil, out}
	process := start(t, p)
	await(t, "the process ends", process.Exited)
	if got := host.Tail(out, 100); got != "to 3\n0\n1\n2\n3\n4" {
		t.Errorf("it wrote %q", got)
	}
}

func TestAProgramNeverRunsAsRoot(t *testing.T) {
	p := shell("true")
	p.Account = host.Account{}
	if process, err := p.Start(); err == nil {
		process.Kill()
		t.Error("a program without an account was started")
	}
}

func TestAProcessRunsWithTheNiceValueOfTheGuests(t *testing.T) {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	own := 20 - raw
	for _, test := range []struct{ nice, want int }{{own + 3, own + 3}, {own - 3, own}} {
		p := shell("nice")
		p.Nice = test.nice
		if got, want := output(t, p), fmt.Sprint(test.want); got != want {
			t.Errorf("with Nice %d, and vmand at %d, the nice value is %s; want %s", test.nice, own, got, want)
		}
	}
}

func TestLimitsHold(t *testing.T) {
	p := shell("ulimit -n; ulimit -v; ulimit -t; ulimit -f; ulimit -c")
	p.Limits = host.Limits{OpenFiles: 33, AddressSpace: 1 << 30, CPU: 90 * time.Second, FileSize: 1 << 20}
	// The shell counts memory in KiB and files in blocks of 512 bytes. Run returns
	// the last four lines.
	if got := strings.Fields(output(t, p)); !slices.Equal(got[:3], []string{"1048576", "90", "2048"}) {
		t.Errorf("its limits are %q", got)
	}
	p.Argv[2] = "ulimit -n"
	if got := output(t, p); got != "33" {
		t.Errorf("it may open %s files; want 33", got)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := p.Start(); !errors.Is(err, host.ErrNoPrlimit) {
		t.Errorf("without prlimit Start returns %v", err)
	}
}

func TestRunReturnsTheLastLinesAndTheStatus(t *testing.T) {
	out, err := shell("seq 9; echo broken >&2; exit 3").Run(t.Context(), nil)
	if out != "7\n8\n9\nbroken" || err == nil || err.Error() != "exit status 3" {
		t.Errorf("Run returns %q, %v", out, err)
	}
}

func TestRunShowsTheOutputWhileTheProgramRuns(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := ""
	_, err := shell("echo working; exec sleep 1000").Run(ctx, func(output *os.File) {
		if seen = host.Tail(output, 100); seen != "" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || seen != "working" {
		t.Errorf("Run returns %v and showed %q", err, seen)
	}
}

// toolDir names the directory that the child of a test works in.
const toolDir = "VMAN_TEST_HOST_DIR"

// A test that is its own child, killed, shows the effect of a kill of vmand.
func TestOnlyProcessesBoundToVmandEndWithIt(t *testing.T) {
	if dir := os.Getenv(toolDir); dir != "" {
		for _, name := range []string{"ends", "survives"} {
			p := shell("echo $$ >" + dir + "/" + name + "; exec sleep 1000")
			p.EndsWithVmand = name == "ends"
			if _, err := p.Start(); err != nil {
				t.Fatal(err)
			}
		}
		<-t.Context().Done()
	}
	dir, err := os.MkdirTemp("", "host")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil { // the programs run as another user
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), toolDir+"="+dir)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pids := map[string]int{}
	await(t, "both programs run", func() bool {
		for _, name := range []string{"ends", "survives"} {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			var pid int
			if _, err := fmt.Sscan(string(b), &pid); err == nil {
				pids[name] = pid
			}
		}
		return len(pids) == 2
	})
	survivor, err := host.OpenProcess(pids["survives"])
	if err != nil {
		t.Fatal(err)
	}
	defer survivor.Kill()
	victim, err := host.OpenProcess(pids["ends"])
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Kill()
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	child.Wait()
	await(t, "the tied process ends", victim.Exited)
	if survivor.Exited() {
		t.Error("the other process ended too")
	}
}

func TestEndOfAProcessIsDetected(t *testing.T) {
	process := start(t, shell("exit 7"))
	<-process.Done()
	if got := process.State(); got != "exit status 7" || !process.IsChild() {
		t.Errorf("it ended with %q", got)
	}
	if err := process.Signal(unix.SIGTERM); err != nil {
		t.Errorf("a signal after the end: %v", err)
	}
	if _, err := host.OpenProcess(process.PID); !errors.Is(err, host.ErrNoProcess) {
		t.Errorf("OpenProcess of a process that was reaped: %v", err)
	}

	process = start(t, shell("exec sleep 1000"))
	if process.Wait(nil, time.Millisecond) || process.State() != "" {
		t.Error("it has ended before it was killed")
	}
	if err := process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !process.Wait(nil, 20*time.Second) || process.State() != "signal: terminated" {
		t.Errorf("it ended with %q", process.State())
	}
}

func TestReleasedProcessKeepsRunning(t *testing.T) {
	process, err := shell("exec sleep 1000").Start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		unix.Kill(process.PID, unix.SIGKILL)
		unix.Wait4(process.PID, nil, 0, nil)
	}()
	process.Release()
	process.Release()
	if err := process.Signal(unix.SIGTERM); err == nil {
		t.Error("a process that was released takes a signal")
	}
	found, err := host.OpenProcess(process.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Release()
	if found.Exited() || found.IsChild() {
		t.Error("it has ended, or passes for a child")
	}
}

func TestAccountReadPermissions(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root acts as another user")
	}
	dir, err := os.MkdirTemp("", "host")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	a, path := someone(), filepath.Join(dir, "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := a.CanTraverse(dir); !errors.Is(err, unix.EACCES) {
		t.Errorf("CanTraverse of a private directory: %v", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := a.CanTraverse(dir); err != nil {
		t.Errorf("CanTraverse: %v", err)
	}
	write := func() error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		return err
	}
	for _, c := range []struct {
		what          string
		change        func() error
		read, written bool
	}{
		{"vmand's own", func() error { return f.Chmod(0o600) }, false, false},
		{"the account's", func() error { return a.Own(f) }, true, true},
		{"lent to the account", func() error { return a.Lend(f) }, true, false},
	} {
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		if err := a.CanRead(path); (err == nil) != c.read {
			t.Errorf("a file that is %s: CanRead returns %v", c.what, err)
		}
		if err := a.Do(write); (err == nil) != c.written {
			t.Errorf("a file that is %s: opened for writing: %v", c.what, err)
		}
	}
}

func TestErrorNamesAMissingProgram(t *testing.T) {
	if path, err := host.LookPath("no-such-program-here"); err == nil || err.Error() != "it is not installed" {
		t.Errorf("LookPath returns %q, %v", path, err)
	}
	if path, err := host.LookPath("sh"); err != nil || !filepath.IsAbs(path) {
		t.Errorf("LookPath returns %q, %v", path, err)
	}
}
