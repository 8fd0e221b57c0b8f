package qemu

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestAProcessRunsWithTheNiceValueOfTheGuests(t *testing.T) {
	a, err := newAccount("")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	own := 20 - raw
	for _, test := range []struct{ nice, want int }{{own + 3, own + 3}, {own - 3, own}} {
		a.nice = test.nice
		p, err := start(a, []string{"/bin/sleep", "60"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := unix.Getpriority(unix.PRIO_PROCESS, p.pid)
		p.kill()
		if err != nil {
			t.Fatal(err)
		}
		if got := 20 - raw; got != test.want {
			t.Errorf("told %d, with vmand at %d, the nice value is %d and not %d", test.nice, own, got, test.want)
		}
	}
}
