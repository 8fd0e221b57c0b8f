package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmand/vm"
)

// imgJob is a run of qemu-img, and what it may use.
type imgJob struct {
	args    []string
	timeout time.Duration
	cpu     time.Duration
	file    int64                 // bytes, the largest file it may write; 0 for any
	said    func(output *os.File) // called now and then while it runs; nil for never
}

// What qemu-img may use: 2 GiB of addresses, and for what copies no data a minute
// of CPU and two of patience.
const (
	imgAddresses = 2 << 30
	imgCPU       = time.Minute
	imgTimeout   = 2 * time.Minute

	imgPollInterval = 250 * time.Millisecond
)

func (d *Driver) imgResize(ctx context.Context, diskID string, bytes int64) error {
	err := d.runImg(ctx, imgJob{
		args:    []string{"resize", "-q", "-f", formatQcow2, d.layout.inState(dataDisk(diskID)), strconv.FormatInt(bytes, 10)},
		timeout: imgTimeout, cpu: imgCPU,
	})
	return fileFault(err, "grow disk %s", diskID)
}

func (j imgJob) limits() []string {
	limits := []string{
		fmt.Sprintf("--as=%d", imgAddresses),
		fmt.Sprintf("--cpu=%d", j.cpu/time.Second),
		"--nofile=64",
	}
	if j.file != 0 {
		limits = append(limits, fmt.Sprintf("--fsize=%d", j.file))
	}
	return limits
}

// runImg runs qemu-img as the account QEMU runs as. prlimit is what sets the
// limits, because a Go program cannot between fork and exec; it is a part of
// util-linux, which every Linux host has.
func (d *Driver) runImg(ctx context.Context, job imgJob) error {
	img, err := lookUpTool(d.opts.ImgBinary)
	if err != nil {
		return unavailable(err, d.opts.ImgBinary, "qemu-utils")
	}
	prlimit, err := lookUpTool("prlimit")
	if err != nil {
		return unavailable(err, "prlimit", "util-linux")
	}
	argv := append(append([]string{prlimit}, job.limits()...), "--", img)
	words, err := d.runTool(ctx, append(argv, job.args...), job.timeout, job.said)
	lower := strings.ToLower(words)
	switch verb := job.args[0]; {
	case err == nil:
		return nil
	case strings.Contains(lower, unix.ENOSPC.Error()):
		return fmt.Errorf("qemu-img %s: %w", verb, unix.ENOSPC)
	case strings.Contains(lower, unix.EDQUOT.Error()):
		return fmt.Errorf("qemu-img %s: %w", verb, unix.EDQUOT)
	case strings.Contains(lower, "another process using the image"):
		return fault(vm.CodeState, nil, "qemu-img %s: %s", verb, words)
	case words != "" && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded):
		return fault(vm.CodeOperationFailed, nil, "qemu-img %s: %s", verb, words)
	default:
		return fmt.Errorf("qemu-img %s: %w", verb, err)
	}
}

// runTool runs a program, which ends with vmand at the latest, to its end and
// returns the last lines it wrote.
func (d *Driver) runTool(ctx context.Context, argv []string, timeout time.Duration, said func(*os.File)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, err := memoryFile("output")
	if err != nil {
		return "", err
	}
	defer out.Close()
	p, err := startTied(d.account, argv, []*os.File{nil, out, out})
	if err != nil {
		return "", err
	}
	if err := awaitTool(ctx, p, out, said); err != nil {
		return "", err
	}
	words := lastLines(tail(out, maxStderr), 4)
	if p.state != "exit status 0" {
		return words, errors.New(p.state)
	}
	return words, nil
}

// awaitTool waits for the end of a program, and brings it about when ctx is done.
func awaitTool(ctx context.Context, p *process, out *os.File, said func(*os.File)) error {
	poll := time.NewTicker(imgPollInterval)
	defer poll.Stop()
	for {
		select {
		case <-p.done:
			p.release()
			return nil
		case <-poll.C:
			if said != nil {
				said(out)
			}
		case <-ctx.Done():
			p.kill()
			return ctx.Err()
		}
	}
}

var imgVersionPattern = regexp.MustCompile(`qemu-img version (\S+)`)

// imgVersion returns the version of qemu-img, which it asks for once.
func (d *Driver) imgVersion(ctx context.Context) (string, error) {
	path, err := lookUpTool(d.opts.ImgBinary)
	if err != nil {
		return "", unavailable(err, d.opts.ImgBinary, "qemu-utils")
	}
	id, err := identify(path)
	if err != nil {
		return "", unavailable(err, path, "qemu-utils")
	}
	d.mu.Lock()
	known, version := d.img, d.imgIs
	d.mu.Unlock()
	if known == id {
		return version, nil
	}
	words, err := d.runTool(ctx, []string{path, "--version"}, imgTimeout, nil)
	m := imgVersionPattern.FindStringSubmatch(words)
	if err == nil && m == nil {
		err = fmt.Errorf("it says %q when asked for its version", words)
	}
	if err != nil {
		return "", unavailable(err, path, "qemu-utils")
	}
	d.mu.Lock()
	d.img, d.imgIs = id, m[1]
	d.mu.Unlock()
	return m[1], nil
}

// lookPath is exec.LookPath, with the error of a program that is not there as
// it should read.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("it is not installed")
	}
	return path, err
}
