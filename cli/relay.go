package cli

import (
	"fmt"
	"io"
	"strings"
)

// A relay copies bytes between the standard streams and a console.
type relay struct {
	std       Streams
	fromGuest io.Reader
	toGuest   io.Writer
	keys      *escapes   // nil if input is passed on unchanged
	restore   func()     // restores the terminal; idempotent
	over      chan error // receives the reason for the end, from either direction
}

// show copies the output of the guest until its end.
func (r *relay) show() {
	defer r.restoreIfPanicking()
	_, err := io.Copy(struct{ io.Writer }{r.std.Out}, r.fromGuest)
	r.over <- err
}

// send copies the input until the user closes the console. The end of input that
// is not a terminal does not end the console: the guest may still answer.
func (r *relay) send() {
	defer r.restoreIfPanicking()
	buf := make([]byte, 4096)
	for {
		n, err := r.std.In.Read(buf)
		typed, closed := buf[:n], false
		if r.keys != nil {
			typed, closed = r.translate(typed)
		}
		if len(typed) > 0 {
			if _, err := r.toGuest.Write(typed); err != nil {
				return // show reports the reason
			}
		}
		switch {
		case closed, err != nil && r.keys != nil:
			r.over <- nil
			return
		case err == io.EOF:
			return
		case err != nil:
			r.over <- err
			return
		}
	}
}

// translate executes the escapes in typed and returns the other bytes.
func (r *relay) translate(typed []byte) (rest []byte, closed bool) {
	for _, key := range typed {
		send, act := r.keys.next(key)
		rest = append(rest, send...)
		switch act {
		case escapeLeave:
			return rest, true
		case escapeHelp:
			r.say(escapeUsage)
		}
	}
	return rest, false
}

// say shows text to the user. It is a no-op if input is not a terminal.
func (r *relay) say(text string) {
	if r.keys != nil {
		fmt.Fprintf(r.std.Err, "\r\n[%s]\r\n", strings.ReplaceAll(text, "\n", "\r\n"))
	}
}

func (r *relay) restoreIfPanicking() {
	if p := recover(); p != nil {
		r.restore()
		panic(p)
	}
}
