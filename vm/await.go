package vm

import (
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
	return Condition{}, InvalidField("wait_for", "%q is not ip, agent, cloud-init or port:N with N from 1 to 65535", s)
}

// Pauses between two tries to find out about a guest.
const (
	probeInterval     = 100 * time.Millisecond
	agentInterval     = 250 * time.Millisecond
	cloudInitInterval = 2 * time.Second
)

// Interval returns after how long to look at a guest again, 0 if an event tells
// when.
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
