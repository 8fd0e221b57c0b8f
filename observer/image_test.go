package observer

import (
	"slices"
	"testing"

	"vmand/vm"
)

func TestPlanComparesImagesWithTheirContent(t *testing.T) {
	image := func(name, sum string, s vm.ImageState) vm.Image {
		return vm.Image{Name: name, State: s, ImageContent: vm.ImageContent{SHA256: sum, Bytes: 5}}
	}
	tests := map[string]struct {
		recorded []vm.Image
		seen     map[string]int64
		want     []string
		settle   bool
	}{
		"all is well":                {[]vm.Image{image("a", "1", vm.ImageAvailable), image("b", "1", vm.ImageAvailable)}, map[string]int64{"1": 5}, nil, false},
		"nobody knows":               {[]vm.Image{image("a", "1", vm.ImageAvailable)}, nil, nil, false},
		"content is gone":            {[]vm.Image{image("a", "1", vm.ImageAvailable)}, map[string]int64{}, []string{"missing_image images/a"}, true},
		"that is known":              {[]vm.Image{image("a", "1", vm.ImageError)}, map[string]int64{}, nil, false},
		"content is back":            {[]vm.Image{image("a", "1", vm.ImageError)}, map[string]int64{"1": 5}, []string{"missing_image images/a"}, true},
		"content was cut off":        {[]vm.Image{image("a", "1", vm.ImageAvailable)}, map[string]int64{"1": 4}, []string{"missing_image images/a"}, false},
		"nobody imports it":          {[]vm.Image{image("a", "", vm.ImageImporting)}, map[string]int64{}, []string{"missing_image images/a"}, true},
		"an upload that may go on":   {[]vm.Image{image("a", "", vm.ImageUploading)}, map[string]int64{}, nil, false},
		"content that no image has":  {nil, map[string]int64{"1": 5}, []string{"orphan_image images/1"}, false},
		"content about to get there": {[]vm.Image{image("a", "1", vm.ImageUploading)}, map[string]int64{"1": 5}, nil, false},
	}
	for name, tt := range tests {
		plan := Plan(Recorded{Images: tt.recorded}, vm.Survey{Images: tt.seen}, 0, nobody)
		if got := names(plan); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
		for _, a := range plan {
			if a.Settle != tt.settle || a.Passes != 2 || a.Details == "" {
				t.Errorf("%s: %+v", name, a)
			}
		}
	}
	recorded := Recorded{Images: []vm.Image{image("a", "", vm.ImageImporting)}, Open: []vm.Operation{{Kind: vm.ImageCreate, Resource: vm.ImageResource("a")}}}
	if plan := Plan(recorded, vm.Survey{Images: map[string]int64{}}, 0, nobody); len(plan) != 1 || plan[0].Type != MissingImage {
		t.Errorf("an import that nobody is at: %+v", plan)
	}
}

func TestPlanComparesCDROMDrives(t *testing.T) {
	a := vm.VM{ID: "a", State: vm.Running, Reason: vm.ReasonRequested, CDROMs: []vm.CDROM{{ID: "seed"}, {ID: "cd-1"}}}
	tests := map[string]struct {
		state vm.State
		has   []string
		drift bool
	}{
		"the same":              {vm.Running, []string{"cd-1", "seed"}, false},
		"QEMU did not say":      {vm.Running, nil, false},
		"one is missing":        {vm.Running, []string{"seed"}, true},
		"one too many":          {vm.Running, []string{"seed", "cd-1", "cd-2"}, true},
		"another one":           {vm.Paused, []string{"seed", "cd-2"}, true},
		"it is about to change": {vm.Stopping, []string{"seed"}, false},
	}
	for name, tt := range tests {
		a.State = tt.state
		seen := surveyOf("a", vm.Observation{PID: 42, Status: vm.StatusRunning, CDROMs: tt.has})
		p := planner{seen: seen}
		p.drives(a)
		if drift := len(p.plan) == 1; drift != tt.drift {
			t.Errorf("%s: %+v", name, p.plan)
		}
		for _, action := range p.plan {
			if action.Type != RuntimeDrift || !action.Settle || action.Cure == "" {
				t.Errorf("%s: %+v", name, action)
			}
		}
	}
}
