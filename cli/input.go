package cli

import (
	"context"
	"io"
)

// maxInputRead is the maximum number of bytes that one read of standard input returns.
const maxInputRead = 64 << 10

// An input is standard input with reads that end when ctx is done. A read of a terminal or a pipe
// cannot be ended: it goes on without effect.
type input struct {
	ctx context.Context
	in  io.Reader
}

func (a *app) input(ctx context.Context) io.Reader { return &input{ctx, a.std.In} }

func (i *input) Read(p []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	type result struct {
		n   int
		err error
	}
	b := make([]byte, min(len(p), maxInputRead))
	read := make(chan result, 1)
	go func() {
		n, err := i.in.Read(b)
		read <- result{n, err}
	}()
	select {
	case r := <-read:
		return copy(p, b[:r.n]), r.err
	case <-i.ctx.Done():
		return 0, context.Cause(i.ctx)
	}
}
