package qmp

// Direction says what a traced line is.
type Direction string

// What goes over a connection, but for QEMU's greeting.
const (
	Request Direction = "command"
	Reply   Direction = "reply" // also what is no QMP message at all
	Report  Direction = "event"
)

// A Trace is told every line of a connection as it is on the wire, without the
// newline: a command just before it is sent, the rest as it is read. The id is
// that of a command and of its reply, and 0 where there is none.
//
// It is called by whoever sends and by the goroutine that reads, at once: it must
// be quick, must not use the connection, and must not keep the line.
type Trace func(d Direction, id uint64, line []byte)

// An Option changes what [New] and [Dial] make.
type Option func(*Conn)

// WithTrace makes a connection tell t what goes over it.
func WithTrace(t Trace) Option { return func(c *Conn) { c.trace = t } }

func (c *Conn) traced(d Direction, id uint64, line []byte) {
	if c.trace != nil {
		c.trace(d, id, line)
	}
}
