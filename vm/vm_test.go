package vm

import (
	"maps"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestVMEditsApply(t *testing.T) {
	recorded := VM{
		ID:          "web-1",
		Description: "a web server",
		Labels:      map[string]string{"env": "prod"},
		Restart:     RestartNever,
		Autostart:   Autostart{Enabled: true, Order: 1},
		Desired:     DesiredStopped,
	}
	changed := VM{
		ID:          "web-1",
		Description: "a\tweb\nserver",
		Labels:      map[string]string{"example.org/team": "a b"},
		Restart:     RestartAlways,
		Autostart:   Autostart{Order: MaxOrder, Delay: MaxDelay},
		Desired:     DesiredRunning,
	}
	all := VMEdits{
		Description: &changed.Description,
		Labels:      &changed.Labels,
		Restart:     &changed.Restart,
		Autostart:   &changed.Autostart,
		Desired:     &changed.Desired,
	}
	bare := recorded
	bare.Description, bare.Labels = "", nil
	for _, c := range []struct {
		name  string
		edits VMEdits
		want  VM
	}{
		{"nothing", VMEdits{}, recorded},
		{"everything", all, changed},
		{"empty values", VMEdits{Description: new(string), Labels: &map[string]string{}}, bare},
	} {
		got := recorded
		got.Labels = maps.Clone(recorded.Labels)
		if err := c.edits.Apply(&got); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
}

func TestVMEditsApplyChecksEveryField(t *testing.T) {
	labels := func(key, value string) VMEdits { return VMEdits{Labels: &map[string]string{key: value}} }
	description := func(s string) VMEdits { return VMEdits{Description: &s} }
	autostart := func(a Autostart) VMEdits { return VMEdits{Autostart: &a} }
	many := map[string]string{}
	for i := range maxLabels + 1 {
		many["key-"+strconv.Itoa(i)] = ""
	}
	restart, desired := RestartPolicy("sometimes"), Desired("paused")
	for _, c := range []struct {
		name  string
		edits VMEdits
		field string // of the fault; empty: valid
		says  string // a part of the detail
	}{
		{"the longest description", description(strings.Repeat("ä", MaxDescription)), "", ""},
		{"a longer description", description(strings.Repeat("ä", MaxDescription+1)), "/description", "4096"},
		{"a control character", description("a\x1b"), "/description", "control"},
		{"invalid UTF-8", description("\xff"), "/description", "text"},

		{"the longest key", labels("a"+strings.Repeat(".", 61)+"a", ""), "", ""},
		{"a longer key", labels("a"+strings.Repeat(".", 62)+"a", ""), "/labels", "63"},
		{"a key in upper case", labels("Env", ""), "/labels", "a-z"},
		{"an empty key", labels("", ""), "/labels", "a-z"},
		{"a long value", labels("a/b", strings.Repeat("x", maxLabelValue+1)), "/labels/a~1b", "255"},
		{"a line break in a value", labels("env", "a\nb"), "/labels/env", "control"},
		{"too many labels", VMEdits{Labels: &many}, "/labels", "64 entries"},

		{"an unknown policy", VMEdits{Restart: &restart}, "/restart_policy", "on-failure"},
		{"an unknown state", VMEdits{Desired: &desired}, "/desired_state", "running"},

		{"a negative order", autostart(Autostart{Order: -1}), "/autostart_order", "1000"},
		{"a high order", autostart(Autostart{Order: MaxOrder + 1}), "/autostart_order", "1000"},
		{"a negative delay", autostart(Autostart{Delay: -time.Second}), "/autostart_delay", "3600"},
		{"a long delay", autostart(Autostart{Delay: MaxDelay + time.Second}), "/autostart_delay", "3600"},
		{"a fraction of a second", autostart(Autostart{Delay: time.Millisecond}), "/autostart_delay", "seconds"},
	} {
		wantField(t, c.name, c.edits.Apply(&VM{}), "", c.field, c.says)
	}
}
