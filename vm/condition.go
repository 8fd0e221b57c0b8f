package vm

import (
	"strconv"
	"strings"
	"time"
)

// A Condition is a state of a guest that a request can wait for. Exactly one field is set.
type Condition struct {
	IP        bool // the guest has an acknowledged address
	Port      int  // this TCP port of the guest accepts connections; 0: not set
	Agent     bool // the guest agent answers
	CloudInit bool // cloud-init in the guest is done, disabled or absent
}

// ParseCondition parses "ip", "agent", "cloud-init" or "port:N", such as "port:22". It fails
// with [CodeInvalid] for the field "wait_for".
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
		port, err := strconv.Atoi(number)
		if err == nil && port >= 1 && port <= 65535 && strconv.Itoa(port) == number {
			return Condition{Port: port}, nil
		}
	}
	return Condition{}, InvalidField("wait_for", "%q is not ip, agent, cloud-init or port:N with N from 1 to 65535", s)
}

// Pauses between two checks of a condition.
const (
	probeInterval     = 100 * time.Millisecond
	agentInterval     = 250 * time.Millisecond
	cloudInitInterval = 2 * time.Second
)

// Interval returns the pause between two checks of c, 0 if an event reports the change.
func (c Condition) Interval() time.Duration {
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
