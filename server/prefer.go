package server

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"vmand/vm"
)

// maxWait is the maximum time in seconds that an answer is held.
const maxWait = 300

// parseWait returns the wait preference of a Prefer header (RFC 7240), at most maxWait
// and 0 if there is none. Unknown preferences are ignored, and the first of several
// wait preferences counts, as the RFC requires.
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

// A hold is the time that an answer is held, and the condition to wait for after the
// end of the operation.
type hold struct {
	wait  time.Duration // 0 if the answer is not held
	until vm.Condition  // zero for none
}

// parseHold parses a Prefer header and a wait_for parameter; both may be empty.
func parseHold(prefer, waitFor string) (hold, error) {
	wait, err := parseWait(prefer)
	if err != nil || waitFor == "" {
		return hold{wait: wait}, err
	}
	if wait == 0 {
		return hold{}, invalid(vm.FieldFault{
			Field:  "wait_for",
			Detail: "requires the header Prefer: wait=N",
		})
	}
	until, err := vm.ParseCondition(waitFor)
	return hold{wait, until}, err
}
