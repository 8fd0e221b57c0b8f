package manager_test

import (
	"testing"

	"vmand/vm"
)

func TestSizesAboveTheLimitsOfTheHostAreRefused(t *testing.T) {
	w := newWorld(t)
	for name, size := range map[string]vm.Template{
		"wide": {CPUCount: 256, RAMMiB: 64},
		"high": {CPUCount: 1, RAMMiB: 2049},
	} {
		size.Name = name
		must(t)(w.Templates.Create(t.Context(), size)) // no limit is known
	}
	must(t)(w.VMs.Create(t.Context(), vm.NewVM{ID: "web-1", Template: "wide"}))
	w.driver.Max = vm.Limits{CPUs: 255, RAMMiB: 2048}

	_, err := w.Templates.Create(t.Context(), vm.Template{Name: "a", CPUCount: 256, RAMMiB: 64})
	if f := wantCode(t, err, vm.CodeInvalid, "at most 255 on this host"); f.Fields[0].Field != "/cpu_count" {
		t.Errorf("field is %q", f.Fields[0].Field)
	}
	_, err = w.Templates.Create(t.Context(), vm.Template{Name: "b", CPUCount: 1, RAMMiB: 2049})
	if f := wantCode(t, err, vm.CodeInvalid, "at most 2048 MiB on this host"); f.Fields[0].Field != "/ram_amount" {
		t.Errorf("field is %q", f.Fields[0].Field)
	}
	must(t)(w.Templates.Create(t.Context(), vm.Template{Name: "c", CPUCount: 255, RAMMiB: 2048}))

	// A template and a VM that are older than the limit, or come from another host.
	for name, text := range map[string]string{"wide": "cpu_count", "high": "ram_amount"} {
		_, err = w.VMs.Create(t.Context(), vm.NewVM{Template: name})
		if f := wantCode(t, err, vm.CodeInvalid, text, name, "on this host"); f.Fields[0].Field != "/template_name" {
			t.Errorf("field is %q", f.Fields[0].Field)
		}
	}
	_, _, err = w.VMs.Do(t.Context(), "web-1", vm.OpStart, vm.StopOptions{})
	wantCode(t, err, vm.CodeState, "web-1", "cpu_count must be at most 255")
	w.wantVM("web-1", vm.Stopped, vm.ReasonCreated)
}
