package openapi

import (
	"encoding/json"
	"testing"
	"time"
)

func TestATimeIsEncodedInUTCWithMilliseconds(t *testing.T) {
	east := time.FixedZone("east", 2*3600)
	for _, tt := range []struct {
		in   time.Time
		want string
	}{
		{time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC), `"2026-03-01T09:00:00.000Z"`},
		{time.Date(2026, 3, 1, 9, 0, 0, 250_000_000, time.UTC), `"2026-03-01T09:00:00.250Z"`},
		{time.Date(2026, 3, 1, 9, 0, 0, 999_999_999, time.UTC), `"2026-03-01T09:00:00.999Z"`},
		{time.Date(2026, 3, 1, 1, 0, 0, 0, east), `"2026-02-28T23:00:00.000Z"`},
	} {
		b, err := json.Marshal(Time{tt.in})
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != tt.want {
			t.Errorf("%v is encoded as %s, want %s", tt.in, b, tt.want)
		}
		if s := `"` + (Time{tt.in}).String() + `"`; s != tt.want {
			t.Errorf("%v as a string is %s, want %s", tt.in, s, tt.want)
		}
		var back Time
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if want := tt.in.Truncate(time.Millisecond); !back.Equal(want) {
			t.Errorf("%s is decoded as %v, want %v", b, back, want)
		}
	}
}

func TestATimeCanBeTheKeyOfAMap(t *testing.T) {
	b, err := json.Marshal(map[Time]int{{time.Unix(0, 0)}: 1})
	if want := `{"1970-01-01T00:00:00.000Z":1}`; err != nil || string(b) != want {
		t.Errorf("got %s, %v; want %s", b, err, want)
	}
}

func TestATimeThatCannotBeEncodedIsAnError(t *testing.T) {
	for _, year := range []int{-1, 10000} {
		if b, err := json.Marshal(Time{time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)}); err == nil {
			t.Errorf("the year %d is encoded as %s", year, b)
		}
	}
}

func TestATimeIsEncodedWithOneAllocation(t *testing.T) {
	now := Time{time.Now()}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := now.MarshalJSON(); err != nil {
			t.Fatal(err)
		}
	}); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
