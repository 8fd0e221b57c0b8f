package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"time"

	"vmand/host"
	"vmand/vm"
)

// capabilities describes a QEMU binary.
type capabilities struct {
	Version string `json:"version"`
	Machine string `json:"machine"` // the newest versioned q35
	MaxCPUs int    `json:"max_cpus"`
}

// fileIdentity tells one version of a file from another.
type fileIdentity struct {
	Path    string    `json:"path"`
	ModTime time.Time `json:"mod_time"`
	Size    int64     `json:"size"`
}

// identify returns the identity of the file at path.
func identify(path string) (fileIdentity, error) {
	st, err := os.Stat(path)
	if err != nil {
		return fileIdentity{}, err
	}
	return fileIdentity{Path: path, ModTime: st.ModTime().UTC(), Size: st.Size()}, nil
}

// probes is what vmand learned about the binary and the host. A file keeps it, so
// that a restart of vmand need not probe again.
type probes struct {
	Binary       fileIdentity  `json:"binary"`
	Capabilities capabilities  `json:"capabilities"`
	Accel        *accelVerdict `json:"accel,omitempty"`
}

// probeTimeout bounds the questions to a QEMU that runs no machine.
const probeTimeout = 15 * time.Second

// probe returns what is known about the installed QEMU. It asks a binary only if that has
// changed since the last time.
func (d *Driver) probe(ctx context.Context) (probes, error) {
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
	if known.Binary != id || known.Capabilities.MaxCPUs == 0 { // 0: saved by an older vmand
		caps, err := d.askCapabilities(ctx, path)
		if err != nil {
			return probes{}, unavailable(err, path, "qemu-system-x86")
		}
		known.Binary, known.Capabilities = id, caps
		d.saveProbes(known)
	}
	d.probed = known
	return known, nil
}

// saveAccel saves a verdict for the next vmand.
func (d *Driver) saveAccel(v accelVerdict) {
	d.probing <- struct{}{}
	defer func() { <-d.probing }()
	d.probed.Accel = &v
	d.saveProbes(d.probed)
}

// loadProbes returns the probes in the file, empty ones if it cannot be read.
func (d *Driver) loadProbes() probes {
	var p probes
	b, err := d.state.ReadFile(probesFile)
	if err != nil || json.Unmarshal(b, &p) != nil {
		return probes{}
	}
	return p
}

// saveProbes is best effort: without the file the next vmand probes again.
func (d *Driver) saveProbes(p probes) {
	b, err := json.MarshalIndent(p, "", "  ")
	if err == nil {
		err = host.WriteFile(d.state, probesFile, 0o600, func(f *os.File) error {
			_, err := f.Write(append(b, '\n'))
			return err
		})
	}
	if err != nil {
		d.log.Warn("cannot save the capabilities of QEMU: the next vmand probes it again", "err", err)
	}
}

// unavailable returns the fault of a program that cannot be used. An err that is a
// fault already is returned unchanged.
func unavailable(err error, tool, pkg string) error {
	var known *vm.Fault
	if errors.As(err, &known) {
		return err
	}
	f := fault(vm.CodeQEMUUnavailable, err, "%s (of the Debian package %s) cannot be used", tool, pkg)
	f.Hint = "install it: apt-get install " + pkg
	return f
}

// askCapabilities returns the capabilities of a binary, by QMP.
func (d *Driver) askCapabilities(ctx context.Context, binary string) (capabilities, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	x, err := d.examine(ctx, binary, "-machine", "none")
	if err != nil {
		return capabilities{}, err
	}
	defer x.end()
	var machines []struct {
		Name    string `json:"name"`
		MaxCPUs int    `json:"cpu-max"`
	}
	if err := x.conn.Execute(ctx, "query-machines", nil, &machines); err != nil {
		return capabilities{}, x.explain(err)
	}
	v := x.conn.Version().QEMU
	caps := capabilities{Version: fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)}
	names := make([]string, len(machines))
	cpus := make(map[string]int, len(machines))
	for i, m := range machines {
		names[i], cpus[m.Name] = m.Name, m.MaxCPUs
	}
	if caps.Machine = newestQ35(names); caps.Machine == "" {
		return capabilities{}, fmt.Errorf("%s has no versioned q35 machine type", binary)
	}
	caps.MaxCPUs = max(cpus[caps.Machine], 1)
	return caps, nil
}

var q35Pattern = regexp.MustCompile(`^pc-q35-(\d{1,4})\.(\d{1,4})$`)

// newestQ35 returns the newest versioned q35 machine type, "" if there is none.
func newestQ35(names []string) string {
	var newest string
	var best [2]int
	for _, name := range names {
		m := q35Pattern.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		major, _ := strconv.Atoi(m[1]) // cannot fail after the match
		minor, _ := strconv.Atoi(m[2])
		if major > best[0] || major == best[0] && minor > best[1] {
			newest, best = name, [2]int{major, minor}
		}
	}
	return newest
}
