package server

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"vmand/vm"
)

// maxWait is the longest an answer is held, in seconds; more counts as this.
const maxWait = 300

// parseWait returns how long the client wants the answer held: the wait
// preference of RFC 7240, in seconds, 0 when there is none. As the RFC says,
// preferences it does not know are ignored, and of one given twice the first
// counts.
func parseWait(header string) (time.Duration, error) {
	for pref := range strings.SplitSeq(header, ",") {
		pref, _, _ = strings.Cut(pref, ";") // parameters of the preference
		name, value, _ := strings.Cut(pref, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "wait") {
			continue
		}
		value = strings.Trim(strings.TrimSpace(value), `"`)
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return 0, invalid(vm.FieldFault{Field: "Prefer", Detail: "wait must be a whole number of seconds"})
		}
		return time.Duration(min(n, maxWait)) * time.Second, nil
	}
	return 0, nil
}

// A hold is how long an answer is held, and what for besides the end of the
// operation.
type hold struct {
	wait  time.Duration // 0: it is not held
	until vm.Condition  // zero: nothing
}

// parseHold reads a Prefer header and a wait_for parameter, either of them empty
// for none.
func parseHold(prefer, waitFor string) (hold, error) {
	wait, err := parseWait(prefer)
	if err != nil || waitFor == "" {
		return hold{wait: wait}, err
	}
	if wait == 0 {
		return hold{}, invalid(vm.FieldFault{Field: "wait_for", Detail: "needs the header Prefer: wait=N with the seconds to wait at most"})
	}
	until, err := vm.ParseCondition(waitFor)
	return hold{wait, until}, err
}
