package qemu

import (
	"context"
	"fmt"
	"strings"
	"time"

	"vmand/qemu/qga"
	"vmand/vm"
)

const (
	// clockTolerance is the difference between the clocks of guest and host that is left
	// alone. A program in a busy guest may set the clock later than at the time that it got.
	clockTolerance = 500 * time.Millisecond
	setTolerance   = time.Second
	// clockTrip is how long the question for the time may take. A later answer proves nothing.
	clockTrip = 2 * time.Second
	// dateTimeout bounds the program that sets the clock.
	dateTimeout = 10 * time.Second
)

// dateScript sets the clock to $1.$2 seconds after 1970. The date of busybox knows no
// fractions: it gets the next second $4 after the rest of this one, 0.$3 seconds.
const dateScript = `date -u -s "@$1.$2" || { sleep "0.$3"; date -u -s "@$4"; }`

// SetClock implements [vm.Guests]. guest-set-time also sets the hardware clock of the guest. If
// it has not set the time, which depends on a program hwclock in the guest, the program date does.
func (d *Driver) SetClock(ctx context.Context, id string) (vm.ClockCheck, error) {
	a, err := d.reachable(ctx, id)
	if err != nil {
		return vm.ClockCheck{}, err
	}
	return a.setClock(ctx)
}

func (a *agent) setClock(ctx context.Context) (vm.ClockCheck, error) {
	var c vm.ClockCheck
	var err error
	if c.Offset, err = a.clockOffset(ctx); err != nil || c.Offset.Abs() <= clockTolerance {
		return c, err
	}
	var refusals []string
	for _, set := range []func(context.Context) error{a.setTime, a.setDate} {
		err := set(ctx)
		if err != nil && !isRefusal(err) {
			return c, a.done(err)
		}
		if err != nil {
			refusals = append(refusals, err.Error())
		}
		left, err := a.clockOffset(ctx) // an error of the agent does not say whether the clock is set
		if err != nil {
			return c, err
		}
		if c.Set = left.Abs() <= setTolerance; c.Set {
			return c, nil
		}
	}
	f := fault(vm.CodeGuestRefused, nil, "the guest of VM %s does not set its clock, which is %s: %s",
		a.session.id, offsetWords(c.Offset), strings.Join(refusals, "; "))
	f.Hint = "allow guest-set-time in the guest agent and install hwclock, or run an NTP client in the guest"
	return c, f
}

// setTime sets the clock with the agent's command.
func (a *agent) setTime(ctx context.Context) error { return a.client.SetTime(ctx, time.Now()) }

// setDate sets the clock with a program.
func (a *agent) setDate(ctx context.Context) error {
	now := time.Now()
	nanos := now.Nanosecond()
	r, err := a.client.Exec(ctx, qga.Program{Path: "/bin/sh", Args: []string{
		"-c", dateScript, "sh", fmt.Sprint(now.Unix()), fmt.Sprintf("%09d", nanos),
		fmt.Sprintf("%09d", int(time.Second)-1-nanos), fmt.Sprint(now.Unix() + 1),
	}}, dateTimeout)
	if err == nil && (!r.Exited || r.ExitCode != 0 || r.Signal != 0) {
		err = &qga.Error{Command: "date", Desc: vm.Printable(string(r.Stderr))}
	}
	return err
}

// clockOffset returns how far the clock of the guest is ahead of the host's at least: the
// guest read it at some moment of the question.
func (a *agent) clockOffset(ctx context.Context) (time.Duration, error) {
	before := time.Now()
	guest, err := a.client.Time(ctx)
	after := time.Now()
	switch {
	case err != nil:
		return 0, a.done(err)
	case after.Sub(before) > clockTrip:
		return 0, fault(vm.CodeAgentUnavailable, nil, "the guest agent of VM %s took %v to report the time",
			a.session.id, after.Sub(before).Round(time.Millisecond))
	case guest.Before(before):
		return guest.Sub(before), nil
	case guest.After(after):
		return guest.Sub(after), nil
	}
	return 0, nil
}

// offsetWords returns an offset as text.
func offsetWords(offset time.Duration) string {
	if offset < 0 {
		return fmt.Sprintf("%v behind", (-offset).Round(time.Millisecond))
	}
	return fmt.Sprintf("%v ahead", offset.Round(time.Millisecond))
}
