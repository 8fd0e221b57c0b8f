package qemu

import (
	"os"
	"slices"
	"strings"
	"testing"

	"vmand/vm"
)

func TestASerialLogIsRotatedAndBounded(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	l := &rotatingLog{root: root, name: "log", old: "log.1", max: 8}
	for _, word := range []string{"one", "two", "three", "four", "five"} {
		if _, err := l.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	l = &rotatingLog{root: root, name: "log", old: "log.1", max: 8} // as after a restart
	defer l.Close()
	if _, err := l.Write([]byte("sixty")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"log.1": "fourfive", "log": "sixty"} {
		if got, err := root.ReadFile(name); string(got) != want || err != nil {
			t.Errorf("%s has %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestWhatCannotBeKeptIsStillRead(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	l := &rotatingLog{root: root, name: "gone/log", old: "gone/log.1", max: 10}
	defer l.Close()
	r := strings.NewReader(strings.Repeat("x", 100_000))
	drain(r, l)
	if r.Len() != 0 {
		t.Errorf("%d bytes were not read", r.Len())
	}
}

func TestAGuestThatChattersIsNeverHeldUp(t *testing.T) {
	h := newHost(t)
	h.start("web", guestChatters)
	grown := func(what string, by int64) {
		t.Helper()
		begin := h.serialSize("web")
		await(t, what, func() bool { return h.serialSize("web") > begin+by })
	}
	grown("the log grows beyond what a socket holds", 300_000)
	h.reopen()
	grown("the log grows after a restart of vmand", 300_000)
}

func TestTheFirstByteOfARunIsTold(t *testing.T) {
	h := newHost(t)
	h.start("mute", guestDeaf)
	h.start("web", guestChatters)
	await(t, "it is told", func() bool { return len(h.marksTold()) > 0 })
	grown := func() {
		t.Helper()
		begin := h.serialSize("web")
		await(t, "the guest writes on", func() bool { return h.serialSize("web") > begin+10_000 })
	}
	grown()
	must(t, h.Reset(t.Context(), "web"))
	grown()
	h.reopen() // what comes now is not the first
	grown()
	if got := h.marksTold(); !slices.Equal(got, []string{"web serial"}) {
		t.Errorf("told: %q", got)
	}
	must(t, h.Shutdown(t.Context(), "web", vm.StopOptions{Force: true}, nil))
	h.start("web2", guestSaysHi)
	await(t, "the next run is told", func() bool { return slices.Equal(h.marksTold(), []string{"web serial", "web2 serial"}) })
}

func (h *testHost) serialSize(id string) int64 {
	st, err := h.state.Stat(vmSerialLog(id))
	if err != nil {
		return 0
	}
	return st.Size()
}
