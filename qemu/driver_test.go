package qemu

import (
	"testing"

	"vmand/vm"
)

func TestAGuestThatPowersItselfOffCanBeSeen(t *testing.T) {
	h := newHost(t)
	h.start("web", guestPowersOff)
	h.awaitStatus("web", vm.StatusShutdown)
	if h.newsOf("web") == 0 {
		t.Error("nobody was told")
	}
	if err := h.Shutdown(t.Context(), "web", vm.StopOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if o := h.Observe(t.Context(), "web"); o.Alive() {
		t.Errorf("there is still a process: %+v", o)
	}
}

func TestWhatAGuestPrintsIsInItsLog(t *testing.T) {
	h := newHost(t)
	h.start("web", guestSaysHi)
	h.awaitSerial("web", "hi\n")
}
