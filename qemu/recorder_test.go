package qemu

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmand/qemu/qmp"
)

// exchange is a command and QEMU's reply to it.
func (r *recorder) exchange(id uint64, command, reply string) {
	r.trace(qmp.Request, id, fmt.Appendf(nil, `{"execute":%q,"id":%d}`, command, id))
	r.trace(qmp.Reply, id, fmt.Appendf(nil, `{"return": %s, "id": %d}`, reply, id))
}

func (r *recorder) texts() []string {
	var texts []string
	for _, m := range r.recording() {
		texts = append(texts, m.Dir+" "+m.Text)
	}
	return texts
}

func TestARecordingHasTheLastMessagesAndIsBounded(t *testing.T) {
	var r recorder
	long := strings.Repeat("x", maxText-1) + "äöü"
	for i := range 1000 {
		r.trace(qmp.Report, 0, fmt.Appendf(nil, "%d", i))
	}
	r.trace(qmp.Report, 0, []byte(long))
	got := r.texts()
	if len(got) != maxMessages || got[0] != "event 801" || got[maxMessages-2] != "event 999" {
		t.Errorf("the recording has %d messages: %.100q", len(got), got)
	}
	if last := got[maxMessages-1]; last != "event "+long[:maxText-1] {
		t.Errorf("the last message has %d bytes: %.20q", len(last), last)
	}
	if n := cap(r.messages); n > 2*maxMessages {
		t.Errorf("the recorder has room for %d messages", n)
	}
}

func TestARecordingOmitsRepeatedQueries(t *testing.T) {
	var r recorder
	r.exchange(1, "cont", "{}")
	id := uint64(1)
	look := func(times int, status string) {
		for range times {
			r.exchange(id+1, "query-status", fmt.Sprintf(`{"status": %q}`, status))
			r.exchange(id+2, "qom-list", "[]")
			id += 2
		}
	}
	look(50, "running")
	r.trace(qmp.Report, 0, []byte(`{"event": "STOP"}`))
	look(50, "paused")
	r.exchange(300, "cont", "{}")
	r.exchange(301, "cont", "{}")
	r.trace(qmp.Request, 302, []byte(`{"execute":"query-status","id":302}`))
	r.trace(qmp.Reply, 302, []byte(`{"error": {"class": "GenericError", "desc": "no"}, "id": 302}`))
	r.trace(qmp.Reply, 0, []byte("garbage"))
	want := []string{
		`command {"execute":"cont","id":1}`, `reply {"return": {}, "id": 1}`,
		`command {"execute":"query-status","id":100}`, `reply {"return": {"status": "running"}, "id": 100}`,
		`event {"event": "STOP"}`,
		`command {"execute":"query-status","id":200}`, `reply {"return": {"status": "paused"}, "id": 200}`,
		`command {"execute":"qom-list","id":201}`, `reply {"return": [], "id": 201}`,
		`command {"execute":"cont","id":300}`, `reply {"return": {}, "id": 300}`,
		`command {"execute":"cont","id":301}`, `reply {"return": {}, "id": 301}`,
		`command {"execute":"query-status","id":302}`, `reply {"error": {"class": "GenericError", "desc": "no"}, "id": 302}`,
		`reply garbage`,
	}
	if got := r.texts(); !slices.Equal(got, want) {
		t.Errorf("the recording has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func BenchmarkRecorder(b *testing.B) {
	var r recorder
	for i := range uint64(maxMessages) {
		r.exchange(i+1, "cont", "{}")
	}
	id := uint64(1000)
	reply := `[` + strings.Repeat(`{"name": "port-1", "type": "child<pcie-root-port>"}, `, 15) + `{}]`
	b.ReportAllocs()
	for b.Loop() {
		r.exchange(id, "query-status", `{"status": "running", "singlestep": false, "running": true}`)
		r.exchange(id+1, "qom-list", reply)
		id += 2
	}
}
