package qmp_test

import (
	"context"
	"testing"

	"vmand/qemu/qmp"
	"vmand/qemu/qmp/qmptest"
)

// BenchmarkExecute measures a command and its reply. With QEMU, only the allocations of
// the connection are counted; with qmptest, also those of the server.
func BenchmarkExecute(b *testing.B) {
	servers := map[string]func(b *testing.B) *qmp.Conn{
		"qemu": func(b *testing.B) *qmp.Conn { return launch(b).connect(b) },
		"qmptest": func(b *testing.B) *qmp.Conn {
			s := qmptest.NewServer(b)
			s.Handle(func(string, qmptest.Args) (any, error) { return status{Status: "running"}, nil })
			return dial(b, s)
		},
	}
	for name, connect := range servers {
		b.Run(name, func(b *testing.B) {
			c := connect(b)
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				var got status
				if err := c.Execute(ctx, "query-status", nil, &got); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/parallel", func(b *testing.B) {
			c := connect(b)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := c.Execute(context.Background(), "query-status", nil, nil); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
