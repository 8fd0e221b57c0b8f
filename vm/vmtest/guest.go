package vmtest

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"slices"
	"time"

	"vmand/vm"
)

// Say makes the guest of a VM write text to its console.
func (d *Driver) Say(id, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.print(id, []byte(text))
}

// print appends text to the log of a console. It must be called with d.mu held.
func (d *Driver) print(id string, text []byte) {
	if d.logs == nil {
		d.logs = map[string][]byte{}
	}
	d.logs[id] = append(d.logs[id], text...)
	d.wake(id)
}

// end removes the process of a VM. It must be called with d.mu held.
func (d *Driver) end(id string) {
	delete(d.procs, id)
	delete(d.writers, id)
	d.wake(id)
}

// wake wakes the readers of a console. It must be called with d.mu held.
func (d *Driver) wake(id string) {
	if c := d.changed[id]; c != nil {
		close(c)
		delete(d.changed, id)
	}
}

// Console connects to the console of a running VM. The guest writes "login: " at its start and
// echoes its input.
func (d *Driver) Console(ctx context.Context, id string, o vm.ConsoleOptions) (vm.Console, error) {
	var c *console
	err := d.do(ctx, "Console", id, func() error {
		p := d.procs[id]
		if p == nil {
			return &vm.Fault{Code: vm.CodeState, Detail: "VM " + id + " is not running"}
		}
		if o.Write && d.writers[id] != nil && !o.TakeOver {
			return &vm.Fault{Code: vm.CodeBusy, Detail: "another connection writes to the console of VM " + id}
		}
		end := int64(len(d.logs[id]))
		c = &console{
			d:      d,
			id:     id,
			p:      p,
			at:     max(0, end-o.Scrollback),
			closed: make(chan struct{}),
		}
		if o.Write {
			if d.writers == nil {
				d.writers = map[string]*console{}
			}
			d.writers[id] = c
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// A console is a [vm.Console] of a fake guest.
type console struct {
	d      *Driver
	id     string
	p      *process
	at     int64 // offset of the next Read in the log
	closed chan struct{}
}

// Read implements [vm.Console].
func (c *console) Read(p []byte) (int, error) {
	for {
		n, changed, err := c.next(p)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-changed:
		case <-c.closed:
			return 0, io.ErrClosedPipe
		}
	}
}

// next copies output to p if there is some. Otherwise it returns a channel that is closed at the
// next change of the console.
func (c *console) next(p []byte) (int, <-chan struct{}, error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if n := copy(p, c.d.logs[c.id][c.at:]); n > 0 {
		c.at += int64(n)
		return n, nil, nil
	}
	if c.d.procs[c.id] != c.p {
		return 0, nil, io.EOF
	}
	if c.d.changed == nil {
		c.d.changed = map[string]chan struct{}{}
	}
	if c.d.changed[c.id] == nil {
		c.d.changed[c.id] = make(chan struct{})
	}
	return 0, c.d.changed[c.id], nil
}

// Write implements [vm.Console].
func (c *console) Write(p []byte) (int, error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.d.writers[c.id] != c {
		return 0, &vm.Fault{Code: vm.CodeState, Detail: "this connection may not write"}
	}
	c.d.print(c.id, p)
	return len(p), nil
}

// Close implements [vm.Console].
func (c *console) Close() error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	select {
	case <-c.closed:
		return nil
	default:
	}
	close(c.closed)
	if c.d.writers[c.id] == c {
		delete(c.d.writers, c.id)
	}
	return nil
}

// ConsoleLog returns the log of a console.
func (d *Driver) ConsoleLog(ctx context.Context, id string, offset int64) (io.ReadCloser, int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	log := d.logs[id]
	end := int64(len(log))
	if offset < 0 {
		offset += end
	}
	return io.NopCloser(bytes.NewReader(slices.Clone(log[min(max(0, offset), end):]))), end, nil
}

// SetAgent sets the state of the guest agent of a VM. Without it the agent answers while the VM
// is running.
func (d *Driver) SetAgent(id string, a vm.Agent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.agents == nil {
		d.agents = map[string]vm.Agent{}
	}
	d.agents[id] = a
}

// Agent returns the state that SetAgent set. Without it the agent is connected while the VM is
// running.
func (d *Driver) Agent(id string) vm.Agent {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.agent(id)
}

// agent is [Driver.Agent]. It must be called with d.mu held.
func (d *Driver) agent(id string) vm.Agent {
	p := d.procs[id]
	if p == nil {
		return vm.Agent{State: vm.AgentAbsent}
	}
	if a, ok := d.agents[id]; ok {
		return a
	}
	if p.status != vm.StatusRunning {
		return vm.Agent{State: vm.AgentAbsent}
	}
	return vm.Agent{State: vm.AgentConnected, Version: "7.2.0", LastSeenAt: p.since}
}

// ask calls act with d.mu held. It fails if the guest agent is not connected.
func (d *Driver) ask(ctx context.Context, method, id string, act func()) error {
	return d.do(ctx, method, id, func() error {
		if d.agent(id).State != vm.AgentConnected {
			return &vm.Fault{Code: vm.CodeAgentUnavailable, Detail: "the guest agent of VM " + id + " does not answer"}
		}
		act()
		return nil
	})
}

// GuestInfo returns a fixed guest with the interfaces that SetInterfaces added.
func (d *Driver) GuestInfo(ctx context.Context, id string) (vm.GuestInfo, error) {
	loopback := netip.MustParsePrefix("127.0.0.1/8")
	info := vm.GuestInfo{
		Hostname:   id,
		OS:         vm.GuestOS{ID: "debian", Name: "Debian GNU/Linux"},
		Interfaces: []vm.GuestInterface{{Name: "lo", Addresses: []netip.Prefix{loopback}}},
		Filesystems: []vm.GuestFilesystem{
			{MountPoint: "/", Type: "ext4", UsedBytes: 1, TotalBytes: 2, Disks: []string{"root"}},
		},
	}
	err := d.ask(ctx, "GuestInfo", id, func() { info.Interfaces = append(info.Interfaces, d.interfaces...) })
	return info, err
}

// SetInterfaces adds interfaces to the information of every guest.
func (d *Driver) SetInterfaces(interfaces ...vm.GuestInterface) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.interfaces = interfaces
}

// Exec returns the result of d.Run.
func (d *Driver) Exec(ctx context.Context, id string, c vm.GuestCommand) (vm.GuestResult, error) {
	r := vm.GuestResult{Exited: true}
	err := d.ask(ctx, "Exec", id, func() {
		switch {
		case d.Run != nil:
			r = d.Run(id, c)
		case c.Path == "cat":
			r.Stdout = c.Stdin
		}
	})
	return r, err
}

// ReadFile copies what WriteFile wrote, or "content" if it did not write the file.
func (d *Driver) ReadFile(ctx context.Context, id, path string, w io.Writer, limit int64) error {
	content := []byte("content")
	err := d.ask(ctx, "ReadFile", id, func() {
		if b, ok := d.wrote[id+" "+path]; ok {
			content = b
		}
	})
	if err != nil {
		return err
	}
	if _, err := w.Write(content[:min(int64(len(content)), limit)]); err != nil {
		return err
	}
	if int64(len(content)) > limit {
		return &vm.Fault{Code: vm.CodeInvalid, Detail: "the file is too large"}
	}
	return nil
}

// WriteFile stores the content of r.
func (d *Driver) WriteFile(ctx context.Context, id, path string, r io.Reader) error {
	if err := d.ask(ctx, "WriteFile", id, func() {}); err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wrote == nil {
		d.wrote = map[string][]byte{}
	}
	d.wrote[id+" "+path] = b
	return nil
}

// SetPassword only records the call.
func (d *Driver) SetPassword(ctx context.Context, id, user, password string) error {
	return d.ask(ctx, "SetPassword", id, func() {})
}

// Trim only records the call.
func (d *Driver) Trim(ctx context.Context, id string) error {
	return d.ask(ctx, "Trim", id, func() {})
}

// SetMounts sets where the guest of a VM has a disk mounted.
func (d *Driver) SetMounts(diskID string, mounts ...vm.GuestMount) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mounts == nil {
		d.mounts = map[string][]vm.GuestMount{}
	}
	d.mounts[diskID] = mounts
}

// Mounts returns the mounts that SetMounts set.
func (d *Driver) Mounts(ctx context.Context, disk vm.Disk) (mounts []vm.GuestMount, err error) {
	err = d.ask(ctx, "Mounts", disk.VMID, func() { mounts = d.mounts[disk.ID] })
	return mounts, err
}

// Freeze only records the call. It returns the number of mount points, 1 without any.
func (d *Driver) Freeze(ctx context.Context, id string, mountPoints ...string) (int, error) {
	return max(1, len(mountPoints)), d.ask(ctx, "Freeze", id, func() {})
}

// Thaw only records the call.
func (d *Driver) Thaw(ctx context.Context, id string) error {
	return d.ask(ctx, "Thaw", id, func() {})
}

// SetClock records the call and reports that the clock was a minute behind.
func (d *Driver) SetClock(ctx context.Context, id string) (vm.ClockCheck, error) {
	if err := d.ask(ctx, "SetClock", id, func() {}); err != nil {
		return vm.ClockCheck{}, err
	}
	return vm.ClockCheck{Offset: -time.Minute, Set: true}, nil
}
