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
	}
}

func TestTheHandWrittenVMIsWhatTheGeneratedTypeWouldBe(t *testing.T) {
	some := someVM(7)
	odd := someVM(8)
	odd.ReasonDetail = "quote \" back \\ slash\n\ttab \x00 \x7f <b>&amp;</b> ü \u2028 \xff"
	odd.LocalIP, odd.Root.SizeMiB = "fe80::1", 1
	odd.CreatedAt = time.Date(1, 2, 3, 4, 5, 6, 7999999, time.FixedZone("", 3600))
	large := someVM(9)
	large.Root.SizeMiB, large.Template.RAMMiB = vm.MaxDiskMiB, vm.MaxRAMMiB
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
