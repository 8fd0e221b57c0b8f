package qmp_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"vmand/qemu/qmp"
	"vmand/qemu/qmp/qmptest"
)

func TestATraceGetsEveryLine(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var lines []string
	s := qmptest.NewServer(t)
	s.Script(func(p *qmptest.Peer) {
		p.Handshake()
		p.Reply(p.Expect("stop"), nil)
		p.Raw(`{"event":"STOP"}` + "\n")
		p.Raw(`{"return":{},"id":"late"}` + "\n")
		p.Refuse(p.Expect("cont"), qmp.GenericError, "no")
		p.Raw("garbage\n")
	})
	trace := func(d qmp.Direction, id uint64, line []byte) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, fmt.Sprintf("%s %d %s", d, id, line))
	}
	c, err := qmp.Dial(patient(t), s.Path(), qmp.WithTrace(trace))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Execute(patient(t), "stop", nil, nil); err != nil {
		t.Error(err)
	}
	if err := c.Execute(patient(t), "cont", struct{}{}, nil); err == nil {
		t.Error("the refused command succeeded")
	}
	wait(t, c.Done(), "the end of the connection")
	want := []string{
		`command 1 {"execute":"qmp_capabilities","arguments":{"enable":["oob"]},"id":1}`,
		`reply 1 {"id":1,"return":{}}`,
		`command 2 {"execute":"stop","id":2}`,
		`reply 2 {"id":2,"return":{}}`,
		`event 0 {"event":"STOP"}`,
		`reply 0 {"return":{},"id":"late"}`,
		`command 3 {"execute":"cont","arguments":{},"id":3}`,
		`reply 3 {"error":{"class":"GenericError","desc":"no"},"id":3}`,
		`reply 0 garbage`,
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(lines) // the event may be read before or after the next command is sent
	slices.Sort(want)
	if !slices.Equal(lines, want) {
		t.Errorf("got %q\nwant %q", lines, want)
	}
}
