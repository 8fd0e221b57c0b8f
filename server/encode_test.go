package server

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"vmand/openapi"
	"vmand/vm"
)

// apiVM is the VM as the generated code has it.
func apiVM(v *vm.VM) *openapi.VM {
	return &openapi.VM{
		ID:                v.ID,
		UUID:              v.UUID,
		VMTemplate:        openapi.VMTemplate{Name: v.Template.Name, CPUCount: v.Template.CPUCount, RAMAmount: v.Template.RAMMiB},
		State:             openapi.VMState(v.State),
		StateReason:       (*openapi.VMStateReason)(optional(&v.Reason)),
		StateReasonDetail: optional(&v.ReasonDetail),
		DesiredState:      openapi.VMDesiredState(v.Desired),
		LocalIP:           optional(&v.LocalIP),
		RootDiskSize:      gib(v.Root.SizeMiB),
		MachineType:       optional(&v.Machine),
		Accel:             (*openapi.VMAccel)(optional(&v.Accel)),
		CreatedAt:         openapi.Time{Time: v.CreatedAt},
		UpdatedAt:         openapi.Time{Time: v.UpdatedAt},
		StartedAt:         optionalTime(v.StartedAt),
		Description:       v.Description,
		Labels:            labelsOf(v),
		RestartPolicy:     openapi.RestartPolicy(v.Restart),
		RestartCount:      v.Restarts,
		NextRestartAt:     optionalTime(v.RestartAt),
		Autostart:         v.Autostart.Enabled,
		AutostartOrder:    v.Autostart.Order,
		AutostartDelay:    int(v.Autostart.Delay / time.Second),
	}
}

func labelsOf(v *vm.VM) openapi.Labels {
	if v.Labels == nil {
		return openapi.Labels{}
	}
	return v.Labels
}

func TestTheHandWrittenVMIsWhatTheGeneratedTypeWouldBe(t *testing.T) {
	some := someVM(7)
	odd := someVM(8)
	odd.ReasonDetail = "quote \" back \\ slash\n\ttab \x00 \x7f <b>&amp;</b> ü \u2028 \xff"
	odd.LocalIP, odd.Root.SizeMiB = "fe80::1", 1
	odd.CreatedAt = time.Date(1, 2, 3, 4, 5, 6, 7999999, time.FixedZone("", 3600))
	large := someVM(9)
	large.Root.SizeMiB, large.Template.RAMMiB = vm.MaxDiskMiB, vm.MaxRAMMiB
	odd.Description, odd.Labels = "new\nline & <tab>\t", map[string]string{"z": "", "a/b": "quote \"", "a": "ü", "m.n_o-p": "1"}
	large.Restart, large.Restarts, large.RestartAt = vm.RestartAlways, 17, large.StartedAt
	large.Autostart = vm.Autostart{Enabled: true, Order: vm.MaxOrder, Delay: vm.MaxDelay}
	for _, v := range []vm.VM{{}, some, odd, large} {
		var want strings.Builder
		e := json.NewEncoder(&want)
		e.SetEscapeHTML(false)
		if err := e.Encode(apiVM(&v)); err != nil {
			t.Fatal(err)
		}
		if got := string((*wireVM)(&v).appendJSON(nil)); got != want.String() {
			t.Errorf("got  %s\nwant %s", got, want.String())
		}
	}
}
