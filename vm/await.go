package vm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Condition is what one can wait for of a guest.
type Condition struct {
	IP        bool // the guest has confirmed its address
	Port      int  // a TCP port of the guest answers; 0: not waited for
	Agent     bool // the guest agent answers
	CloudInit bool // cloud-init in the guest is done, disabled or not there
}

// ParseCondition reads "ip", "port:22", "agent" or "cloud-init".
func ParseCondition(s string) (Condition, error) {
	switch s {
	case "ip":
		return Condition{IP: true}, nil
	case "agent":
		return Condition{Agent: true}, nil
	case "cloud-init":
		return Condition{CloudInit: true}, nil
	}
	if number, ok := strings.CutPrefix(s, "port:"); ok {
		if port, err := strconv.Atoi(number); err == nil && port >= 1 && port <= 65535 && strconv.Itoa(port) == number {
			return Condition{Port: port}, nil
		}
	}
	return Condition{}, invalidField("wait_for", "%q is not ip, agent, cloud-init or port:N with N from 1 to 65535", s)
}

// Pauses between two tries to find out about a guest.
const (
	probeInterval     = 100 * time.Millisecond
	probeTimeout      = time.Second
	agentInterval     = 250 * time.Millisecond
	cloudInitInterval = 2 * time.Second
)

// interval returns after how long to look at a guest again, 0 if an event tells
// when.
func (c Condition) interval() time.Duration {
	switch {
	case c.Port != 0:
		return probeInterval
	case c.Agent:
		return agentInterval
	case c.CloudInit:
		return cloudInitInterval
	}
	return 0
}

// Await waits until the condition holds for a VM that was started and returns
// the VM. It fails with ctx's error when that ends before, with [CodeState] when the VM
// ends before, with [CodeInvalid] when it could never be known, and with
// [CodeGuestRefused] when cloud-init has failed or cannot be asked.
func (m *Manager) Await(ctx context.Context, id string, c Condition) (VM, error) {
	for {
		news := m.NextEvent()
		v, err := m.store.VM(context.WithoutCancel(ctx), id)
		if err != nil {
			return v, err
		}
		if v.State != Running && v.State != Starting && v.State != Paused {
			return v, &Fault{Code: CodeState, Detail: fmt.Sprintf("VM %s ended while it was waited for: it is %s (%s)", id, v.State, v.Reason)}
		}
		if err := m.CanAwait(context.WithoutCancel(ctx), id, c); err != nil {
			return v, err
		}
		holds, err := m.holds(ctx, v, c)
		if err != nil {
			return v, err
		}
		if holds {
			return m.store.VM(context.WithoutCancel(ctx), id)
		}
		var again <-chan time.Time
		if pause := c.interval(); pause != 0 {
			again = time.After(pause)
		}
		select {
		case <-news:
		case <-again:
		case <-ctx.Done():
			return v, context.Cause(ctx)
		}
	}
}

// CanAwait reports whether the condition can ever be known to hold for a VM, as a
// [Fault] of code [CodeInvalid] if not.
func (m *Manager) CanAwait(ctx context.Context, id string, c Condition) error {
	v, err := m.store.VM(ctx, id)
	if err != nil {
		return err
	}
	if c.IP && !slices.ContainsFunc(v.NICs, func(n NIC) bool { return n.Mode != NetworkUser }) {
		return invalidField("wait_for", "VM %s has no NIC whose address can be seen from the host: wait for a forwarded port instead", v.ID)
	}
	return nil
}

func (m *Manager) holds(ctx context.Context, v VM, c Condition) (bool, error) {
	if c.IP {
		return !v.Boot.DHCP.IsZero() || len(v.Learned) > 0, nil
	}
	if c.Agent {
		a := m.driver.Agent(v.ID)
		if a.State != AgentConnected || a.LastSeenAt.Before(v.Boot.Spawned) {
			return false, nil
		}
		m.Mark(v.ID, BootAgent, a.LastSeenAt)
		m.saveMarks() // so that whoever has waited for it sees it
		return true, nil
	}
	if c.CloudInit {
		done, err := m.cloudInitDone(ctx, v.ID)
		if done || err != nil {
			m.saveMarks()
		}
		return done, err
	}
	probe, stop := context.WithTimeout(ctx, probeTimeout)
	defer stop()
	err := m.network.Probe(probe, v, c.Port)
	if errors.Is(err, ErrInvalid) {
		return false, err
	}
	if err == nil {
		m.Mark(v.ID, BootTCP, now())
		m.saveMarks()
	}
	return err == nil, nil
}

// Mark notes when something was seen in a VM's present run. It does not wait for
// that to be recorded.
func (m *Manager) Mark(id string, mark BootMark, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.marks == nil {
		m.marks = map[string]Boot{}
	}
	b := m.marks[id]
	if t := b.At(mark); t.IsZero() {
		*t = at.UTC().Truncate(time.Millisecond)
	}
	m.marks[id] = b
	if !m.marking && !m.closing {
		m.marking = true
		m.wg.Go(m.saveMarks)
	}
}

// saveMarks records what was noted, and returns when all that was noted before is
// recorded, also by somebody else. What is known already changes nothing.
func (m *Manager) saveMarks() {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	marks := m.marks
	m.marks, m.marking = nil, false
	m.mu.Unlock()
	ctx, stop := context.WithTimeout(context.Background(), recordPatience)
	defer stop()
	var c Change
	for id, b := range marks {
		v, err := m.store.VM(ctx, id)
		if err != nil {
			continue // it is gone
		}
		fresh := map[string]any{}
		for _, mark := range BootMarks {
			if at := *b.At(mark); !at.IsZero() && v.Boot.At(mark).IsZero() {
				fresh[string(mark)] = at
			}
		}
		if len(fresh) > 0 {
			c.Learned = append(c.Learned, Learned{VMID: id, Boot: b})
			c.Events = append(c.Events, NewEvent("vm.boot", VMResource(id), fresh))
		}
	}
	if len(c.Learned) == 0 {
		return
	}
	if err := m.apply(ctx, c); err != nil {
		m.log.Warn("cannot record what was seen of guests", "vms", len(c.Learned), "err", err)
	}
}
