package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"vmand/failpoint"
	"vmand/host"
	"vmand/vm"
)

// startTimeout is how long QEMU may take from its launch to its first answer, which
// takes seconds on an overloaded host.
const startTimeout = 60 * time.Second

// Start implements [vm.Machines].
func (d *Driver) Start(ctx context.Context, s vm.Spec, report vm.Report) (boot vm.Boot, err error) {
	if err := d.checkFree(ctx, s.ID); err != nil { // before anything of a running VM's is replaced
		return boot, err
	}
	p, err := d.probe(ctx)
	if err != nil {
		return boot, err
	}
	say(report, "launch", "starting QEMU %s (%s, %s)", p.Capabilities.Version, s.Machine, s.Accel)
	boot.Spawned = time.Now().UTC().Truncate(time.Millisecond)
	sess, err := d.launch(p, s)
	if err != nil {
		d.removeDead(s.ID)
		return boot, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, err := sess.monitor(ctx); err != nil {
		return boot, d.startFault(sess, err)
	}
	failpoint.Hit("monitor.connected")
	for _, p := range s.Ports { // there is no option for it
		if !p.LinkDown {
			continue
		}
		if err := sess.setLink(ctx, p.Slot, false); err != nil {
			return boot, d.startFault(sess, err)
		}
	}
	boot.Monitor = time.Now().UTC().Truncate(time.Millisecond)
	say(report, "cont", "QEMU is ready (pid %d), letting the guest run", sess.proc.PID)
	if err := sess.cont(ctx); err != nil {
		return boot, d.startFault(sess, err)
	}
	failpoint.Hit("guest.continued")
	return boot, nil
}

// startFault returns the fault of a failed start, with QEMU's output if it ended.
func (d *Driver) startFault(s *session, err error) error {
	if s.proc.Wait(nil, 0) {
		output := d.lastWords(s.id)
		if output == "" {
			output = "it wrote nothing"
		}
		return fault(vm.CodeOperationFailed, nil, "QEMU of VM %s ended at its start (%s): %s", s.id, s.proc.State(), output)
	}
	return monitorFault(s.id, "start", err)
}

// boot holds the files that QEMU inherits.
type boot struct {
	fds   bootFDs
	files []*os.File // by their numbers in QEMU
	own   []*os.File // the files that close closes
}

// add passes a file to QEMU, which close closes, and returns its number there.
func (b *boot) add(f *os.File) int {
	b.own = append(b.own, f)
	return b.lend(f)
}

// lend passes a file to QEMU that the caller closes, and returns its number there.
func (b *boot) lend(f *os.File) int {
	b.files = append(b.files, f)
	return len(b.files) - 1
}

// close closes the files of add.
func (b *boot) close() {
	for _, f := range b.own {
		f.Close()
	}
}

// connect passes the files of ports.
func (b *boot) connect(ports []vm.Port) {
	for _, p := range ports {
		var fds portFDs
		if len(p.Files) > 0 {
			fds.file = strconv.Itoa(b.lend(p.Files[0]))
		}
		if p.VHost != nil && p.Model == vm.NICVirtio { // only this model can use it
			fds.vhost = strconv.Itoa(b.lend(p.VHost))
		}
		b.fds.ports = append(b.fds.ports, fds)
	}
}

// launch prepares the files of a VM and starts its QEMU.
func (d *Driver) launch(p probes, s vm.Spec) (*session, error) {
	var b boot
	defer b.close()
	b.lend(nil) // stdin is /dev/null
	log, err := d.newQEMULog(s.ID)
	if err != nil {
		return nil, fileFault(err, "make the log of VM %s", s.ID)
	}
	b.add(log)
	b.lend(log) // stdout and stderr are the same file
	if err := d.prepareRun(s); err != nil {
		return nil, fault(vm.CodeOperationFailed, err, "prepare the start of VM %s", s.ID)
	}
	if err := b.addSockets(s.ID, d.layout); err != nil {
		return nil, fault(vm.CodeOperationFailed, err, "prepare the start of VM %s", s.ID)
	}
	console, err := openSerialLog(d.state, s.ID)
	if err != nil {
		return nil, fileFault(err, "make the console log of VM %s", s.ID)
	}
	b.fds.serialLog = b.add(console)
	if _, ok := s.Root.Content(); !ok && s.Root.Base != "" {
		f, err := os.Open(s.Root.Base)
		if err != nil {
			return nil, fault(vm.CodeOperationFailed, err, "open the base image of VM %s", s.ID)
		}
		b.fds.base = b.add(f)
	}
	b.connect(s.Ports)
	args, err := commandLine(p.Capabilities, s, d.layout, b.fds)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("run.prepared")
	return d.spawn(s.ID, append([]string{p.Binary.Path}, args...), b.files, true)
}

// addSockets creates and passes the listening sockets of a VM.
func (b *boot) addSockets(id string, l layout) error {
	for _, socket := range []struct {
		suffix string
		fd     *int
	}{
		{qmpSuffix, &b.fds.qmp},
		{operatorSuffix, &b.fds.operator},
		{agentSuffix, &b.fds.agent},
	} {
		f, err := listen(l.inRun(id, socket.suffix))
		if err != nil {
			return err
		}
		*socket.fd = b.add(f)
	}
	return nil
}

// spawn starts QEMU with the lock on its VM's pidfile, and opens its session. It
// holds d.mu meanwhile: if the process were found before, it would get two sessions.
// ours says that the socket of its monitor is among the files.
func (d *Driver) spawn(id string, argv []string, files []*os.File, ours bool) (*session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return nil, errEnding
	}
	pidfile, err := lockPidfile(d.layout.pidfile(id), d.account)
	if errors.Is(err, errLocked) {
		return nil, fault(vm.CodeState, err, "VM %s still has a QEMU process", id)
	}
	if err != nil {
		return nil, fault(vm.CodeOperationFailed, err, "start QEMU of VM %s", id)
	}
	defer pidfile.Close()
	program := d.program(argv...)
	program.Files = slices.Concat(files, []*os.File{pidfile})
	proc, err := program.Start()
	if err != nil {
		return nil, fault(vm.CodeOperationFailed, err, "start QEMU of VM %s", id)
	}
	failpoint.Hit("qemu.spawned")
	return d.openSession(id, proc, ours), nil
}

// prepareRun records the UUID of the VM and makes its console.
func (d *Driver) prepareRun(s vm.Spec) error {
	d.layout.removeRun(s.ID, quitSuffix) // left if no vmand saw the end of the last process
	if err := d.layout.makeConsole(s.ID, d.account); err != nil {
		return fmt.Errorf("make its console: %w", err)
	}
	return os.WriteFile(d.layout.inRun(s.ID, uuidSuffix), []byte(s.UUID+"\n"), 0o600)
}

// listen returns a listening socket that only vmand can connect to. A connection
// succeeds even before QEMU accepts it.
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	// A bound socket gets the mode of the descriptor, so others cannot connect at any
	// moment.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		f.Close()
		return nil, fmt.Errorf("make socket %s private: %w", path, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		f.Close()
		return nil, fmt.Errorf("bind %s: %w", path, err)
	}
	if err := unix.Listen(fd, 16); err != nil {
		f.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return f, nil
}

// newQEMULog starts the log of a run and keeps that of the run before.
func (d *Driver) newQEMULog(id string) (*os.File, error) {
	if err := d.state.Rename(vmQEMULog(id), vmQEMULogOld(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return d.state.OpenFile(vmQEMULog(id), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

// lastWords returns the last lines that QEMU wrote in its last run.
func (d *Driver) lastWords(id string) string {
	return host.LastLines(d.endOf(vmQEMULog(id), maxStderr), 10)
}

// maxStderr is how many bytes of a program's output are shown.
const maxStderr = 4 << 10

// endOf returns the end of a file under the state directory as text, at most
// bytesMax bytes. It returns "" if there is no such file.
func (d *Driver) endOf(name string, bytesMax int64) string {
	f, err := d.state.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	return host.Tail(f, bytesMax)
}
