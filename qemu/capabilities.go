package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/qemu/qmp"
	"vmand/vm"
)

// capabilities is what a QEMU binary can do.
type capabilities struct {
	Version string `json:"version"`
	Machine string `json:"machine"` // the newest versioned q35
}

// fileIdentity tells one version of a file from another.
type fileIdentity struct {
	Path    string    `json:"path"`
	ModTime time.Time `json:"mod_time"`
	Size    int64     `json:"size"`
}

func identify(path string) (fileIdentity, error) {
	st, err := os.Stat(path)
	if err != nil {
		return fileIdentity{}, err
	}
	return fileIdentity{Path: path, ModTime: st.ModTime().UTC(), Size: st.Size()}, nil
}

// probes is what was found out about the binary and the host, kept in a file so
// that a restart does not pay for it again.
type probes struct {
	Binary       fileIdentity  `json:"binary"`
	Capabilities capabilities  `json:"capabilities"`
	Accel        *accelVerdict `json:"accel,omitempty"`
}

// probeTimeout bounds the questions to a QEMU that runs no machine.
const probeTimeout = 15 * time.Second

// probe returns what is known about the installed QEMU; with accel also what
// guests will run on. It asks only what has changed since it was last asked.
func (d *Driver) probe(ctx context.Context, accel bool) (probes, error) {
	path, err := host.LookPath(d.opts.Binary)
	if err != nil {
		return probes{}, unavailable(err, d.opts.Binary, "qemu-system-x86")
	}
	id, err := identify(path)
	if err != nil {
		return probes{}, unavailable(err, path, "qemu-system-x86")
	}
	select {
	case d.probing <- struct{}{}:
		defer func() { <-d.probing }()
	case <-ctx.Done():
		return probes{}, monitorFault("", "probe", ctx.Err())
	}
	known := d.probed
	if known.Binary == (fileIdentity{}) {
		known = d.loadProbes()
	}
	changed := false
	if known.Binary != id {
		caps, err := d.askCapabilities(ctx, path)
		if err != nil {
			return probes{}, unavailable(err, path, "qemu-system-x86")
		}
		known, changed = probes{Binary: id, Capabilities: caps}, true
	}
	if accel {
		host := d.hostIdentity()
		if known.Accel == nil || known.Accel.Host != host {
			verdict := d.probeAccel(ctx, path, host)
			if ctx.Err() != nil {
				return probes{}, monitorFault("", "probe", ctx.Err())
			}
			known.Accel, changed = &verdict, true
		}
	}
	d.probed = known
	if changed {
		d.saveProbes(known)
	}
	return known, nil
}

func (d *Driver) loadProbes() probes {
	var p probes
	b, err := d.state.ReadFile(probesFile)
	if err != nil || json.Unmarshal(b, &p) != nil {
		return probes{} // asking again is always right
	}
	return p
}

func (d *Driver) saveProbes(p probes) {
	b, err := json.MarshalIndent(p, "", "  ")
	if err == nil {
		err = host.WriteFile(d.state, probesFile, 0o600, func(f *os.File) error {
			_, err := f.Write(append(b, '\n'))
			return err
		})
	}
	if err != nil {
		d.log.Warn("what was learned about QEMU is not kept: it will be asked again at the next start", "error", err)
	}
}

func unavailable(err error, tool, pkg string) error {
	var known *vm.Fault
	if errors.As(err, &known) {
		return err
	}
	f := fault(vm.CodeQEMUUnavailable, err, "%s (of the Debian package %s) cannot be used", tool, pkg)
	f.Hint = "install it: apt-get install " + pkg
	return f
}

// askCapabilities asks a binary over QMP.
func (d *Driver) askCapabilities(ctx context.Context, binary string) (capabilities, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	x, err := d.examine(ctx, binary, "-machine", "none")
	if err != nil {
		return capabilities{}, err
	}
	defer x.end()
	var machines []struct {
		Name string `json:"name"`
	}
	if err := x.conn.Execute(ctx, "query-machines", nil, &machines); err != nil {
		return capabilities{}, x.explain(err)
	}
	v := x.conn.Version().QEMU
	caps := capabilities{Version: fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)}
	names := make([]string, len(machines))
	for i, m := range machines {
		names[i] = m.Name
	}
	if caps.Machine = newestQ35(names); caps.Machine == "" {
		return capabilities{}, fmt.Errorf("%s has no versioned q35 machine type", binary)
	}
	return caps, nil
}

var q35Pattern = regexp.MustCompile(`^pc-q35-(\d{1,4})\.(\d{1,4})$`)

// newestQ35 returns the newest versioned q35 machine type, empty if none is.
func newestQ35(names []string) string {
	var newest string
	var best [2]int
	for _, name := range names {
		m := q35Pattern.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		major, _ := strconv.Atoi(m[1]) // the pattern admits nothing else
		minor, _ := strconv.Atoi(m[2])
		if major > best[0] || major == best[0] && minor > best[1] {
			newest, best = name, [2]int{major, minor}
		}
	}
	return newest
}

// examination is a QEMU that was started only to be asked.
type examination struct {
	proc   *host.Process
	conn   *qmp.Conn
	stderr *os.File
}

// examine starts a QEMU that runs no guest and connects to its monitor.
func (d *Driver) examine(ctx context.Context, binary string, args ...string) (*examination, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	stderr, err := host.MemoryFile("stderr")
	if err != nil {
		ours.Close()
		return nil, err
	}
	args = append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
	}, args...)
	program := d.program(append([]string{binary}, args...)...)
	program.Files = []*os.File{nil, stderr, stderr, theirs}
	program.EndsWithVmand = true
	proc, err := program.Start()
	if err != nil {
		ours.Close()
		stderr.Close()
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	theirs.Close() // so that the end of the process ends the connection
	x := &examination{proc: proc, stderr: stderr}
	if x.conn, err = qmp.New(ctx, ours); err != nil {
		err = x.explain(err)
		x.end()
		return nil, err
	}
	return x, nil
}

// explain says what QEMU itself wrote about an error.
func (x *examination) explain(err error) error {
	const grace = 100 * time.Millisecond // a connection breaks shortly before its process ends
	x.proc.Wait(nil, grace)
	if words := host.LastLines(host.Tail(x.stderr, maxStderr), 4); words != "" {
		return errors.New(strings.ReplaceAll(words, "\n", "; "))
	}
	if x.proc.Exited() && x.proc.State() != "" {
		return fmt.Errorf("it ended at once: %s", x.proc.State())
	}
	return err
}

func (x *examination) end() {
	if x.conn != nil {
		x.conn.Close()
	}
	x.proc.Kill()
	x.stderr.Close()
}

// socketPair returns two connected sockets, the second for another process.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}
