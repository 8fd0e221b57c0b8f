package qmp

// Direction is the kind of a traced line.
type Direction string

// The kinds of lines. The greeting of QEMU is not traced.
const (
	Request Direction = "command"
	Reply   Direction = "reply" // and every line that is not a QMP message
	Report  Direction = "event"
)

// A Trace is called with every line of a connection, without the newline: with a command
// before it is sent, with other lines after they are read. id is the id of a command or
// reply, or 0 for none.
//
// A Trace is called concurrently by senders and by the goroutine that reads the
// connection. It must not block, must not use the connection, and must not keep line.
type Trace func(d Direction, id uint64, line []byte)

// An Option configures the connection that [New] and [Dial] return.
type Option func(*Conn)

// WithTrace returns an option that sets the trace of a connection.
func WithTrace(t Trace) Option { return func(c *Conn) { c.trace = t } }

func (c *Conn) traced(d Direction, id uint64, line []byte) {
	if c.trace != nil {
		c.trace(d, id, line)
	}
}
