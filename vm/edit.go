package vm

import (
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of what a VM can be labelled with.
const (
	MaxLabels      = 64
	MaxLabelValue  = 255  // characters
	MaxDescription = 4096 // characters
	MaxOrder       = 1000
	MaxDelay       = time.Hour
)

var labelPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$`)

// VMEdits are what can be changed of a VM at any time; nil leaves a thing as it
// is.
type VMEdits struct {
	Description *string
	Labels      *map[string]string // in place of all there were
	Restart     *RestartPolicy
	Autostart   *Autostart
	// Desired says whether automatic restarts and the start at boot are wanted;
	// it starts and stops nothing.
	Desired *Desired
}

// Apply checks e and changes v.
func (e VMEdits) Apply(v *VM) error {
	if e.Description != nil {
		if err := checkDescription(*e.Description); err != nil {
			return err
		}
		v.Description = *e.Description
	}
	if e.Labels != nil {
		if err := checkLabels(*e.Labels); err != nil {
			return err
		}
		v.Labels = nil
		if len(*e.Labels) > 0 {
			v.Labels = *e.Labels
		}
	}
	if e.Restart != nil {
		switch *e.Restart {
		case RestartNever, RestartOnFailure, RestartAlways:
		default:
			return InvalidField("/restart_policy", "must be never, on-failure or always")
		}
		v.Restart = *e.Restart
	}
	if e.Autostart != nil {
		a := *e.Autostart
		if a.Order < 0 || a.Order > MaxOrder {
			return InvalidField("/autostart_order", "must be 0 to %d", MaxOrder)
		}
		if a.Delay < 0 || a.Delay > MaxDelay || a.Delay%time.Second != 0 {
			return InvalidField("/autostart_delay", "must be 0 to %d seconds", int(MaxDelay/time.Second))
		}
		v.Autostart = a
	}
	if e.Desired != nil {
		switch *e.Desired {
		case DesiredRunning, DesiredStopped:
		default:
			return InvalidField("/desired_state", "must be running or stopped")
		}
		v.Desired = *e.Desired
	}
	return nil
}

func checkDescription(text string) error {
	if !plainText(text, MaxDescription, "\n\t") {
		return InvalidField("/description", "must be text of at most %d characters without control characters", MaxDescription)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return InvalidField("/labels", "must be at most %d", MaxLabels)
	}
	for k, value := range labels {
		if !labelPattern.MatchString(k) {
			return InvalidField("/labels", "a key must be 1 to 63 of a-z, 0-9, '-', '.', '_' and '/', and begin and end with a letter or a digit")
		}
		if !plainText(value, MaxLabelValue, "") {
			return InvalidField("/labels/"+strings.ReplaceAll(k, "/", "~1"), "must be text of at most %d characters without control characters", MaxLabelValue)
		}
	}
	return nil
}

// plainText reports whether s is UTF-8 of at most limit characters, with no
// control characters but those allowed.
func plainText(s string, limit int, allowed string) bool {
	if !utf8.ValidString(s) || utf8.RuneCountInString(s) > limit {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) && !strings.ContainsRune(allowed, r) {
			return false
		}
	}
	return true
}
