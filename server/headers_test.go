package server

import (
	"math"
	"strings"
	"testing"
	"time"

	"vmand/vm"
)

func TestWaitIsParsedFromPrefer(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		want time.Duration
		bad  bool
	}{
		"":                                {0, false},
		"wait=0":                          {0, false},
		"wait=30":                         {30 * time.Second, false},
		"WAIT = 30":                       {30 * time.Second, false},
		`wait="30"`:                       {30 * time.Second, false},
		"respond-async, wait=10; x=1":     {10 * time.Second, false},
		"wait=5, wait=10":                 {5 * time.Second, false},
		"return=minimal;wait=7":           {0, false},
		"wait=300":                        {300 * time.Second, false},
		"wait=301":                        {300 * time.Second, false},
		"wait=99999999999999999999999999": {300 * time.Second, false},
		"wait":                            {0, true},
		"wait=":                           {0, true},
		"wait=-1":                         {0, true},
		"wait=1.5":                        {0, true},
		"wait=soon":                       {0, true},
		"wait=+5":                         {0, true},
	}
	for header, test := range tests {
		got, err := parseWait(header)
		if got != test.want || (err != nil) != test.bad {
			t.Errorf("%q: got %v, %v", header, got, err)
		}
	}
}

func TestIfMatchIsParsed(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		want vm.Match
		bad  bool
	}{
		"":                         {nil, false},
		"*":                        {nil, false},
		`"3-7"`:                    {vm.Match{{Seq: 3, Revision: 7}}, false},
		`"3-7", "4-0"`:             {vm.Match{{Seq: 3, Revision: 7}, {Seq: 4}}, false},
		`W/"3-7"`:                  {vm.Match{}, false},
		`"of another VM"`:          {vm.Match{}, false},
		`"03-7"`:                   {vm.Match{}, false},
		`"+3-7"`:                   {vm.Match{}, false},
		`"3--7"`:                   {vm.Match{{Seq: 3, Revision: -7}}, false},
		`"99999999999999999999-1"`: {vm.Match{}, false},
		`"3-7.0123456789abcdef"`:   {vm.Match{{Seq: 3, Revision: 7}}, false},
		`"3-7.0123456789abcdeF"`:   {vm.Match{}, false},
		`"3-7.01"`:                 {vm.Match{}, false},
		`3-7`:                      {nil, true},
		`"3-7`:                     {nil, true},
		`"3-7" "4-0"`:              {nil, true},
		`"3-7",`:                   {vm.Match{{Seq: 3, Revision: 7}}, false},
	}
	for header, test := range tests {
		got, err := parseMatch(header)
		if (err != nil) != test.bad || (got == nil) != (test.want == nil) || len(got) != len(test.want) {
			t.Errorf("%q: got %v, %v", header, got, err)
			continue
		}
		for i := range got {
			if got[i] != test.want[i] {
				t.Errorf("%q: got %v", header, got)
			}
		}
	}
}

func TestIfNoneMatchComparesWeakly(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]bool{
		"*": true, `"1-2"`: true, `W/"1-2"`: true, `"0-0", "1-2"`: true,
		`"1-3"`: false, "": false, "1-2": false, `"0-0" "1-2"`: false,
	} {
		if got := matching(header, `"1-2"`) != ""; got != want {
			t.Errorf("%q: got %v", header, got)
		}
	}
}

func TestOnlyCursorsOfThisServerAreParsed(t *testing.T) {
	t.Parallel()
	for _, seq := range []int64{0, 1, 127, 128, 1 << 40, math.MaxInt64} {
		if got, err := parseCursor(formatCursor(seq)); got != seq || err != nil {
			t.Errorf("%d: got %d, %v", seq, got, err)
		}
	}
	for _, s := range []string{"", "x", "AQ", "MTAw", "AQE=", "AQEB", "AgE", "' OR 1=1", formatCursor(-1), "AX8\n"} {
		if got, err := parseCursor(s); err == nil {
			t.Errorf("%q is parsed as %d", s, got)
		}
	}
}

func TestValidRequestIDsAreKeptAndOthersReplaced(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for id, taken := range map[string]bool{"a.B_9-z": true, "": false, "with space": false, "quote\"": false,
		strings.Repeat("a", 128): true, strings.Repeat("a", 129): false} {
		r := a.want(t, 200, "GET", "/health", "", headerRequestID, id)
		got := r.Header.Get(headerRequestID)
		if (got == id) != taken || !validRequestID(got) {
			t.Errorf("%q is answered with %q", id, got)
		}
	}
	if one, other := newRequestID(), newRequestID(); one == other || len(one) != 16 {
		t.Errorf("%q and %q", one, other)
	}
}

func TestEveryAnswerHasTheCommonHeaders(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(f *fixture) { f.o.DryRun = true })
	for _, path := range []string{"/health", "/vms", "/nowhere", "/vms/nobody", "/openapi.yaml"} {
		h := a.ask(t, "GET", path, "").Header
		for name, want := range map[string]string{
			"Server":                 "vmand/1.2.3",
			"X-Vman-Dry-Run":         "true",
			"X-Content-Type-Options": "nosniff",
		} {
			if got := h.Get(name); got != want {
				t.Errorf("%s: %s is %q", path, name, got)
			}
		}
		if h.Get("Cache-Control") == "" || h.Get(headerRequestID) == "" {
			t.Errorf("%s: %v", path, h)
		}
	}
	if got := newAPI(t).ask(t, "GET", "/vms", "").Header.Get("X-Vman-Dry-Run"); got != "" {
		t.Errorf("X-Vman-Dry-Run %q without a dry run", got)
	}
}
