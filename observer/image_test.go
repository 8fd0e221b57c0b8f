package observer

import (
	"slices"
	"testing"

	"vmand/vm"
)

func TestPlanImages(t *testing.T) {
	image := func(name, sum string, s vm.ImageState) vm.Image {
		return vm.Image{Name: name, State: s, ImageContent: vm.ImageContent{SHA256: sum, Bytes: 5}}
	}
	tests := map[string]struct {
		recorded []vm.Image
		seen     map[string]int64
		want     []string
		settle   bool
	}{
		"no difference":             {[]vm.Image{image("a", "1", vm.ImageAvailable), image("b", "1", vm.ImageAvailable)}, map[string]int64{"1": 5}, nil, false},
		"no list of content":        {[]vm.Image{image("a", "1", vm.ImageAvailable)}, nil, nil, false},
		"missing content":           {[]vm.Image{image("a", "1", vm.ImageAvailable)}, map[string]int64{}, []string{"missing_image images/a"}, true},
		"recorded missing content":  {[]vm.Image{image("a", "1", vm.ImageError)}, map[string]int64{}, nil, false},
		"returned content":          {[]vm.Image{image("a", "1", vm.ImageError)}, map[string]int64{"1": 5}, []string{"missing_image images/a"}, true},
		"truncated content":         {[]vm.Image{image("a", "1", vm.ImageAvailable)}, map[string]int64{"1": 4}, []string{"missing_image images/a"}, false},
		"interrupted import":        {[]vm.Image{image("a", "", vm.ImageImporting)}, map[string]int64{}, []string{"missing_image images/a"}, true},
		"open upload":               {[]vm.Image{image("a", "", vm.ImageUploading)}, map[string]int64{}, nil, false},
		"content of no image":       {nil, map[string]int64{"1": 5}, []string{"orphan_image images/1"}, false},
		"content of an open upload": {[]vm.Image{image("a", "1", vm.ImageUploading)}, map[string]int64{"1": 5}, nil, false},
	}
	for name, tt := range tests {
		plan := Plan(Recorded{Images: tt.recorded}, vm.Survey{Images: tt.seen}, 0, neverBusy)
		if got := names(plan); !slices.Equal(got, tt.want) {
			t.Errorf("%s: plan %q, want %q", name, got, tt.want)
		}
		for _, a := range plan {
			if a.Settle != tt.settle || a.Passes != 2 || a.Details == "" {
				t.Errorf("%s: action %+v, want settle %t after 2 passes, with details", name, a, tt.settle)
			}
		}
	}
	recorded := Recorded{
		Images: []vm.Image{image("a", "", vm.ImageImporting)},
		Open:   []vm.Operation{{Kind: vm.ImageCreate, Resource: vm.ImageResource("a")}},
	}
	if plan := Plan(recorded, vm.Survey{Images: map[string]int64{}}, 0, neverBusy); len(plan) != 1 || plan[0].Type != MissingImage {
		t.Errorf("plan of an interrupted import: %+v, want one missing_image", plan)
	}
}

func TestPlanCDROMDrives(t *testing.T) {
	a := vm.VM{ID: "a", State: vm.Running, Reason: vm.ReasonRequested, CDROMs: []vm.CDROM{{ID: "seed"}, {ID: "cd-1"}}}
	tests := map[string]struct {
		state vm.State
		has   []string
		drift bool
	}{
		"the same drives":    {vm.Running, []string{"cd-1", "seed"}, false},
		"unknown drives":     {vm.Running, nil, false},
		"one drive missing":  {vm.Running, []string{"seed"}, true},
		"one drive too many": {vm.Running, []string{"seed", "cd-1", "cd-2"}, true},
		"another drive":      {vm.Paused, []string{"seed", "cd-2"}, true},
		"transitional state": {vm.Stopping, []string{"seed"}, false},
	}
	for name, tt := range tests {
		a.State = tt.state
		seen := surveyOf("a", vm.Observation{PID: 42, Status: vm.StatusRunning, CDROMs: tt.has})
		p := planner{seen: seen}
		p.drives(a)
		if drift := len(p.plan) == 1; drift != tt.drift {
			t.Errorf("%s: plan %+v, want drift: %t", name, p.plan, tt.drift)
		}
		for _, action := range p.plan {
			if action.Type != RuntimeDrift || !action.Settle || action.Cure == "" {
				t.Errorf("%s: action %+v, want runtime_drift to settle, with a cure", name, action)
			}
		}
	}
}
