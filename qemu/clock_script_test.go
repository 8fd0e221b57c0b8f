package qemu

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vmand/vm"
)

// A clockGuest is a guest with an agent and a clock.
type clockGuest struct {
	mu      sync.Mutex
	offset  time.Duration   // of the clock
	setTime string          // error of guest-set-time; empty for none
	sets    bool            // guest-set-time sets the clock, even if it fails
	exec    string          // error of guest-exec; empty for none
	dates   bool            // the program date sets the clock
	frozen  bool            // the agent refuses everything
	garbage bool            // the time is no number
	asked   map[string]bool // the commands
}

// serve answers the commands on one connection.
func (g *clockGuest) serve(conn net.Conn) {
	in := bufio.NewScanner(conn)
	for in.Scan() {
		line := bytes.TrimLeft(in.Bytes(), "\xff")
		var r struct {
			Execute   string
			Arguments struct {
				ID, Time int64
				Arg      []string
			}
		}
		if json.Unmarshal(line, &r) != nil {
			continue
		}
		if r.Execute == "guest-sync-delimited" {
			fmt.Fprintf(conn, "\xff{\"return\": %d}\n", r.Arguments.ID)
			continue
		}
		result, refusal := g.answer(r.Execute, r.Arguments.Time, r.Arguments.Arg)
		if refusal != "" {
			fmt.Fprintf(conn, `{"error": {"class": "GenericError", "desc": %q}}`+"\n", refusal)
			continue
		}
		fmt.Fprintf(conn, `{"return": %s}`+"\n", result)
	}
}

// answer returns the reply to a command, as JSON, or an error.
func (g *clockGuest) answer(command string, ns int64, arg []string) (result, refusal string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked == nil {
		g.asked = map[string]bool{}
	}
	g.asked[command] = true
	switch command {
	case "guest-fsfreeze-status":
		return `"thawed"`, ""
	case "guest-info":
		return `{"version": "7.2.0"}`, ""
	case "guest-get-time":
		if g.frozen {
			return "", "the agent is in frozen state"
		}
		if g.garbage {
			return `"noon"`, ""
		}
		return strconv.FormatInt(time.Now().Add(g.offset).UnixNano(), 10), ""
	case "guest-set-time":
		if g.sets {
			g.offset = time.Until(time.Unix(0, ns))
		}
		return "{}", g.setTime
	case "guest-exec":
		if g.dates {
			seconds, _ := strconv.ParseInt(arg[3], 10, 64)
			nanos, _ := strconv.ParseInt(arg[4], 10, 64)
			g.offset = time.Until(time.Unix(seconds, nanos))
		}
		return `{"pid": 7}`, g.exec
	case "guest-exec-status":
		if g.dates {
			return `{"exited": true, "exitcode": 0}`, ""
		}
		return `{"exited": true, "exitcode": 1, "err-data": "bm90IHBlcm1pdHRlZA=="}`, ""
	}
	return "{}", ""
}

func TestClockOfAGuestIsSet(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		guest *clockGuest
		set   bool
		code  vm.Code // of the error; empty for none
		words string  // in the error
	}{
		"behind":                    {guest: &clockGuest{offset: -26 * time.Second, sets: true}, set: true},
		"ahead":                     {guest: &clockGuest{offset: time.Hour, sets: true}, set: true},
		"right":                     {guest: &clockGuest{}},
		"almost right":              {guest: &clockGuest{offset: -300 * time.Millisecond}},
		"set, but hwclock fails":    {guest: &clockGuest{offset: -time.Minute, sets: true, setTime: "hwclock failed"}, set: true},
		"no hwclock":                {guest: &clockGuest{offset: -time.Minute, setTime: "unsupported", dates: true}, set: true},
		"a reply without an effect": {guest: &clockGuest{offset: -time.Minute, dates: true}, set: true},
		"no hwclock and no programs": {
			&clockGuest{offset: -time.Minute, setTime: "unsupported", exec: "disabled"}, false,
			vm.CodeGuestRefused, "behind: guest-set-time: unsupported; guest-exec: disabled",
		},
		"no permission": {
			&clockGuest{offset: time.Minute, setTime: "unsupported"}, false,
			vm.CodeGuestRefused, "ahead: guest-set-time: unsupported; date: not permitted",
		},
		"frozen":  {&clockGuest{frozen: true}, false, vm.CodeGuestRefused, "frozen"},
		"garbage": {&clockGuest{garbage: true}, false, vm.CodeAgentUnavailable, "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			was := tt.guest.offset
			a := scriptedAgent(t, tt.guest.serve)
			check, err := a.setClock(t.Context())
			if codeOf(err) != tt.code || err != nil && !strings.Contains(err.Error(), tt.words) {
				t.Fatalf("got error %v; want %s with %q", err, tt.code, tt.words)
			}
			if check.Set != tt.set || tt.set && (check.Offset-was).Abs() > 2*time.Second {
				t.Errorf("got %+v; want set %v and an offset of about %v", check, tt.set, was)
			}
			tt.guest.mu.Lock()
			defer tt.guest.mu.Unlock()
			if err == nil && tt.guest.offset.Abs() > setTolerance {
				t.Errorf("the clock of the guest is %v", tt.guest.offset)
			}
			if !tt.set && err == nil && (tt.guest.asked["guest-set-time"] || tt.guest.asked["guest-exec"]) {
				t.Errorf("a clock that is right was set: %v", tt.guest.asked)
			}
		})
	}
}
