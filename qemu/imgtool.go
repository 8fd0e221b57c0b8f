package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmand/host"
	"vmand/vm"
)

// imgJob is a run of qemu-img, with its limits.
type imgJob struct {
	args     []string
	timeout  time.Duration
	cpu      time.Duration
	maxFile  int64                 // bytes, the largest file that it may write; 0 for any
	progress func(output *os.File) // called now and then while it runs; nil for never
}

// Limits of qemu-img. A run that copies no data gets a minute of CPU time.
const (
	imgAddressSpace = 2 << 30 // bytes
	imgOpenFiles    = 64
	imgCPU          = time.Minute
	imgTimeout      = 2 * time.Minute
)

// imgResize grows the file of a data disk that no QEMU has open.
func (d *Driver) imgResize(ctx context.Context, diskID string, bytes int64) error {
	file := d.layout.inState(dataDisk(diskID))
	err := d.runImg(ctx, imgJob{
		args:    []string{"resize", "-q", "-f", formatQcow2, file, strconv.FormatInt(bytes, 10)},
		timeout: imgTimeout,
		cpu:     imgCPU,
	})
	return fileFault(err, "grow disk %s", diskID)
}

// runImg runs qemu-img as the account that QEMU runs as. The process ends with
// vmand.
func (d *Driver) runImg(ctx context.Context, job imgJob) error {
	img, err := host.LookPath(d.opts.ImgBinary)
	if err != nil {
		return unavailable(err, d.opts.ImgBinary, "qemu-utils")
	}
	program := d.program(append([]string{img}, job.args...)...)
	program.Limits = host.Limits{
		AddressSpace: imgAddressSpace,
		CPU:          job.cpu,
		OpenFiles:    imgOpenFiles,
		FileSize:     job.maxFile,
	}
	ctx, cancel := context.WithTimeout(ctx, job.timeout)
	defer cancel()
	output, err := program.Run(ctx, job.progress)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, host.ErrNoPrlimit):
		return unavailable(err, "prlimit", "util-linux")
	case output != "":
		return imgFault(job.args[0], output)
	}
	return fmt.Errorf("qemu-img %s: %w", job.args[0], err)
}

// imgFault classifies a failure of qemu-img by its output.
func imgFault(verb, output string) error {
	lower := strings.ToLower(output)
	switch {
	case strings.Contains(lower, unix.ENOSPC.Error()):
		return fmt.Errorf("qemu-img %s: %w", verb, unix.ENOSPC)
	case strings.Contains(lower, unix.EDQUOT.Error()):
		return fmt.Errorf("qemu-img %s: %w", verb, unix.EDQUOT)
	case strings.Contains(lower, "another process using the image"):
		return fault(vm.CodeState, nil, "qemu-img %s: %s", verb, output)
	}
	return fault(vm.CodeOperationFailed, nil, "qemu-img %s: %s", verb, output)
}

var imgVersionPattern = regexp.MustCompile(`qemu-img version (\S+)`)

// askImgVersion returns the version of qemu-img. It asks each binary once.
func (d *Driver) askImgVersion(ctx context.Context) (string, error) {
	path, err := host.LookPath(d.opts.ImgBinary)
	if err != nil {
		return "", unavailable(err, d.opts.ImgBinary, "qemu-utils")
	}
	id, err := identify(path)
	if err != nil {
		return "", unavailable(err, path, "qemu-utils")
	}
	d.mu.Lock()
	known, version := d.img, d.imgVersion
	d.mu.Unlock()
	if known == id {
		return version, nil
	}
	ctx, cancel := context.WithTimeout(ctx, imgTimeout)
	defer cancel()
	output, err := d.program(path, "--version").Run(ctx, nil)
	m := imgVersionPattern.FindStringSubmatch(output)
	if err == nil && m == nil {
		err = fmt.Errorf("it writes %q when asked for its version", output)
	}
	if err != nil {
		return "", unavailable(err, path, "qemu-utils")
	}
	d.mu.Lock()
	d.img, d.imgVersion = id, m[1]
	d.mu.Unlock()
	return m[1], nil
}
