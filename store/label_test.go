package store

import (
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmand/vm"
)

func TestLabelsSelectExactMatches(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	odd := []string{"plain", "a.b", "a", "$.a", `$."a"`, `quo"te`, "it's", `back\slash`, "<&>", "名前 😀", "\u2028",
		"a/b", "%", "_", "0", "[0]", "null", "tab\t", "\u007f", "e\u0301", "\u00e9"}
	for i, text := range odd {
		v := makeVM(i)
		v.Labels = map[string]string{text: "v", "value": text, "same": "same", "n": fmt.Sprint(i)}
		apply(t, s, vm.Change{NewVM: &v})
		if got, err := s.VM(t.Context(), v.ID); err != nil || !reflect.DeepEqual(got.Labels, v.Labels) {
			t.Errorf("read the labels %q, %v; want %q", got.Labels, err, v.Labels)
		}
	}
	bare, empty := makeVM(100), makeVM(101)
	empty.Labels = map[string]string{"none": ""}
	apply(t, s, vm.Change{NewVM: &bare})
	apply(t, s, vm.Change{NewVM: &empty})
	wantVM := func(key, value string, want ...int) {
		t.Helper()
		list, err := s.VMs(t.Context(), vm.VMFilter{Label: key, LabelValue: value}, vm.Page{})
		must(t, err)
		ids, wantIDs := []string{}, []string{}
		for _, v := range list {
			ids = append(ids, v.ID)
		}
		for _, i := range want {
			wantIDs = append(wantIDs, makeVM(i).ID)
		}
		if !reflect.DeepEqual(ids, wantIDs) {
			t.Errorf("the label %q=%q selects %q; want %q", key, value, ids, wantIDs)
		}
	}
	for i, text := range odd {
		wantVM(text, "v", i)
		wantVM("value", text, i)
		wantVM(text, "w")
	}
	wantVM("n", "1", 1)
	wantVM("n", "01")
	wantVM("none", "", 101)
	wantVM("nothing", "")
	wantVM("SAME", "same")
	list, err := s.VMs(t.Context(), vm.VMFilter{Label: "same", LabelValue: "same", State: vm.Running,
		Template: "small"}, vm.Page{After: 2, Limit: 3})
	if err != nil || len(list) != 3 || list[0].Seq != 3 {
		t.Errorf("page of a label: %+v, %v; want three VMs after the second", list, err)
	}
}

func TestAPageOfALabelReadsOnlyItsRows(t *testing.T) {
	s := open(t)
	q := selectVMs(vm.VMFilter{Label: "a", LabelValue: "b", State: vm.Running, Template: "small", Active: true})
	query, _ := q.sql(vmTable.list, vm.Page{Limit: 10})
	plan := planOf(t, s, query)
	if len(plan) != 2 || !strings.Contains(plan[0], "COVERING INDEX vm_labels_value (key=? AND value=? AND owner>?)") ||
		!strings.Contains(plan[1], "vms USING INTEGER PRIMARY KEY (rowid=?)") {
		t.Errorf("the plan is %q; want the index of labels in its order and a lookup of each VM", plan)
	}
}

func TestTheIndexOfLabelsFollowsTheLabels(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	v, i := makeVM(0), makeImage("debian", someSum)
	apply(t, s, vm.Change{NewVM: &v, NewImage: &i})
	for _, labels := range []map[string]string{{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": ""}, nil, {"a": "2"}} {
		v.Labels, i.Labels = labels, labels
		apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}, Image: &vm.ImageUpdate{From: i.State, Image: i}})
		for _, index := range []string{"vm_labels", "image_labels"} {
			var rows []struct{ Key, Value string }
			must(t, s.reader.Select(&rows, "SELECT key, value FROM "+index))
			got := map[string]string{}
			for _, r := range rows {
				got[r.Key] = r.Value
			}
			if !maps.Equal(got, labels) {
				t.Errorf("%s has %v; want %v", index, got, labels)
			}
		}
	}
	apply(t, s, vm.Change{DeleteVM: v.ID, DeleteImage: i.Name})
	var left int
	must(t, s.reader.Get(&left, `SELECT (SELECT count(*) FROM vm_labels) + (SELECT count(*) FROM image_labels)`))
	if left != 0 {
		t.Errorf("%d labels of deleted rows are left", left)
	}
}

func TestListedVMsDoNotShareLabelsOrPolicies(t *testing.T) {
	s := open(t)
	makeTemplate(t, s, "small")
	want := []vm.VM{makeVM(0), makeVM(1), makeVM(2), makeVM(3)}
	want[0].Labels, want[0].Description = map[string]string{"a": "0", "b": "0"}, "first"
	want[0].Restart, want[0].Restarts, want[0].RestartAt = vm.RestartAlways, 2, at
	want[2].Labels, want[2].Autostart = map[string]string{"a": "2"}, vm.Autostart{Enabled: true, Delay: time.Hour}
	want[3].Labels = map[string]string{} // the same as none
	for i := range want {
		apply(t, s, vm.Change{NewVM: &want[i]})
	}
	want[3].Labels = nil
	list, err := s.VMs(t.Context(), vm.VMFilter{}, vm.Page{})
	must(t, err)
	for i, got := range list {
		w := want[i]
		w.Seq, w.Revision, w.UpdatedAt = got.Seq, got.Revision, got.UpdatedAt
		if !reflect.DeepEqual(got, w) {
			t.Errorf("listed %+v; want %+v", got, w)
		}
	}
	for i := range want { // and back to the defaults
		v := makeVM(i)
		apply(t, s, vm.Change{VM: &vm.VMUpdate{From: v.State, VM: v}})
	}
	var plain int
	must(t, s.reader.Get(&plain, `SELECT count(*) FROM vms WHERE description IS NULL AND labels IS NULL AND policy IS NULL`))
	if plain != len(want) {
		t.Errorf("%d of %d VMs have NULL columns; want all", plain, len(want))
	}
}
